"""Data: ``rasters`` (safe, by window), ``labels``, ``scenes``, ``splits``, ``audit``, ``normalise``.

``gdal`` and ``arrays`` read the formats. Nothing here knows of models or of torch.
"""

from terramoe.data.audit import SplitAudit, audit_scene, audit_split, baselines
from terramoe.data.labels import read_labels
from terramoe.data.normalise import Normaliser, fit_normaliser
from terramoe.data.rasters import Raster, open_raster, raster_of
from terramoe.data.scenes import Scene, indian_pines, load_scene
from terramoe.data.splits import (
    BlockSplit,
    FieldSplit,
    RandomSplit,
    Split,
    Splitter,
    missing_classes,
    require_all_classes,
)

__all__ = [
    "BlockSplit",
    "FieldSplit",
    "Normaliser",
    "RandomSplit",
    "Raster",
    "Scene",
    "Split",
    "SplitAudit",
    "Splitter",
    "audit_scene",
    "audit_split",
    "baselines",
    "fit_normaliser",
    "indian_pines",
    "load_scene",
    "missing_classes",
    "open_raster",
    "raster_of",
    "read_labels",
    "require_all_classes",
]
