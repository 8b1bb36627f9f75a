"""Data: ``rasters`` (safe, by window), ``labels``, ``scenes``, ``splits``, ``audit``, ``normalise``; several sensors:
``sensor_stack`` and ``regrid``; tables of points: ``point_table`` and ``audit_table``; rows to predict from:
``read_rows`` and ``row_table``; surfaces of several sensors: ``surfaces``.

``gdal`` and ``arrays`` read the formats. ``worlds`` simulates places, ``simulators`` single laws of physics. Nothing
here knows of models or of torch.
"""

from terramoe.data.audit import SplitAudit, audit_scene, audit_split, baselines, distances_of
from terramoe.data.audit_table import TableAudit, audit_table
from terramoe.data.benchmarks import BENCHMARKS, open_benchmark
from terramoe.data.labels import read_labels
from terramoe.data.normalise import Normaliser, fit_normaliser
from terramoe.data.point_table import PointTable, read_points
from terramoe.data.rasters import Raster, open_raster, raster_of
from terramoe.data.scenes import Scene, indian_pines, load_scene
from terramoe.data.sensor_stack import Sensors, open_stack, sensor_files
from terramoe.data.splits import (
    BlockSplit,
    FieldSplit,
    GroupSplit,
    KNNDMSplit,
    LabelledPixels,
    LeaveGroupOut,
    OfficialSplit,
    PointBlockSplit,
    PointKNNDM,
    RandomSplit,
    Split,
    Splitter,
    autocorrelation_range,
    missing_classes,
    require_all_classes,
)

__all__ = [
    "BENCHMARKS",
    "BlockSplit",
    "FieldSplit",
    "GroupSplit",
    "KNNDMSplit",
    "LabelledPixels",
    "LeaveGroupOut",
    "Normaliser",
    "OfficialSplit",
    "PointBlockSplit",
    "PointKNNDM",
    "PointTable",
    "RandomSplit",
    "Raster",
    "Scene",
    "Sensors",
    "Split",
    "SplitAudit",
    "Splitter",
    "TableAudit",
    "audit_scene",
    "audit_split",
    "audit_table",
    "autocorrelation_range",
    "baselines",
    "distances_of",
    "fit_normaliser",
    "indian_pines",
    "load_scene",
    "missing_classes",
    "open_benchmark",
    "open_raster",
    "open_stack",
    "raster_of",
    "read_labels",
    "read_points",
    "require_all_classes",
    "sensor_files",
]
