"""How tokens are cut into parts, without ranks: every part of one clip in turn."""

import pytest
import torch

from cosmos_distill.parallel.tokens import TokenSplit, _real

GRIDS = [((3, 4, 4), 2, 1), ((1, 3, 5), 2, 1), ((2, 3, 3), 4, 2), ((5, 1, 3), 4, 1), ((2, 1, 2), 4, 2)]


def splits(grid, parts, inside):
    """The split as each of ``parts`` ranks has it."""
    found = []
    for part in range(parts):
        split = TokenSplit.__new__(TokenSplit)
        split.frames, split.area = grid[0], grid[1] * grid[2]
        split.parts, split.part, split.inside = parts, part, inside
        split.width = -(-split.area // parts)
        found.append(split)
    return found


@pytest.mark.parametrize(("grid", "parts", "inside"), GRIDS)
def test_parts_have_every_frame_and_every_token_once(grid, parts, inside):
    tokens = torch.arange(1, 1 + grid[0] * grid[1] * grid[2]).float().view(1, -1, 1)
    every = [split.own_part(tokens) for split in splits(grid, parts, inside)]
    assert {tuple(part.shape) for part in every} == {every[0].shape}
    frames = torch.stack([part.view(grid[0], -1) for part in every]).movedim(0, 1).flatten(1)
    assert torch.equal(frames[:, : grid[1] * grid[2]].flatten(), tokens.flatten())
    assert not frames[:, grid[1] * grid[2] :].any()


@pytest.mark.parametrize(("grid", "parts", "inside"), GRIDS)
def test_padding_is_known_inside_the_linears(grid, parts, inside):
    tokens = torch.arange(1, 1 + grid[0] * grid[1] * grid[2]).float().view(1, -1, 1)
    seen = []
    for split in splits(grid, parts, inside)[::inside]:
        own = split.local_inside(tokens)
        context = split.part // inside
        real = split.real(context, tokens.device)
        seen.append(own if real is None else own[:, real])
        assert seen[-1].all()
        if real is not None:
            assert own.count_nonzero() == len(real)
    whole = torch.cat(seen, 1)
    assert torch.equal(whole.flatten().sort().values, tokens.flatten())
    everything = torch.cat([s.local_inside(tokens) for s in splits(grid, parts, inside)[::inside]], 1)
    real = split.real_of_all(tokens.device)
    assert torch.equal(everything if real is None else everything[:, real], whole)


def test_values_per_position_follow_the_tokens():
    grid, parts = (3, 3, 3), 2
    area = torch.randn(9, 4)
    tokens = area.repeat(3, 1)[None]
    for split in splits(grid, parts, 1):
        assert torch.equal(split.local(tokens)[0].view(3, -1, 4), split.local_area(area).expand(3, -1, 4))


def test_no_index_is_made_where_nothing_is_padded():
    assert _real(3, 8, 4, 0, 2, "cpu") is None
    assert _real(3, 7, 4, 0, 1, "cpu") is None
    assert _real(3, 7, 4, 1, 1, "cpu").tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
