"""Small maps as matrix products: the same convolution, where it pays, and nothing of it stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.test_training import Reconstruct, train
from torch import Tensor, nn
from torch.nn import functional

from fewmask import encoders, smallmaps
from fewmask.smallmaps import as_products, small_maps


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
    found = as_products(images, layer.weight, layer.bias, stride, padding)
    torch.testing.assert_close(found, wanted)
    after = torch.randn_like(wanted)
    for own, its in zip(*(
        torch.autograd.grad(result, (images, layer.weight, layer.bias), after)
        for result in (found, wanted)
    ), strict=True):  # fmt: skip
        torch.testing.assert_close(own, its)


def test_a_resnets_gradients_are_the_same_and_its_last_stages_are_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = encoders.build("resnet18").to(memory_format=torch.channels_last)
    images = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def gradients() -> list[Tensor]:
        network.zero_grad()
        network(images)[-1].square().mean().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    plain, shapes = gradients(), []
    products = as_products

    def noted(images: Tensor, *more: Any) -> Tensor:
        shapes.append(tuple(images.shape[1:]))
        return products(images, *more)

    monkeypatch.setattr(smallmaps, "as_products", noted)
    with small_maps(network):
        found = gradients()
    assert (512, 1, 1) in shapes
    assert (256, 2, 2) in shapes
    assert all(height * width <= 64 for _, height, width in shapes)
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
        with pytest.raises(ZeroDivisionError), small_maps(network):
            raise ZeroDivisionError
    assert [type(layer) for layer in network] == [nn.Conv2d, nn.Conv2d]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.ConvTranspose2d(4, 4, 2),
    ],
    ids=str,
)
def test_what_is_no_plain_convolution_is_left_alone(layer: nn.Module) -> None:
    kind = type(layer)
    with small_maps(layer):
        assert type(layer) is kind


@pytest.mark.parametrize(
    ("size", "pictures", "channels", "small"),
    [(1, 1, 8, True), (2, 31, 8, False), (2, 32, 8, True), (3, 128, 8, False),
     (3, 128, 256, True), (3, 127, 256, False), (4, 256, 256, False)],
)  # fmt: skip
def test_products_only_where_they_were_measured_to_be_faster(
    size: int, pictures: int, channels: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def noted(images: Tensor, weight: Tensor, *_: Any) -> Tensor:
        used.append(True)
        return functional.conv2d(images, weight, padding=1)

    monkeypatch.setattr(smallmaps, "as_products", noted)
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    with small_maps(layer), torch.no_grad():
        layer(torch.zeros(pictures, channels, size, size))
    assert bool(used) == small


def test_training_computes_so_and_ends_with_plain_convolutions(tmp_path: Any) -> None:
    seen = set()

    class Convolves(Reconstruct):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, batch: Any) -> dict[str, Tensor]:
            seen.add(type(self.layer))
            return super().forward(batch)

    task = Convolves()
    train(tmp_path, task, steps=2)
    assert seen == {smallmaps._SmallMapConv2d}
    assert type(task.layer) is nn.Conv2d
