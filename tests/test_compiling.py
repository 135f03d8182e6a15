"""torch.compile: the same training, only where it pays, and one line where it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fewmask
from fewmask import compiling
from fewmask.checkpoint import read_weights
from fewmask.compiling import compiled, pays
from fewmask.devices import make_fabric
from fewmask.types import Batch, UserError

SMALL = {"encoder": "resnet18", "size": 32, "steps": 3, "batch_size": 4, "precision": "32"}


class Task(nn.Module):
    """A small network with statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3)
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.encoder(batch.images.float()).square().mean()}


def batch() -> Batch:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    return Batch(images, torch.arange(4), 0, 0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and cut as always, but not turned into machine code, which takes a minute."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


def test_machine_code_gives_the_plain_network_s_values_and_gradients() -> None:
    task, one = Task().train(), batch()
    task.encoder[3].p = 0.0
    found = []
    for names in ([], ["encoder"]):
        task.zero_grad()
        with compiled(task, names):
            loss = task(one)["loss"]
            loss.backward()
        weight = task.encoder[0].weight
        assert weight.grad is not None
        found.append((loss.detach(), weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert list(task.state_dict()) == list(Task().state_dict())


def test_only_training_is_compiled_and_only_within_the_block(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    real = torch.compile

    def counted(plain: Callable[..., Tensor], **options: object) -> Callable[..., Tensor]:
        fast = real(plain, **options)  # type: ignore[call-overload]
        return lambda *given: (calls.append(True), fast(*given))[1]

    monkeypatch.setattr(torch, "compile", counted)
    task, one = Task(), batch()
    with compiled(task, ["encoder"]):
        task.eval()(one)
        assert not calls
        task.train()(one)
        assert len(calls) == 1
    task.train()(one)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("slower", "steps", "answer"), [(0.5, 100, True), (0.99, 100, False), (0.5, 9, False)]
)
def test_it_pays_where_steps_are_faster_and_many(
    quick: None, monkeypatch: pytest.MonkeyPatch, slower: float, steps: int, answer: bool
) -> None:
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 10.0)
    times = iter([1.0, slower])
    monkeypatch.setattr(compiling, "_seconds", lambda *_: next(times))
    fabric = make_fabric("cpu", 1, "32")
    assert pays(fabric, Task(), ["encoder"], batch(), steps) is answer


def test_the_trial_leaves_everything_as_it_was(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 0.0)
    task, one = Task(), batch()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    pays(make_fabric("cpu", 1, "32"), task, ["encoder"], one, 10)
    assert torch.equal(torch.rand(3), drawn)
    for name, value in task.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in task.parameters())


def test_where_torch_cannot_compile_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    task = Task().train()
    with (
        pytest.raises(UserError, match=r"--compile: torch.compile fails here \(.*no compiler"),
        compiled(task, ["encoder"]),
    ):
        task(batch())
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 0.0)
    assert pays(make_fabric("cpu", 1, "32"), Task(), ["encoder"], batch(), 10) is False


def test_a_compiled_run_ends_where_a_plain_one_does(
    quick: None, write_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(8)
    ends = []
    for how in ("off", "on"):
        out = tmp_path / how
        fewmask.finetune(pairs=str(pairs), out=str(out), compile=how, **SMALL)
        assert json.loads((out / "result.json").read_text())["compiled"] is (how == "on")
        ends.append(read_weights(out / "model.safetensors"))
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-3, atol=1e-3)
