"""Control maps mean what they say; the hash encoder tells prompts apart; embeddings are checked."""

from __future__ import annotations

import builtins
import itertools

import numpy as np
import pytest

from cosmos_distill.controls import edge
from cosmos_distill.data.clips import decode, find_cuts, split_clip
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.text import HashTextEncoder, load_embedding
from cosmos_distill.eval.metrics.blur_ssim import blur


def square(level: int = 255) -> np.ndarray:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[:, 8:24, 8:24] = level
    return frames


def test_canny_outlines_a_square():
    edges = edge.canny(square())
    assert edges.shape == (2, 32, 32, 3) and set(np.unique(edges)) == {0, 255}
    assert (edges[..., 0] == edges[..., 1]).all() and (edges[..., 0] == edges[..., 2]).all()
    rows, columns = np.nonzero(edges[0, ..., 0])
    assert {rows.min(), columns.min()} <= {7, 8} and {rows.max(), columns.max()} <= {23, 24}
    assert not edges[:, 11:21, 11:21].any()


def test_higher_thresholds_find_fewer_edges():
    faint = square(30)
    assert edge.canny(faint, 20, 70).any() and not edge.canny(faint, 200, 255).any()


def test_training_thresholds_follow_the_specification():
    draws = np.random.default_rng(0).random((4000, 2))
    pairs = [edge.draw((a, b)) for a, b in draws]
    lower, upper = np.array(pairs).T
    assert lower.min() == 20 and lower.max() == 99 and upper.max() <= 255
    assert ((upper - lower >= 50) & (upper - lower < 150)).all()
    assert edge.draw((1 - 1e-12, 1 - 1e-12)) == (99, 248)


def test_blur_keeps_the_mean_and_removes_texture():
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    soft = blur(noise)
    assert abs(float(soft.mean()) - float(noise.mean())) < 2 and soft.std() < noise.std() / 8
    assert (blur(np.full_like(noise, 77)) == 77).all()


def test_wrong_frames_and_missing_opencv(monkeypatch):
    with pytest.raises(ValueError, match="uint8"):
        edge.canny(np.zeros((2, 8, 8, 3), np.float32))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name in ("cv2", "av"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"cosmos-distill\[video\]"):
        blur(square())
    with pytest.raises(DataError, match=r"PyAV: pip install 'cosmos-distill\[video\]'"):
        decode("x.mp4")


def test_hash_text_is_fixed_contextual_and_zero_when_empty():
    encode = HashTextEncoder(8, 256)
    text = encode("bikes shot 2 column 2 row 2 wide")
    assert text.shape == (8, 256) and text.dtype == np.float32
    assert (text == HashTextEncoder(8, 256)("bikes shot 2 column 2 row 2 wide")).all()
    assert text.std() == pytest.approx(1, abs=0.05)
    assert not encode("").any() and not encode("two words")[2:].any()
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    assert (unit @ unit.T - np.eye(8)).max() < 0.6  # the three 2s share a word but not their neighbour
    # Fixed for ever: a shipped teacher has learnt these very numbers.
    np.testing.assert_allclose(encode("bikes")[0, :3], PINNED, atol=1e-6)
    with pytest.raises(DataError, match="9 words, more than the 8 tokens"):
        encode("a b c d e f g h i")


PINNED = [1.029956, 0.927135, -0.953396]


def test_embeddings_from_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, t5_text_embeddings=np.ones((1, 3, 4), np.float16))
    assert load_embedding(path, 5, 4).tolist() == [[1] * 4] * 3 + [[0] * 4] * 2
    np.savez(path, t5_text_embeddings=np.full((3, 4), np.inf))
    with pytest.raises(DataError, match="NaN or infinity"):
        load_embedding(path, 5, 4)
    np.savez(path, a=np.ones(3), b=np.ones(3))
    with pytest.raises(DataError, match="no array 't5_text_embeddings', only 'a', 'b'"):
        load_embedding(path, 5, 4)
    np.savez(path, t5_text_embeddings=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        load_embedding(path, 5, 4)
    path.write_bytes(b"PK broken")
    with pytest.raises(DataError, match="cannot be read"):
        load_embedding(path, 5, 4)


def test_cuts_need_a_jump_that_stands_out():
    random = np.random.default_rng(0)
    still = np.repeat(random.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8), 10, axis=0)
    assert find_cuts(np.concatenate([still, 255 - still])) == [10]
    assert find_cuts(random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)) == []  # change everywhere
    assert find_cuts(still[:1]) == []


@pytest.mark.parametrize("frames,cuts", [(250, [30, 76]), (132, []), (400, [200]), (26, []), (8, [])])
def test_split_keeps_a_fifth_in_the_middle(frames, cuts):
    span = 9
    stretches = split_clip("c", frames, cuts, span)
    assert all(len(s) >= span and 0 <= s.start < s.stop <= frames for s in stretches)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(stretches))
    assert not any(s.start < cut < s.stop for s in stretches for cut in cuts)
    held = sum(len(s) for s in stretches if s.split == "eval")
    if frames > 100:
        assert 0.17 < held / frames < 0.26
    else:
        assert held == 0
