"""The packaged plan of graded pools: enough of them, and alike but for their pictures."""

from __future__ import annotations

from dataclasses import replace

from fewmask.data.parts import split
from fewmask.settings import StudySettings
from fewmask.studies.grid import load_plan


def test_the_pools_are_graded_and_pre_trained_alike() -> None:
    plan = load_plan(StudySettings(plan="similarity", out="o"))
    pretrained = [arm.pretrain for arm in plan.arms if arm.pretrain is not None]
    assert plan.baseline == "scratch"
    assert min(plan.repeats.values()) >= 3
    sources = {settings.images for settings in pretrained}
    assert len(sources) == len(pretrained) >= 12
    assert len({str(replace(settings, images="x")) for settings in pretrained}) == 1
    numbers = {sum(part.n or 0 for part in split(settings.images)) for settings in pretrained}
    assert numbers == {500, 2000, 8000}
    assert {part.side for s in sources for part in split(s) if "cats-vs-dogs" in part.src} == {
        16, 32, 64,
    }  # fmt: skip
