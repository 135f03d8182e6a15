"""SimCLR: two processes do what one with the whole batch does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from tests.pretext.small import GroupNormEncoder
from tests.pretext.small import make_batch as batch
from torch import Tensor, nn
from torch import distributed as dist

from fewmask.augment import Views
from fewmask.distributed import gather_rows
from fewmask.pretext.contract import Pool, spread
from fewmask.pretext.simclr import SimCLR, SimCLRTask, agreement
from fewmask.types import Batch, UserError


def make_task() -> SimCLRTask:
    encoder = GroupNormEncoder()
    torch.manual_seed(1)
    return SimCLR(temperature=0.2, projection=8).task(encoder, 16, Pool())


def gradients(task: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    task = make_task()
    wrapped = nn.parallel.DistributedDataParallel(task)
    losses = wrapped(batch(rank, 2))
    losses["nt_xent"].backward()
    rows = (torch.arange(4.0).reshape(2, 2) + 10 * rank).requires_grad_()
    (gather_rows(rows).square().sum() * (rank + 1)).backward()
    found = {"grad": gradients(task), "loss": losses["nt_xent"].detach(), "rows": rows.grad}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    task = make_task()
    loss = task(batch())["nt_xent"]
    loss.backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank in (0, 1):  # both processes' sums of squares, the second counted twice
        rows = torch.arange(4.0).reshape(2, 2) + 10 * rank
        assert torch.equal(found[rank]["rows"], 2 * rows * (1 + 2))
    assert torch.allclose(found[0]["grad"], found[1]["grad"])
    assert torch.allclose(found[0]["grad"], gradients(task), rtol=1e-4, atol=1e-6)
    assert ((found[0]["loss"] + found[1]["loss"]) / 2).item() == pytest.approx(
        loss.item(), rel=1e-5
    )


def test_views_are_a_function_of_seed_and_step() -> None:
    task = make_task()
    one, two = task.two_views(batch()), task.two_views(batch())
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], one[1])
    later = Batch(batch().images, torch.arange(8), 5, 3, start=0, total=8)
    assert not torch.equal(task.two_views(later)[0], one[0])


def test_a_few_steps_lower_the_loss() -> None:
    """Pictures that differ in brightness alone, views that leave it alone: easily told apart."""
    levels = torch.linspace(10, 245, 8).to(torch.uint8)[:, None, None, None]
    pictures = levels.expand(8, 3, 24, 24).contiguous()
    views = Views(colour=0.0, grey=0.0, blur=0.0)
    encoder = GroupNormEncoder()
    encoder.one[1] = nn.Identity()  # normalisation takes the brightness out
    encoder.two[1] = nn.Identity()
    task = SimCLR(temperature=0.2, projection=8, views=views).task(encoder, 16, Pool())
    optimizer = torch.optim.Adam(task.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = task(batch()._replace(images=pictures))["nt_xent"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_spread_sees_collapse() -> None:
    torch.manual_seed(0)
    assert spread(torch.randn(512, 32)).item() == pytest.approx(1.0, abs=0.05)
    assert spread(torch.ones(64, 32)).item() == pytest.approx(0.0, abs=1e-6)


def test_agreement_is_one_for_equal_views_and_chance_for_unrelated_ones() -> None:
    torch.manual_seed(0)
    z = torch.randn(64, 16)
    assert agreement(torch.cat([z, z])).item() == 1.0
    assert agreement(torch.randn(512, 16)).item() < 0.05


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="--temperature 0"):
        SimCLR(temperature=0)
