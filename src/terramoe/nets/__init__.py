"""Network bodies without routing, each used by two or more systems or too long for a system's file.

``scan`` linear recurrences, ``selective_scan`` Mamba's layer, ``directional`` scans of windows and of channels,
``masked`` normalisation and pooling that leave nodata out, ``fusion`` of feature maps of several resolutions.
"""

from terramoe.nets.directional import DIRECTIONS, DirectionalSSM, SpectralSSM
from terramoe.nets.fusion import TopDownFusion
from terramoe.nets.masked import MaskedGroupNorm, masked_average_pool
from terramoe.nets.scan import linear_recurrence
from terramoe.nets.selective_scan import SelectiveScan

__all__ = [
    "DIRECTIONS",
    "DirectionalSSM",
    "MaskedGroupNorm",
    "SelectiveScan",
    "SpectralSSM",
    "TopDownFusion",
    "linear_recurrence",
    "masked_average_pool",
]
