"""What each sensor of a patch shows, where several stand in one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terramoe.errors import DataError
from terramoe.nets.patches import Patches


def split_sensors(patches: Patches, bands: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Patches of all bands -> for each sensor its values (N, C_s, p, p) and what it sees (N, p, p) bool.

    A sensor that the patch's own pixel lacks sees nothing of the patch; values are 0 where nothing is seen, whatever
    stood there.

    Args:
        patches: of S sensors, one after the other.
        bands: bands of each sensor, C_s.

    Raises:
        DataError: another number of bands, or of sensors in ``patches.present``.
    """
    if patches.values.shape[1] != sum(bands):
        raise DataError(
            f"{patches.values.shape[1]} bands, expected {' + '.join(map(str, bands))}",
            where="split_sensors",
            fix="give the bands of all sensors, in the order of the model's",
        )
    if patches.present is not None and patches.present.shape[1] != len(bands):
        raise DataError(
            f"presence of {patches.present.shape[1]} sensors, expected {len(bands)}",
            where="split_sensors",
            fix="give 'available' one layer for each sensor",
        )
    found = []
    for number, values in enumerate(patches.values.split(list(bands), dim=1)):
        seen = patches.valid
        if patches.present is not None:
            seen = seen & patches.present[:, number, None, None]
            values = torch.where(seen[:, None], values, 0)
        found.append((values, seen))
    return found
