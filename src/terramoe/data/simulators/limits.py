"""Checks that all laws share: a quantity that is no number, or outside what the law holds for, ends in our error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from terramoe.errors import ConfigError


def between(values: ArrayLike, low: float, high: float, name: str, where: str) -> np.ndarray:
    """``values`` as float64; ConfigError unless all are finite and in [low, high]."""
    array = _numbers(values, name, where)
    if not ((array >= low) & (array <= high)).all():
        raise ConfigError(f"{name} outside {low:g}..{high:g}", where=where, fix=f"got {_range(array)}")
    return array


def positive(values: ArrayLike, name: str, where: str) -> np.ndarray:
    """``values`` as float64; ConfigError unless all are finite and above 0."""
    array = _numbers(values, name, where)
    if not (array > 0).all():
        raise ConfigError(f"{name} not above 0", where=where, fix=f"got {_range(array)}")
    return array


def count(value: int, name: str, where: str, low: int = 1) -> int:
    """ConfigError unless ``value`` is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ConfigError(f"{name} {value}", where=where, fix=f"use a whole number of at least {low}")
    return int(value)


def choice(name: str, table: dict, kind: str, where: str) -> object:
    """The entry ``name`` of ``table``; ConfigError with all names if there is none."""
    if name not in table:
        raise ConfigError(f"unknown {kind} '{name}'", where=where, fix=f"use one of {', '.join(table)}")
    return table[name]


def _numbers(values: ArrayLike, name: str, where: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is no array of real numbers", where=where, fix="use numbers") from error
    if array.size == 0 or not np.isfinite(array).all():
        raise ConfigError(f"{name} is empty or not finite", where=where, fix="use finite numbers")
    return array


def _range(array: np.ndarray) -> str:
    return f"{array.min():g}" if array.size == 1 else f"{array.min():g}..{array.max():g}"
