"""Training: ``settings``, ``crops`` (the data order), ``state`` (what is saved), ``loop`` (the loop itself)."""

from terramoe.training.crops import SceneCrops, batch_seed
from terramoe.training.loop import History, fit
from terramoe.training.settings import TrainSettings

__all__ = ["History", "SceneCrops", "TrainSettings", "batch_seed", "fit"]
