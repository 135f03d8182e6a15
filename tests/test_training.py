"""The loop: resuming to the same bits, keeping the best, refusing what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewmask import decoders, training
from fewmask.augment import PairAugment
from fewmask.checkpoint import load_state, save_state
from fewmask.data.cache import ImageCache
from fewmask.data.loader import Stream
from fewmask.devices import make_fabric
from fewmask.optimisation import Optimisation
from fewmask.segmentation import SegmentationTask, Segmenter
from fewmask.training import Check, Run, Scores, fit
from fewmask.types import IGNORED, Batch, Labels, UserError

ADAMW = Optimisation("adamw", 1e-2, 1e-2, "cosine", 0.1)


class Reconstruct(nn.Module):
    """A task with dropout, so that the random numbers of a step matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Dropout(0.5), nn.Linear(8, 48))
        self.signals: dict[str, Tensor] = {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = batch.images.float() / 255
        return {"mse": (self.net(x) - x.flatten(1)).square().mean()}


def stream(n: int = 10, batch: int = 4) -> Stream:
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    cache = ImageCache(images, np.full((n, 2), 4, np.int32), tuple(map(str, range(n))), (), None)
    return Stream(cache, range(n), batch, seed=3)


def train(out: Path, task: nn.Module, steps: int = 20, **kwargs: object) -> training.Fitted:
    run = Run(out, str(kwargs.pop("key", "k")), steps, ADAMW, kwargs.pop("keep", "last"))
    fabric = make_fabric("cpu", 1, "32")
    return fit(fabric, task, [(1.0, task)], stream(), run, **kwargs)


def weights(task: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.parameters()])


@pytest.mark.parametrize("keep", ["last", "average", "best"])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    calls = iter(range(100))
    check = Check(5, lambda _: {"loss": -float(next(calls)), "iou": 0.5})
    whole = Reconstruct()
    train(tmp_path / "whole", whole, keep=keep, check=check)

    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    dying = Reconstruct()
    forward, seen = dying.forward, []

    def die(batch: Batch) -> dict[str, Tensor]:
        seen.append(batch.step)
        if batch.step == 13:
            raise SystemExit("killed")
        return forward(batch)

    dying.forward = die  # type: ignore[method-assign]
    calls = iter(range(100))
    with pytest.raises(SystemExit):
        train(tmp_path / "cut", dying, keep=keep, check=check)
    resumed = Reconstruct()
    train(tmp_path / "cut", resumed, keep=keep, check=check)

    assert torch.equal(weights(whole), weights(resumed))
    logs = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")
    ]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    task = Reconstruct()
    at: dict[float, Tensor] = {}
    losses = iter([3.0, 1.0, 2.0, 4.0])

    def score(_: int) -> dict[str, float | None]:
        loss = next(losses)
        at[loss] = weights(task)
        return {"loss": loss, "iou": None}

    fitted = train(tmp_path, task, keep="best", check=Check(5, score))
    assert fitted.best_step == 10
    assert torch.equal(weights(task), at[1.0])
    assert not torch.equal(weights(task), at[4.0])


def test_a_resumed_run_says_where_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    said: list[str] = []
    run = Run(tmp_path, "k", 20, ADAMW, say=said.append)
    with pytest.raises(SystemExit):
        fit(
            make_fabric("cpu", 1, "32"),
            task := Reconstruct(),
            [(1.0, task)],
            stream(),
            run,
            Check(8, _end),
        )
    assert said == []
    fit(make_fabric("cpu", 1, "32"), task, [(1.0, task)], stream(), run)
    assert said == ["goes on from step 7 of 20"]


def test_a_run_that_lost_its_first_steps_says_so(tmp_path: Path) -> None:
    """Killed before its first state was saved: the log alone knows of them."""
    said: list[str] = []
    run = Run(tmp_path, "k", 20, ADAMW, say=said.append)
    task = Reconstruct()
    with pytest.raises(SystemExit):
        fit(make_fabric("cpu", 1, "32"), task, [(1.0, task)], stream(), run, Check(8, _end))
    assert not (tmp_path / "state.pt").exists()
    fit(make_fabric("cpu", 1, "32"), task, [(1.0, task)], stream(), run)
    (line,) = said
    assert "begins anew" in line


def test_a_state_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    task = Reconstruct()
    boom = Check(10, lambda _: (_ for _ in ()).throw(SystemExit()))
    with pytest.raises(SystemExit):
        train(tmp_path, task, check=boom)
    with pytest.raises(UserError, match="other settings or other images"):
        train(tmp_path, Reconstruct(), key="another")


@pytest.mark.parametrize("damage", ["a name", "no optimizer", "memory", "average", "no table"])
def test_a_state_of_another_network_or_version_is_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    with pytest.raises(SystemExit):
        train(tmp_path, Reconstruct(), check=Check(10, _end))
    path = tmp_path / "state.pt"
    state = load_state(path)
    if damage == "a name":
        state["task"]["other"] = state["task"].pop(next(iter(state["task"])))
    elif damage == "no optimizer":
        del state["optimizer"]
    elif damage == "memory":
        state["memory"]["unknown"] = 1
    elif damage == "average":
        state["memory"]["average"] = {"a": 1}
    save_state(path, state)
    if damage == "no table":
        torch.save([1], path)
    with pytest.raises(UserError, match=r"state\.pt: does not fit this run.*Remove it") as raised:
        train(tmp_path, Reconstruct())
    if damage == "a name":
        assert 'Unexpected key(s) in state_dict: "other"' in str(raised.value)


