"""Colourisation against a critic of patches: pix2pix (Isola et al. 2017).

https://arxiv.org/abs/1611.07004
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fewmask.pretext.colour import errors, over_coloured

AB = 110.0
"""What ab is divided by, to lie within -1..1."""
FIELD = 70 / 256
"""The discriminator's receptive field as a share of the picture's side (Isola)."""


class Discriminator(nn.Module):
    """PatchGAN: (lightness, a, b) [B,3,h,w] of -1..1 -> a logit for each patch, [B,1,h',w'].

    Isola's C64-C128-C256-C512 with instance norm, which is what batch norm is at Isola's batch of
    one. The field of view of a logit is 70 pixels with three halvings, 34 with two, 16 with one:
    the number is chosen so that it comes nearest to Isola's share of the side.
    """

    def __init__(self, side: int, width: int = 64) -> None:
        super().__init__()
        halvings = halvings_for(side)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for i in range(1, halvings + 1):
            before, after = (width * min(2**k, 8) for k in (i - 1, i))
            stride = 2 if i < halvings else 1
            layers += [nn.Conv2d(before, after, 4, stride, 1), nn.InstanceNorm2d(after)]
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*layers, nn.Conv2d(after, 1, 4, 1, 1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0, 0.02)

    def forward(self, pictures: Tensor) -> Tensor:
        """A picture is real where its logits are above 0."""
        logits: Tensor = self.layers(pictures)
        return logits


def halvings_for(side: int) -> int:
    """Halvings, 1 to 3, whose receptive field comes nearest to 70/256 of the side, by ratio."""
    fields = {1: 16, 2: 34, 3: 70}
    wanted = FIELD * side
    return min(fields, key=lambda n: max(fields[n] / wanted, wanted / fields[n]))


class Gan(nn.Module):
    """Colours at half the side -> L1 to the truth, and what a discriminator says of them.

    Half the side is the resolution at which JPEG usually keeps colours. Both sides learn in one
    backward pass and one optimiser's step, where Isola's take turns: the generator's gradient is
    that of the discriminator before its step, not after it. Isola's noise (dropout in the decoder)
    is left out; they saw it change next to nothing.
    """

    stride = 2
    skips = True
    channels = 2

    def __init__(self, side: int, l1_weight: float, width: int) -> None:
        super().__init__()
        self.l1_weight = l1_weight
        self.discriminator = Discriminator(side, width)

    def forward(
        self, output: Tensor, lightness: Tensor, ab: Tensor, coloured: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Output [B,2,h,w], lightness [B,1,h,w], ab [B,2,h,w], coloured [B] -> losses, signals.

        Isola's eq. 4 with -log D(fake) for the generator, and half of eq. 1 for the discriminator.
        """
        fake = self.colours(output)
        grey = lightness / 50 - 1
        painted = torch.cat([grey, fake / AB], 1)
        shown = torch.cat([torch.cat([grey, ab / AB], 1), painted.detach()])
        real_logits, fake_logits = self.discriminator(shown).float().chunk(2)
        held = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, held, painted).float()
        losses = {
            "l1": self.l1_weight * over_coloured((fake - ab).abs() / AB, coloured),
            "adversarial": over_coloured(functional.softplus(-fooled), coloured),
            "discriminator": 0.5 * over_coloured(functional.softplus(-real_logits), coloured)
            + 0.5 * over_coloured(functional.softplus(fake_logits), coloured),
        }
        signals = {
            "real_accuracy": (real_logits.detach() > 0).float().mean(),
            "fake_accuracy": (fake_logits.detach() < 0).float().mean(),
            **errors(fake.detach(), ab, coloured),
        }
        return losses, signals

    def colours(self, output: Tensor) -> Tensor:
        """Output [B,2,h,w] -> ab [B,2,h,w], within -110..110."""
        return AB * output.float().tanh()
