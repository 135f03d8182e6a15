"""The settings of every command: the flags, the configuration files and the Python arguments.

One frozen dataclass a command. The strings under the fields become the help texts. A field whose
default is None takes its value from the recipe or from the data, as its text says.
"""

from fewmask.settings.base import (
    RANGES,
    Machine,
    MaskFlags,
    Reading,
    Settings,
    TrainingMachine,
)
from fewmask.settings.comparing import (
    ProbeSettings,
    SimilaritySettings,
    Suggesting,
    SuggestSettings,
)
from fewmask.settings.studying import (
    DemoSettings,
    ReportSettings,
    RerunSettings,
    StudySettings,
)
from fewmask.settings.training import (
    NOT_WHAT_IS_COMPUTED,
    PRETRAIN_EPOCHS,
    RECIPES,
    WATCHING,
    WEIGHTINGS,
    FinetuneSettings,
    Keep,
    Loss,
    Optimizer,
    PretrainSettings,
    Schedule,
    numbers,
)
from fewmask.settings.using import (
    CheckSettings,
    EngineName,
    EvaluateSettings,
    ExportSettings,
    Format,
    PredictSettings,
)

__all__ = [
    "NOT_WHAT_IS_COMPUTED", "PRETRAIN_EPOCHS", "RANGES", "RECIPES", "WATCHING", "WEIGHTINGS",
    "CheckSettings",
    "DemoSettings", "EngineName", "EvaluateSettings", "ExportSettings", "FinetuneSettings",
    "Format", "Keep", "Loss", "Machine", "MaskFlags", "Optimizer", "PredictSettings",
    "PretrainSettings", "ProbeSettings", "Reading", "ReportSettings", "RerunSettings", "Schedule",
    "Settings", "SimilaritySettings", "StudySettings", "SuggestSettings", "Suggesting",
    "TrainingMachine", "numbers",
]  # fmt: skip
