"""The registry of the systems that fuse observations of a surface: one line per published system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from terramoe.systems.estimators import build_estimator, find_class
from terramoe.systems.surface_system import SurfaceSystem

SURFACE_SYSTEMS: dict[str, tuple[str, str]] = {  # name on the command line: (module, class)
    "aggarwal": ("terramoe.systems.aggarwal", "AggarwalFusion"),
    "nagarajan-slatton": ("terramoe.systems.nagarajan_slatton", "NagarajanSlatton"),
}


def surface_system_class(name: str) -> type[SurfaceSystem]:
    """The class of a system; ConfigError lists the names when there is none."""
    return find_class(SURFACE_SYSTEMS, name, "surface")


def build_surface_system(name: str, settings: Mapping[str, Any]) -> SurfaceSystem:
    """An unfitted system. ConfigError for an unknown system or setting."""
    return build_estimator(surface_system_class(name), name, settings)
