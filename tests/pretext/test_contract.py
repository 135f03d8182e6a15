"""What holds for every pretext task: a new one is tested because it is in the union."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor, nn
from torch import distributed as dist

import fewmask
from fewmask import encoders, training
from fewmask.data.loader import Stream
from fewmask.pretext import PRETEXTS, Pool, PretextModule
from fewmask.types import Batch

SIDE = 48
POOL = Pool(images=64, batch_size=8, steps=10, classes=("cat", "dog"))


def build(name: str, encoder: nn.Module | None = None, seed: int = 1) -> PretextModule:
    torch.manual_seed(seed)
    return PRETEXTS[name]().task(encoder or encoders.build("resnet18"), SIDE, POOL)


def picture_batch(**changes: Any) -> Batch:
    return make_batch(side=64)._replace(**changes)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("name", PRETEXTS)
def test_losses_are_finite_and_reach_every_weight_that_is_trained(name: str) -> None:
    task = build(name)
    losses = task(picture_batch())
    assert losses
    assert all(loss.ndim == 0 and bool(loss.isfinite()) for loss in losses.values())
    total(losses).backward()
    trained = {id(p) for _, module in task.groups() for p in module.parameters()}
    for what, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert id(parameter) in trained, f"{what} is in no group"
            assert parameter.grad is not None, f"{what} has no gradient; DDP would wait for it"
    assert any(p.grad.abs().sum() > 0 for p in task.encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", PRETEXTS)
def test_signals_are_detached_scalars(name: str) -> None:
    task = build(name)
    task(picture_batch())
    assert task.signals
    assert all(s.ndim == 0 and not s.requires_grad for s in task.signals.values())


@pytest.mark.parametrize("name", PRETEXTS)
def test_a_step_is_a_function_of_seed_and_step(name: str) -> None:
    def loss_of(batch: Batch) -> float:
        torch.manual_seed(3)  # as the loop does before each step, for dropout
        return float(total(build(name)(batch)).detach())

    first = loss_of(picture_batch())
    assert loss_of(picture_batch()) == first
    assert loss_of(picture_batch(step=3)) != first
    assert loss_of(picture_batch(seed=6)) != first


@pytest.mark.parametrize("name", PRETEXTS)
def test_padding_is_never_looked_at(name: str) -> None:
    valid = torch.tensor([[64, 40]] * 8, dtype=torch.int32)
    batch = picture_batch(valid=valid)
    changed = batch.images.clone()
    changed[:, :, :, 40:] = 255 - changed[:, :, :, 40:]
    losses = []
    for images in (batch.images, changed):
        torch.manual_seed(3)
        losses.append(float(total(build(name)(batch._replace(images=images))).detach()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", PRETEXTS)
def test_a_state_holds_all_that_the_next_step_needs(name: str) -> None:
    task = build(name)
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 0.1)
    one_step(task, optimizer, picture_batch(step=0), 0)
    other = build(name, seed=2)
    other.load_state_dict(task.state_dict())
    losses = []
    for each in (task, other):
        torch.manual_seed(3)
        losses.append(float(total(each(picture_batch(step=1))).detach()))
    assert losses[0] == losses[1]


def one_step(
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    plain: PretextModule | None = None,
) -> None:
    torch.manual_seed(step)
    loss = total(task(batch))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    (plain or task).after_step(step, 10)


def without_batch_norm(module: nn.Module) -> None:
    """Statistics of a batch are per process: exchanged for statistics of each image."""
    for name, child in module.named_children():
        trained = any(p.requires_grad for p in child.parameters())  # a teacher's are not
        if isinstance(child, nn.BatchNorm1d):
            norm: nn.Module = nn.LayerNorm(child.num_features)
            setattr(module, name, norm.requires_grad_(trained))
        elif isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(1, child.num_features)
            setattr(module, name, norm.requires_grad_(trained))
        else:
            without_batch_norm(child)


def weights_after_two_steps(name: str, rank: int, world: int) -> Tensor:
    plain = build(name, GroupNormEncoder())
    without_batch_norm(plain)
    task = plain if world == 1 else nn.parallel.DistributedDataParallel(plain)
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], 0.05)
    for step in (0, 1):
        one_step(task, optimizer, make_batch(rank, world, side=64, step=step), step, plain)
    return torch.cat([p.detach().flatten() for p in plain.parameters()])


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {name: weights_after_two_steps(name, rank, 2) for name in PRETEXTS}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.xdist_group("two processes")
@pytest.mark.parametrize("name", PRETEXTS)
def test_two_processes_do_what_one_does(
    name: str, of_two_processes: list[dict[str, Tensor]]
) -> None:
    alone = weights_after_two_steps(name, 0, 1)
    first, second = (found[name] for found in of_two_processes)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-5)


@pytest.fixture
def pool(write_pairs: Callable[..., Path], tmp_path: Path) -> Path:
    """A pool of two class folders."""
    folder = tmp_path / "pool"
    for name, n in (("cat", 8), ("dog", 4)):
        write_pairs(n, 64, 72, name=f"of_{name}")
        folder.mkdir(exist_ok=True)
        (tmp_path / f"of_{name}" / "images").rename(folder / name)
    return folder


@pytest.mark.parametrize("name", PRETEXTS)
def test_a_killed_run_ends_in_the_same_bits(
    name: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"images": str(pool), "pretext": name, "encoder": "resnet18", "size": SIDE}
    settings |= {"steps": 3, "batch_size": 4}
    whole = fewmask.pretrain(out=str(tmp_path / "whole"), **settings)  # type: ignore[arg-type]
    assert whole.moved > 0
    read = Stream.at

    def killed(stream: Stream, step: int) -> Batch:
        if step == 2:
            raise SystemExit
        return read(stream, step)

    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(Stream, "at", killed)
    with pytest.raises(SystemExit):
        fewmask.pretrain(out=str(tmp_path / "parts"), **settings)  # type: ignore[arg-type]
    monkeypatch.setattr(Stream, "at", read)
    fewmask.pretrain(out=str(tmp_path / "parts"), **settings)  # type: ignore[arg-type]
    ends = [load_file(tmp_path / part / "encoder.safetensors") for part in ("whole", "parts")]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
