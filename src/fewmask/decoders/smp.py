"""The decoders of segmentation_models_pytorch (smp), by name, with smp's own settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fewmask import encoders


@dataclass(frozen=True)
class _Smp:
    """A decoder of smp's without options."""

    name: ClassVar[str]
    model: ClassVar[str]
    """smp's class."""

    def network(self, encoder: str, n_logits: int) -> nn.Module:
        """smp's network. Raises ValueError where smp refuses the encoder."""
        return built(self.model, encoder, n_logits)


def built(model: str, encoder: str, n_logits: int, **options: Any) -> nn.Module:
    """The class `model` of smp's on an encoder of smp's, timm's or ours, with random weights."""
    import segmentation_models_pytorch as smp

    name = encoders.smp_name(encoder)
    if name == "unet-original":
        raise ValueError("smp's decoders take maps of strides 2 to 32; its maps are of 1 to 16")
    with encoders.registered(name):
        network: nn.Module = getattr(smp, model)(
            encoder_name=name, encoder_weights=None, classes=n_logits, **options
        )
    return network


@dataclass(frozen=True)
class Unet:
    """U-Net's decoder on any encoder."""

    name: ClassVar[str] = "unet"

    upsample: Literal["nearest", "bilinear", "transpose"] | None = None
    """How maps are enlarged: by nearest neighbours (default), bilinear, or by a learned 2x2
    up-convolution that halves the channels, as in the paper."""

    def network(self, encoder: str, n_logits: int) -> nn.Module:
        """smp's U-Net. Raises ValueError where smp refuses the encoder."""
        mode = {"decoder_interpolation": "bilinear"} if self.upsample == "bilinear" else {}
        network = built("Unet", encoder, n_logits, **mode)
        return up_convolved(network) if self.upsample == "transpose" else network


class UpConvolved(nn.Module):
    """A block of smp's U-Net decoder behind a learned up-convolution.

    The map of half the size has the skip's size when it gets to the block, so that the block's
    own interpolation leaves it as it is.
    """

    def __init__(self, before: int, skip: int, after: int) -> None:
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock

        super().__init__()
        self.up = nn.ConvTranspose2d(before, before // 2, 2, stride=2)
        self.block = UnetDecoderBlock(before // 2, skip, after)

    def forward(
        self, x: Tensor, height: int, width: int, skip_connection: Tensor | None = None
    ) -> Tensor:
        merged: Tensor = self.block(self.up(x), height, width, skip_connection=skip_connection)
        return merged


def up_convolved(network: Any) -> nn.Module:
    """smp's U-Net with every block of its decoder exchanged for an `UpConvolved` one."""
    skips = [*network.encoder.out_channels[-2:0:-1], 0]
    before = network.encoder.out_channels[-1]
    for i, block in enumerate(network.decoder.blocks):
        after = block.conv2[0].out_channels
        network.decoder.blocks[i] = UpConvolved(before, skips[i], after)
        before = after
    network.initialize()
    return network  # type: ignore[no-any-return]


@dataclass(frozen=True)
class UnetPlusPlus(_Smp):
    """U-Net++ (Zhou et al. 2018, arXiv:1807.10165)."""

    name: ClassVar[str] = "unetplusplus"
    model: ClassVar[str] = "UnetPlusPlus"

    def network(self, encoder: str, n_logits: int) -> nn.Module:
        """smp's network. Raises ValueError where smp refuses the encoder."""
        return freeze_unused(super().network(encoder, n_logits))  # a centre block on VGG


@dataclass(frozen=True)
class FPN(_Smp):
    """Feature pyramid (Kirillov et al. 2019, arXiv:1901.02446)."""

    name: ClassVar[str] = "fpn"
    model: ClassVar[str] = "FPN"


@dataclass(frozen=True)
class PSPNet(_Smp):
    """Pyramid pooling (Zhao et al. 2017, arXiv:1612.01105), on the encoder down to stride 8."""

    name: ClassVar[str] = "pspnet"
    model: ClassVar[str] = "PSPNet"

    def network(self, encoder: str, n_logits: int) -> nn.Module:
        """smp's network. Raises ValueError where smp refuses the encoder."""
        return freeze_unused(super().network(encoder, n_logits))  # the stages below stride 8


def freeze_unused(network: nn.Module) -> nn.Module:
    """No training for parameters that the logits don't depend on; returns the network.

    smp builds some parts that it then leaves out. Several processes would wait for the gradients
    of these for ever.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    network.eval()
    logits = network(torch.zeros(1, 3, 64, 64))
    found = torch.autograd.grad(logits.sum(), trained, allow_unused=True)
    network.train()
    for parameter, gradient in zip(trained, found, strict=True):
        parameter.requires_grad_(gradient is not None)
    return network


@dataclass(frozen=True)
class DeepLabV3(_Smp):
    """DeepLabV3 (Chen et al. 2017, arXiv:1706.05587), on the encoder dilated to stride 8."""

    name: ClassVar[str] = "deeplabv3"
    model: ClassVar[str] = "DeepLabV3"


@dataclass(frozen=True)
class DeepLabV3Plus(_Smp):
    """DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611), on the encoder dilated to stride 16."""

    name: ClassVar[str] = "deeplabv3plus"
    model: ClassVar[str] = "DeepLabV3Plus"


@dataclass(frozen=True)
class Linknet(_Smp):
    """LinkNet (Chaurasia & Culurciello 2017, arXiv:1707.03718)."""

    name: ClassVar[str] = "linknet"
    model: ClassVar[str] = "Linknet"


@dataclass(frozen=True)
class MAnet(_Smp):
    """MA-Net (Fan et al. 2020, doi:10.1109/ACCESS.2020.3025372)."""

    name: ClassVar[str] = "manet"
    model: ClassVar[str] = "MAnet"


@dataclass(frozen=True)
class PAN(_Smp):
    """Pyramid attention (Li et al. 2018, arXiv:1805.10180), on the encoder dilated to stride 16."""

    name: ClassVar[str] = "pan"
    model: ClassVar[str] = "PAN"


@dataclass(frozen=True)
class Segformer(_Smp):
    """SegFormer's decoder (Xie et al. 2021, arXiv:2105.15203)."""

    name: ClassVar[str] = "segformer"
    model: ClassVar[str] = "Segformer"


@dataclass(frozen=True)
class UPerNet(_Smp):
    """UPerNet (Xiao et al. 2018, arXiv:1807.10221)."""

    name: ClassVar[str] = "upernet"
    model: ClassVar[str] = "UPerNet"
