"""Training: ``settings``, ``crops`` and ``patches`` (the order of the data), ``state`` (what is saved), ``loop``."""

from terramoe.training.crops import SceneCrops, batch_seed
from terramoe.training.loop import History, fit
from terramoe.training.patches import ScenePatches
from terramoe.training.settings import TrainSettings

__all__ = ["History", "SceneCrops", "ScenePatches", "TrainSettings", "batch_seed", "fit"]
