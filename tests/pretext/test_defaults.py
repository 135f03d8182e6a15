"""The defaults are the papers', where docs/methods.md says so; and the shared measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewmask import encoders
from fewmask.pretext import PRETEXTS, Pool
from fewmask.pretext.contract import effective_rank

PAPERS = [
    # Chen et al. 2020, appendix A: jitter 0.8, grey 0.2, blur 0.5, flip 0.5
    ("simclr", {"views.jitter": 0.8, "views.grey": 0.2, "views.blur": 0.5, "views.flip": 0.5}),
    # Wang et al. 2021, sec. 4.1: lambda 0.5, temperature 0.2, 7 x 7 parts, 128 dimensions
    ("densecl", {"dense_weight": 0.5, "temperature": 0.2, "grid": 7, "projection": 128}),
    # Grill et al. 2020: 256 dimensions
    ("byol", {"projection": 256}),
    # Caron et al. 2021: 8 local crops of 0.05 to 0.4, temperatures 0.1 and 0.04 to 0.07
    ("dino", {"local_crops": 8, "local_min": 0.05, "local_max": 0.4, "temperature": 0.1,
              "teacher_start": 0.04, "teacher_temperature": 0.07, "hidden": (2048, 2048)}),
    # Tian et al. 2023: 60 % hidden, views from 0.67 of the area
    ("masked", {"mask_ratio": 0.6, "crop_min": 0.67}),
    # Zhang et al. 2016: lambda 1/2, T = 0.38; Isola et al. 2017: L1 with 100, 64 channels
    ("colorize", {"prior_mix": 0.5, "temperature": 0.38, "l1_weight": 100, "discriminator": 64}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values"), PAPERS)
def test_defaults_are_the_papers(name: str, values: dict[str, Any]) -> None:
    component = PRETEXTS[name]()
    for path, value in values.items():
        found = component
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path


def test_simclr_s_head_has_a_hidden_layer_as_wide_as_the_features() -> None:
    task = PRETEXTS["simclr"]().task(encoders.build("resnet18"), 32, Pool())
    layers = [m for m in task.head if isinstance(m, nn.Linear)]  # type: ignore[attr-defined]
    assert [(m.in_features, m.out_features) for m in layers] == [(512, 512), (512, 128)]


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values() -> None:
    features = torch.randn(30, 6) * torch.tensor([5.0, 3, 1, 1, 0.1, 0])
    values = np.linalg.svd((features - features.mean(0)).double().numpy(), compute_uv=False)
    entropy = -sum(v / values.sum() * np.log(v / values.sum()) for v in values if v > 1e-9)
    assert effective_rank(features).item() == pytest.approx(np.exp(entropy), rel=1e-5)
    assert effective_rank(torch.ones(10, 4)).item() == pytest.approx(1)
