"""Colourisation as classification (Zhang et al. 2016, https://arxiv.org/abs/1603.08511)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewmask.distributed import gather_rows
from fewmask.pretext.colour import BIN, SMALLEST, ab_bins, errors, over_coloured

SIGMA = 5.0
"""Of the soft encoding's and of the prior's Gaussian, in Lab units (Zhang)."""
NEAREST = 5
"""Bins that the soft encoding spreads a colour over (Zhang)."""
CANDIDATES = 12  # the 5 bins nearest to a colour are among the 9 nearest to its own bin's centre


class Bins(nn.Module):
    """Logits over the 313 bins of ab at a quarter of the side -> rebalanced cross-entropy.

    Zhang's prior of the colours is ImageNet's. This one is the pool's, counted as it goes by: the
    bins of all pixels of all coloured pictures seen so far, this step's included, on all processes.
    """

    stride = 4
    skips = False
    counts: Tensor
    """int64 [313]: pixels seen of each bin; begins at one each, so that no share is zero."""
    centres: Tensor
    table: Tensor
    """int64 [25,25]: the bin nearest to each point of the grid of multiples of 10."""
    candidates: Tensor
    """int64 [313,12]: the bins nearest to each bin."""
    kernel: Tensor
    """[313,313]: what smooths the prior; rows add up to 1."""

    def __init__(self, prior_mix: float, temperature: float) -> None:
        super().__init__()
        self.prior_mix, self.temperature = prior_mix, temperature
        centres = ab_bins()
        self.channels = len(centres)
        line = torch.arange(SMALLEST, -SMALLEST + 1, BIN)
        grid = torch.cartesian_prod(line, line)
        between = torch.cdist(centres, centres)
        self.register_buffer("counts", torch.ones(len(centres), dtype=torch.int64))
        for name, value in {
            "centres": centres,
            "table": torch.cdist(grid, centres).argmin(1).view(len(line), len(line)),
            "candidates": between.topk(CANDIDATES, largest=False).indices,
            "kernel": gaussian(between.square()),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, output: Tensor, lightness: Tensor, ab: Tensor, coloured: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits [B,313,h,w], ab [B,2,h,w], coloured [B] -> losses, signals.

        The loss is Zhang's eq. 2, the mean over pixels in place of their sum.
        """
        with torch.autocast(output.device.type, enabled=False):
            n, _, height, width = output.shape
            log_p = output.float().permute(0, 2, 3, 1).reshape(-1, self.channels).log_softmax(1)
            bins, shares = self.encode(ab.permute(0, 2, 3, 1).reshape(-1, 2))
            true = bins[:, 0]
            if self.training:
                self.count(true.view(n, -1), coloured)
            prior, weights = self.rebalancing()
            loss = -(shares * log_p.gather(1, bins)).sum(1) * weights[true]
            # A quarter of the pixels is enough to measure on.
            log_p = log_p.detach().view(n, height, width, -1)[:, ::2, ::2]
            true = true.view(n, height, width)[:, ::2, ::2]
            signals = self.measure(log_p, true, ab[:, :, ::2, ::2], coloured, prior, weights)
            return {"cross_entropy": over_coloured(loss.view(n, -1), coloured)}, signals

    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Colours [N,2] -> their 5 nearest bins, the nearest first, and the bins' shares, [N,5].

        The shares are a Gaussian of the distances, scaled to add up to 1 (Zhang, sec. 2.1).
        """
        last = len(self.table) - 1
        a, b = ((ab - SMALLEST) / BIN).round().long().clamp(0, last).unbind(1)
        among = self.candidates[self.table[a, b]]
        squares = (ab[:, None] - self.centres[among]).square().sum(2)
        squares, chosen = squares.topk(NEAREST, dim=1, largest=False)
        return among.gather(1, chosen), gaussian(squares)

    @torch.no_grad()
    def count(self, true: Tensor, coloured: Tensor) -> None:
        """Add the bins [B,N] of the coloured pictures of all processes to the counts."""
        ones = coloured.long()[:, None].expand_as(true)
        found = torch.zeros_like(self.counts).scatter_add_(0, true.flatten(), ones.flatten())
        self.counts += gather_rows(found[None]).sum(0)

    def rebalancing(self) -> tuple[Tensor, Tensor]:
        """The smoothed prior p of the bins and their weights w, [313] (Zhang, eq. 4).

        w is proportional to 1 / ((1 - m) p + m / 313), m the share of the uniform distribution
        that is mixed in, and has a mean of 1 over p.
        """
        prior = (self.counts / self.counts.sum()) @ self.kernel
        weights = 1 / ((1 - self.prior_mix) * prior + self.prior_mix / self.channels)
        return prior, weights / (prior * weights).sum()

    @torch.no_grad()
    def measure(
        self,
        log_p: Tensor,
        true: Tensor,
        ab: Tensor,
        coloured: Tensor,
        prior: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        """Accuracy and error of log-probabilities [B,h,w,313], and those of constant answers.

        `accuracy`: the share of pixels, each counted by its bin's weight as the loss does, whose
        bin is among the five likeliest; `constant_accuracy`: of the five bins best for all. The
        error is of the mean colour with the rebalancing taken out again, since the rebalanced
        answer is more colourful than the likely one by intent.
        """
        counted = weights[true] * coloured[:, None, None]
        likelier = (log_p > log_p.gather(3, true[..., None])).sum(3)
        best = torch.zeros_like(prior).scatter_(0, (prior * weights).topk(NEAREST).indices, 1.0)
        right = torch.stack([(likelier < NEAREST).float(), best[true]])
        accuracy, constant = (right * counted).sum((1, 2, 3)) / counted.sum().clamp(min=1e-9)
        mean = (log_p - weights.log()).softmax(3) @ self.centres
        found = errors(mean.permute(0, 3, 1, 2), ab, coloured)
        return {"accuracy": accuracy, "constant_accuracy": constant, **found}

    def colours(self, output: Tensor) -> Tensor:
        """Logits [B,313,h,w] -> ab [B,2,h,w]: the annealed mean (Zhang, eq. 5)."""
        sharper = (output.float() / self.temperature).softmax(1)
        return torch.einsum("bqhw,qc->bchw", sharper, self.centres)


def gaussian(squares: Tensor) -> Tensor:
    """Squared distances [...,N] -> the Gaussian of them, scaled to add up to 1 over N."""
    return (squares / (-2 * SIGMA**2)).softmax(-1)
