"""Random views and paired augmentation of whole batches, on the batch's own device."""

from fewmask.augment.basics import MEAN, STD, normalise, step_generator, to_unit
from fewmask.augment.pairs import PairAugment, augment_pair
from fewmask.augment.views import Views, random_views

__all__ = [
    "MEAN",
    "STD",
    "PairAugment",
    "Views",
    "augment_pair",
    "normalise",
    "random_views",
    "step_generator",
    "to_unit",
]