class BrokenAtSeven(Reconstruct):
    """Its loss is no number at the seventh step."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        factor = float("inf") if batch.step == 6 else 1.0
        return {"mse": super().forward(batch)["mse"] * factor}


def test_a_loss_that_is_not_finite_stops_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    task, plain = BrokenAtSeven(), Reconstruct()
    with pytest.raises(UserError, match=r"not finite at step 7 \(mse inf\) on a batch of 4 images"):
        train(tmp_path / "broken", task)
    told = json.loads((tmp_path / "broken" / "failed.json").read_text())
    assert (told["step"], told["losses"]) == (6, {"mse": "inf"})
    rows = stream().at(6).rows.tolist()
    assert told["images"] == [stream().store.names[row] for row in rows]
    # The step moved nothing: weights are those of a run that went well so far.
    with pytest.raises(SystemExit):
        train(tmp_path / "plain", plain, check=Check(6, _end))
    assert torch.equal(weights(task), weights(plain))
    # The state is from before, so the same command meets the same batch again.
    with pytest.raises(UserError, match="not finite at step 7"):
        train(tmp_path / "broken", BrokenAtSeven())


def _end(_: int) -> Scores:
    raise SystemExit


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_batch_that_does_not_fit_is_told_with_the_numbers(
    tmp_path: Path, problem: RuntimeError
) -> None:
    class Large(Reconstruct):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            raise problem

    with pytest.raises(UserError, match=r"4 images of 4 px at once do not fit.* GB\)\. Lower"):
        train(tmp_path, Large())


class Small(SegmentationTask):
    """A task on a device that holds two images' activations."""

    at_once: ClassVar[list[int]] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.at_once.append(len(batch.images))
        if len(batch.images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(batch)


def segmentation_task(kind: type[SegmentationTask], encoder: str, loss: str) -> SegmentationTask:
    torch.manual_seed(0)
    decoder = decoders.component("fcn8s", classifier_width=64)  # no gigabytes of fc6 on disk
    segmenter = Segmenter(encoder, decoder, Labels(("ground", "thing"), tuple(range(256))))
    for module in segmenter.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0  # drawn image by image, and so otherwise in parts
    return kind(segmenter, loss, PairAugment(), torch.tensor([0.3, 1.7]))


def pairs_stream() -> Stream:
    """Pictures and masks, of which some are ignored for the most part."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, 32, 32, 3)).astype(np.uint8)
    masks = random.integers(0, 2, (7, 32, 32)).astype(np.uint8)
    masks[3, 2:] = IGNORED
    masks[5, :, 20:] = IGNORED
    names = tuple(f"{i}.png" for i in range(7))
    store = ImageCache(images, np.full((7, 2), 32, np.int32), names, (), masks)
    return Stream(store, range(7), 7, seed=3)


@pytest.mark.parametrize("loss", ["bce+dice", "focal", "border-ce"])
def test_a_batch_in_parts_is_the_same_computation(tmp_path: Path, loss: str) -> None:
    found, said = [], list[str]()
    Small.at_once.clear()
    for kind in (SegmentationTask, Small):
        task = segmentation_task(kind, "vgg11", loss)
        fitted = fit(
            make_fabric("cpu", 1, "32"), task, task.groups(1.0), pairs_stream(),
            Run(tmp_path / kind.__name__, "k", 2, Optimisation("sgd", 0.01, 0.0), say=said.append),
        )  # fmt: skip
        found.append((weights(task), fitted.loss))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert Small.at_once[:7] == [7, 4, 2, 2, 2, 1, 2]  # the second step begins in four parts
    assert [line.split(":")[0] for line in said] == [
        "out of memory at 7 images at once",
        "out of memory at 4 images at once",
    ]


def test_a_batch_is_not_divided_where_a_layer_sees_the_whole(tmp_path: Path) -> None:
    task = segmentation_task(Small, "vgg11_bn", "bce")
    assert not task.divisible
    with pytest.raises(UserError, match="7 images of 32 px at once do not fit"):
        fit(
            make_fabric("cpu", 1, "32"), task, task.groups(1.0), pairs_stream(),
            Run(tmp_path, "k", 2, Optimisation("sgd", 0.01, 0.0)),
        )  # fmt: skip


def test_another_runtime_error_is_not_taken_for_it(tmp_path: Path) -> None:
    class Broken(Reconstruct):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(tmp_path, Broken())


def test_rates_are_ratios_of_the_base_rate() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = Optimisation("adamw", 1e-3, 0.1).build([(0.2, first), (1.0, second)])
    rates = [(g["lr"], g["weight_decay"], g["params"][0].ndim) for g in optimizer.param_groups]
    assert rates == [(2e-4, 0.1, 2), (2e-4, 0.0, 1), (1e-3, 0.1, 2), (1e-3, 0.0, 1)]


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    factors = [ADAMW.factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.001


def test_a_pass_holds_every_row_once_and_ranks_share_a_batch() -> None:
    whole = stream(n=10, batch=4)
    assert whole.steps_per_epoch == 3
    rows = np.concatenate([whole.global_rows(step) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10))
    halves = [Stream(whole.store, range(10), 4, 3, rank, 2).at(7).rows.tolist() for rank in (0, 1)]
    assert [*halves[0], *halves[1]] == whole.at(7).rows.tolist()


def test_without_the_rest_of_a_pass_no_batch_holds_a_picture_twice() -> None:
    cut = Stream(stream().store, range(10), 4, seed=1, drop_last=True)
    assert cut.steps_per_epoch == 2
    for step in range(20):
        assert len(set(cut.global_rows(step).tolist())) == 4


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(UserError, match="--device tpu"):
        make_fabric("tpu", 1, "32")
