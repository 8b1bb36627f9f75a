"""The registry of the systems that fuse observations of a surface: one line per published system."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from terramoe.errors import ConfigError
from terramoe.systems.surface_system import SurfaceSystem

SURFACE_SYSTEMS: dict[str, tuple[str, str]] = {  # name on the command line: (module, class)
    "aggarwal": ("terramoe.systems.aggarwal", "AggarwalFusion"),
    "nagarajan-slatton": ("terramoe.systems.nagarajan_slatton", "NagarajanSlatton"),
}


def surface_system_class(name: str) -> type[SurfaceSystem]:
    """The class of a system; ConfigError lists the names when there is none."""
    if name not in SURFACE_SYSTEMS:
        raise ConfigError(
            f"there is no surface system '{name}'", where="system", fix=f"use one of: {', '.join(SURFACE_SYSTEMS)}"
        )
    module, attribute = SURFACE_SYSTEMS[name]
    return getattr(import_module(module), attribute)


def build_surface_system(name: str, settings: Mapping[str, Any]) -> SurfaceSystem:
    """An unfitted system. ConfigError for an unknown system or setting."""
    cls = surface_system_class(name)
    known = cls._get_param_names()
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(
            f"{name} has no setting {', '.join(unknown)}",
            where="system config",
            fix=f"settings are: {', '.join(known)}",
        )
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
