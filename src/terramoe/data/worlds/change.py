"""Change: discs of ground that become another class between two dates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def change_points(
    labels: np.ndarray, count: int, dates: int, into: Sequence[int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Place ``count`` changes.

    Each is a disc of 2 to 5 pixels radius, at one date from the second on, that turns into one class. A pixel changes
    once, and only into another class; so where discs meet, the first stays.

    Args:
        labels: (H, W) classes before. dates: how many there are. into: classes that the ground may become.

    Returns:
        Classes after all changes, and the change map: the index of the first date with the new class, 0 where none.
    """
    after, change = labels.copy(), np.zeros_like(labels)
    rows, columns = np.indices(labels.shape)
    for _ in range(count if dates > 1 else 0):
        row, column = (generator.integers(side) for side in labels.shape)
        radius, date, new = generator.uniform(2, 5), generator.integers(1, dates), generator.choice(into)
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        disc &= (change == 0) & (labels != new)
        after[disc], change[disc] = new, date
    return after, change
