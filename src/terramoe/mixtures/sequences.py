"""Sequences of different length as one padded array, checked once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from terramoe.errors import RoutingError
from terramoe.mixtures.scaling import FAR, Scaling


@dataclass(frozen=True)
class Sequences:
    """S sequences of D features, padded at the end to the longest, T frames.

    Attributes:
        values: (S, T, D), 0 in the padding.
        lengths: (S,) frames of each sequence, at least 1.
    """

    values: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def present(self) -> np.ndarray:
        """(S, T) bool: frames that are not padding."""
        return np.arange(self.values.shape[1]) < self.lengths[:, None]

    @property
    def frames(self) -> np.ndarray:
        """(sum of lengths, D): all frames, sequence after sequence."""
        return self.values[self.present]

    def scaled(self, scaling: Scaling) -> Sequences:
        """The same sequences standardised by feature."""
        return Sequences(np.where(self.present[:, :, None], scaling.apply(self.values), 0.0), self.lengths)


def read_sequences(sequences: Iterable[np.ndarray], features: int | None = None, where: str = "sequences") -> Sequences:
    """Pad a list of (T_i, D) arrays.

    Args:
        features: the D that is wanted; None takes that of the first sequence.

    Raises:
        RoutingError: no sequence, one that is not (T_i >= 1, D), or a value that is not a finite number below 1e100
            in size. It is a ValueError and names the first sequence concerned.
    """
    fix = "give a list of (T_i, D) arrays of real numbers, with at least one row each and one D for all"
    if isinstance(sequences, (str, bytes, dict)) or not isinstance(sequences, Iterable):
        raise RoutingError(f"sequences are of type {type(sequences).__name__}", where=where, fix=fix)
    arrays = [_as_floats(sequence, f"{where}[{i}]", fix) for i, sequence in enumerate(sequences)]
    if not arrays:
        raise RoutingError("there is no sequence", where=where, fix=fix)
    for i, array in enumerate(arrays):
        width = features if features is not None else arrays[0].shape[-1] if arrays[0].ndim else 0
        if array.ndim != 2 or min(array.shape) < 1 or array.shape[1] != width:
            wanted = f"expected (T >= 1, {width})"
            raise RoutingError(f"shape {array.shape}, {wanted}", where=f"{where}[{i}]", fix=fix)
        bad = ~(np.abs(array) < FAR)  # NaN compares False
        if bad.any():
            what = f"{int(bad.sum())} of {array.size} values are missing, infinite or absurd"
            raise RoutingError(what, where=f"{where}[{i}]", fix="drop or fill these frames first")
    lengths = np.array([len(array) for array in arrays])
    values = np.zeros((len(arrays), lengths.max(), arrays[0].shape[1]))
    for i, array in enumerate(arrays):
        values[i, : len(array)] = array
    return Sequences(values, lengths)


def _as_floats(sequence: object, where: str, fix: str) -> np.ndarray:
    try:
        array = np.asarray(sequence)
        if np.iscomplexobj(array):
            raise TypeError("complex numbers")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise RoutingError(f"not an array of real numbers ({error})", where=where, fix=fix) from error
