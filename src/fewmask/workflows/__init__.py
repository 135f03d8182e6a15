"""pretrain and finetune: the wiring from settings to a finished run folder."""

from fewmask.workflows.finetuning import Prepared, finetune, prepare, save_run, start_model, train
from fewmask.workflows.pretraining import pretrain, try_pretraining

__all__ = [
    "Prepared",
    "finetune",
    "prepare",
    "pretrain",
    "save_run",
    "start_model",
    "train",
    "try_pretraining",
]
