"""The errors of TerraMoE.

Each says three things in one line: what is wrong, where, and how to mend it. The command line prints that line
and ends with exit code 2; a library user catches ``TerraMoEError`` or the narrower kind.
"""

from __future__ import annotations


class TerraMoEError(Exception):
    """Base of all errors that a user can mend.

    Args:
        what: what is wrong, as a short sentence without a full stop.
        where: the file, band, window, option or part concerned.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: object = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, str(where), fix
        place = f" [{where}]" if str(where) else ""
        mend = f". Fix: {fix}" if fix else ""
        super().__init__(" ".join(f"{what}{place}{mend}".split()))  # one line, whatever the parts held


class ConfigError(TerraMoEError):
    """A setting that cannot be: an unknown name, a value out of range, two settings that exclude each other."""


class DataError(TerraMoEError):
    """A raster, scene or label array that cannot be read or does not fit."""


class SplitError(TerraMoEError):
    """A split that would leave a class, a fold or a region empty."""


class ModelFileError(TerraMoEError):
    """A model, state or run file that is missing, damaged, of another version, or not ours."""


class RoutingError(TerraMoEError, ValueError):
    """A routing part that got something it cannot route: wrong widths, k above E, a missing key."""
