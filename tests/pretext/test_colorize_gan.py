"""pix2pix: the discriminator's shape, and whose loss moves whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fewmask.pretext.colorize_gan import Discriminator, Gan, halvings_for
from fewmask.pretext.colour import rgb_to_lab


def receptive_field(discriminator: Discriminator, side: int) -> int:
    """Pixels along a side that one logit in the middle depends on."""
    picture = torch.zeros(1, 3, side, side, requires_grad=True)
    layers = [m for m in discriminator.layers if not isinstance(m, nn.InstanceNorm2d)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1.0)
            nn.init.zeros_(layer.get_parameter("bias"))
    logits = nn.Sequential(*layers)(picture)
    middle = logits.shape[2] // 2
    logits[0, 0, middle, middle].backward()
    assert picture.grad is not None
    return int((picture.grad[0, 0] != 0).any(0).sum())


@pytest.mark.parametrize(
    ("side", "halvings", "field"),
    [(256, 3, 70), (192, 3, 70), (128, 2, 34), (112, 2, 34), (64, 1, 16), (32, 1, 16)],
)
def test_the_discriminators_field_of_view_is_isolas_share_of_the_side(
    side: int, halvings: int, field: int
) -> None:
    assert halvings_for(side) == halvings
    assert receptive_field(Discriminator(side, 4), 160) == field


def test_the_widest_discriminator_has_isolas_layers() -> None:
    convolutions = [m for m in Discriminator(256).layers if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    assert [m.stride[0] for m in convolutions] == [2, 2, 2, 1, 1]
    assert {m.kernel_size for m in convolutions} == {(4, 4)}


def gan_case() -> tuple[Gan, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    gan = Gan(24, l1_weight=100.0, width=4)
    generator = torch.Generator().manual_seed(0)
    lab = rgb_to_lab(torch.rand(3, 3, 24, 24, generator=generator))
    output = torch.randn(3, 2, 24, 24, generator=generator).requires_grad_()
    return gan, output, lab[:, :1], lab[:, 1:], torch.tensor([1.0, 0.0, 1.0])


def test_the_gans_losses_are_isolas() -> None:
    gan, output, lightness, ab, coloured = gan_case()
    losses, signals = gan(output, lightness, ab, coloured)
    l1, adversarial, real_loss, fake_loss = [], [], [], []
    for i in (0, 2):
        fake = output[i].tanh()
        l1.append((fake - ab[i] / 110).abs().mean().item())
        grey = lightness[i] / 50 - 1
        of_fake = gan.discriminator(torch.cat([grey, fake])[None]).sigmoid()
        of_real = gan.discriminator(torch.cat([grey, ab[i] / 110])[None]).sigmoid()
        adversarial.append(-of_fake.log().mean().item())
        real_loss.append(-of_real.log().mean().item())
        fake_loss.append(-(1 - of_fake).log().mean().item())
    assert losses["l1"].item() == pytest.approx(100 * sum(l1) / 3, rel=1e-4)
    assert losses["adversarial"].item() == pytest.approx(sum(adversarial) / 3, rel=1e-4)
    expected = 0.5 * (sum(real_loss) + sum(fake_loss)) / 3
    assert losses["discriminator"].item() == pytest.approx(expected, rel=1e-4)
    assert 0 <= signals["real_accuracy"] <= 1
    assert 0 <= signals["fake_accuracy"] <= 1


def test_each_side_of_the_gan_learns_from_its_own_loss_alone() -> None:
    def gradients(*names: str) -> tuple[Tensor | None, Tensor | None]:
        gan, output, lightness, ab, coloured = gan_case()
        losses, _ = gan(output, lightness, ab, coloured)
        torch.stack([losses[name] for name in names]).sum().backward()
        first = gan.discriminator.layers[0].weight
        return output.grad, first.grad  # type: ignore[return-value]

    painter, critic = gradients("adversarial")
    assert painter is not None
    assert painter.abs().sum() > 0
    assert critic is None
    painter, critic = gradients("discriminator")
    assert painter is None
    together = gradients("l1", "adversarial", "discriminator")
    assert torch.equal(together[1], critic)  # type: ignore[arg-type]
