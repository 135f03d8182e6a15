"""Probes: what frozen features are worth, by a classifier or a segmentation head on top of them."""

from fewmask.probing.dense import dense_probe, probe_rows
from fewmask.probing.features import frozen_features

__all__ = ["dense_probe", "frozen_features", "probe_rows"]
