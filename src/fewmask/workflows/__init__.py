"""pretrain and finetune: the wiring from settings to a finished run folder."""

from fewmask.workflows.finetuning import (
    Prepared,
    finetune,
    mask_options,
    prepare,
    save_run,
    split_of,
    start_model,
    train,
)
from fewmask.workflows.launching import machine_of
from fewmask.workflows.pretraining import pool_facts, pretrain, try_pretraining

__all__ = [
    "Prepared",
    "finetune",
    "machine_of",
    "mask_options",
    "pool_facts",
    "prepare",
    "pretrain",
    "save_run",
    "split_of",
    "start_model",
    "train",
    "try_pretraining",
]
