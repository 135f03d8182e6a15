"""The whole way from Python, on a small generated data set: about a minute on two cores.

python examples/python_api.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import fewmask
from fewmask.data.toy import write_toy
from fewmask.pretext import SimCLR


def main(out: Path) -> None:
    """Generate data, check it, pre-train, fine-tune, evaluate, predict, export."""
    data = out / "data"
    write_toy(data, pairs=16, unlabelled=48, size=48)
    found = fewmask.check(pairs=str(data), images=(str(data / "unlabelled"),))
    print(*found.notes, sep="\n")

    encoder = fewmask.pretrain(
        images=str(data / "unlabelled"),
        pretext=SimCLR(temperature=0.2),
        encoder="resnet18",
        size=48,
        batch_size=16,
        steps=6,
        out=str(out / "encoder"),
    )
    print(f"the encoder moved {encoder.moved:.3g} from its start")

    model = fewmask.finetune(
        pairs=str(data),
        init=str(encoder.out),
        encoder="resnet18",
        size=48,
        batch_size=8,
        steps=20,
        out=str(out / "model"),
    )
    print(f"validation IoU {model.val_iou}; {model.transfer}")

    scores = fewmask.evaluate(run=str(model.out), pairs=str(data), out=str(out / "scores"))
    print(f"IoU {scores.dataset['iou']}, {scores.n_seen_in_training} of {scores.n} pairs were seen")

    drawn = fewmask.predict(
        run=str(model.out), paths=(str(data / "unlabelled"),), out=str(out / "predicted")
    )
    print(f"{len(drawn.masks)} masks in {drawn.out / 'masks'}")
    print(fewmask.export(run=str(model.out), out=str(out / "smp"), format="smp"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-run"))
