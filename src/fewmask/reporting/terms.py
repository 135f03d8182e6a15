"""What the page's own words mean, beside the measures; docs/verdicts.md tells them at length."""

from __future__ import annotations

OF_DIFFERENCES = {
    "difference": (
        "The arm's IoU minus the baseline's in one repeat: the same labelled images, the same "
        "training seed, the same test images. 1 point is 0.01."
    ),
    "interval": (
        "Of the mean difference, 95 %: what other runs and other test images would change. Two "
        "variances, each with its own Student quantile: that over the paired runs, and that over "
        "the test images' shares in the IoU of the data set (a ratio of sums, linearised)."
    ),
    "verdict": (
        "helped or hurt: no difference is ruled out (p at most 0.05). equivalent: a difference of "
        "the margin or more is ruled out on both sides (two one-sided tests, Schuirmann 1987, at "
        "half of 0.05 each). cannot tell: neither is. Equivalent comes first."
    ),
    "p": (
        "The probability of so large a difference where there is none, corrected for the number of "
        "arms at the budget (Holm 1979) and, where repeats were added after a look, for looking "
        "(one boundary for all looks, as Pocock 1977). Beside equivalent: of a difference of the "
        "margin or more."
    ),
    "to decide": (
        "Further repeats of every arm until a verdict would be reached, if they vary as these do "
        "and the mean stays, with a look after each."
    ),
}
OF_MASKS = {
    "label curve": (
        "IoU against the number of masks: a power law, an exponential and a hyperbola that rise to "
        "a limit, and a logarithm, mixed by how well each fits, and fitted again to what the "
        "repeats might have been. Its band is a 95 % interval over runs, on these test images."
    ),
    "masks needed": (
        "Where an arm's label curve reaches the IoU, with its 95 % interval; refused where the "
        "data carry no answer."
    ),
}
