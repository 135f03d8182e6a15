"""Small maps as matrix products: the same convolution, where it pays, and nothing of it stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.test_training import Reconstruct, train
from torch import Tensor, nn

from fewmask import encoders, smallmaps
from fewmask.smallmaps import small_maps
from fewmask.types import Batch


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the maps that were computed as products so far."""
    shapes: list[tuple[int, ...]] = []
    compute = smallmaps._as_products

    def noted(images: Tensor, *more: Any) -> Tensor:
        shapes.append(tuple(images.shape))
        return compute(images, *more)

    monkeypatch.setattr(smallmaps, "_as_products", noted)
    return shapes


def _seen(side: int, kernel: int, padding: int) -> bool:
    return side + 2 * padding >= kernel > padding


CASES = [
    (size, kernel, stride, padding)
    for size in ((1, 1), (2, 2), (3, 3), (5, 4))
    for kernel in ((1, 1), (3, 3), (3, 2))
    for stride in ((1, 1), (2, 2), (1, 3))
    for padding in ((0, 0), (1, 1), (2, 0))
    if all(map(_seen, size, kernel, padding))
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_products_are_the_convolution_with_its_gradients(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: Any
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, kernel, stride, padding).double()
    images = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    wanted = layer(images)
    found = smallmaps._as_products(images, layer.weight, layer.bias, stride, padding)
    torch.testing.assert_close(found, wanted)
    after = torch.randn_like(wanted)
    for own, its in zip(*(
        torch.autograd.grad(result, (images, layer.weight, layer.bias), after)
        for result in (found, wanted)
    ), strict=True):  # fmt: skip
        torch.testing.assert_close(own, its)


def test_a_resnets_gradients_are_the_same_and_its_last_stages_are_products(
    products: list[tuple[int, ...]],
) -> None:
    torch.manual_seed(0)
    network = encoders.build("resnet18").to(memory_format=torch.channels_last)
    images = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def gradients() -> list[Tensor]:
        network.zero_grad()
        network(images)[-1].square().mean().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    plain = gradients()
    with small_maps(network):
        found = gradients()
    assert (32, 512, 1, 1) in products
    assert (32, 256, 2, 2) in products
    for own, its in zip(found, plain, strict=True):
        torch.testing.assert_close(own, its, rtol=1e-3, atol=1e-4 * float(its.abs().max()))


def test_nothing_of_it_stays_and_copies_keep_their_own_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2))
    names = list(network.state_dict())
    images = torch.randn(2, 3, 1, 1)
    with small_maps(network):
        assert list(network.state_dict()) == names
        assert isinstance(network[0], nn.Conv2d)
        assert type(network[1]) is nn.Conv2d, "in groups: left alone"
        other = copy.deepcopy(network)
        nn.init.zeros_(other[0].weight)
        assert not torch.equal(other[0](images), network[0](images))
    assert [type(layer) for layer in network] == [nn.Conv2d, nn.Conv2d]
    with pytest.raises(ZeroDivisionError), small_maps(network):
        raise ZeroDivisionError
    assert type(network[0]) is nn.Conv2d


class Standardised(nn.Conv2d):
    """As timm's: it computes with other weights than it holds."""


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.ConvTranspose2d(4, 4, 2),
        Standardised(4, 4, 3, padding=1),
    ],
    ids=str,
)
def test_what_is_no_plain_convolution_is_left_alone(layer: nn.Module) -> None:
    kind = type(layer)
    with small_maps(layer):
        assert type(layer) is kind


@pytest.mark.parametrize(
    ("kernel", "shape", "small"),
    [(3, (1, 8, 1, 1), True), (3, (31, 8, 2, 2), False), (3, (32, 8, 2, 2), True),
     (3, (128, 8, 3, 3), False), (3, (128, 256, 3, 3), True), (3, (127, 256, 3, 3), False),
     (3, (128, 256, 4, 4), False), (1, (1, 8, 6, 6), True), (1, (1, 8, 37, 1), False),
     (3, (0, 8, 1, 1), False), (3, (8, 1, 1), False)],
)  # fmt: skip
def test_products_only_where_they_were_measured_to_be_faster(
    kernel: int, shape: tuple[int, ...], small: bool, products: list[tuple[int, ...]]
) -> None:
    layer = nn.Conv2d(shape[-3], 8, kernel, padding=kernel // 2)
    if shape[-3] > 8:
        layer = nn.Conv2d(shape[-3], shape[-3], kernel, padding=kernel // 2)
    with small_maps(layer), torch.no_grad():
        found = layer(torch.zeros(shape))
    assert found.shape == shape
    assert bool(products) == small


@pytest.mark.parametrize("side", [1, 2])
def test_in_bf16_it_is_as_near_as_the_convolution(
    side: int, products: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 32, 3, padding=1)
    images = torch.randn(32, 64, side, side, requires_grad=True)
    after = torch.randn(32, 32, side, side)

    def gradients(*, half: bool = True) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = layer(images)
        assert found.dtype == (torch.bfloat16 if half else torch.float32)
        wanted = (images, layer.weight, layer.bias)
        return [found.detach(), *torch.autograd.grad(found, wanted, after.to(found.dtype))]

    exact, plain = gradients(half=False), gradients()
    with small_maps(layer):
        own = gradients()
    assert products
    for one, other, true in zip(own, plain, exact, strict=True):
        assert one.dtype == other.dtype
        far, allowed = (float((x.float() - true).abs().max()) for x in (one, other))
        assert far <= allowed + 0.02 * float(true.std()), (far, allowed)
        assert far < 0.1 * float(true.std()), far


def test_training_computes_so_and_ends_with_plain_convolutions(
    tmp_path: Path, products: list[tuple[int, ...]]
) -> None:
    class Convolves(Reconstruct):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            one = self.layer(torch.zeros(1, 3, 1, 1))
            return {"mse": super().forward(batch)["mse"] + one.square().mean()}

    task = Convolves()
    train(tmp_path, task, steps=2)
    assert products == [(1, 3, 1, 1)] * 2
    assert type(task.layer) is nn.Conv2d
