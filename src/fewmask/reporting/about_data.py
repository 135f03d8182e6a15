"""What the page says of the data: its classes, and how near the test images are to the others."""

from __future__ import annotations

from fewmask.reporting.folder import StudyFolder


def balance_rows(study: StudyFolder) -> list[dict[str, str]]:
    """A row a class: the masks that hold it, and its share of their pixels; empty where unknown."""
    found = (study.plan.get("data") or {}).get("classes", [])
    return [
        {
            "Class": str(row["name"]),
            "Masks to train on": str(row["masks_rest"]),
            "of their pixels": f"{100 * row['share_rest']:.1f} %",
            "Masks to test on": str(row["masks_test"]),
            "of those pixels": f"{100 * row['share_test']:.1f} %",
        }
        for row in found
    ]


def nearness_rows(study: StudyFolder) -> list[dict[str, str]]:
    """A row a set of pictures: its distance to the test images (KID x 1000) and the interval."""
    found = (study.plan.get("data") or {}).get("nearness", [])
    return [
        {
            "Pictures": str(row["name"]),
            "Distance": f"{1000 * row['kid']:.1f}",
            "95 % interval": f"{1000 * row['low']:.1f} to {1000 * row['high']:.1f}",
        }
        for row in found
    ]
