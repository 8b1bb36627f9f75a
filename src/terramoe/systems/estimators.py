"""Systems that keep scikit-learn's interface, found by name and built from plain settings."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from sklearn.base import BaseEstimator

from terramoe.errors import ConfigError


def find_class(registry: Mapping[str, tuple[str, str]], name: str, kind: str) -> type:
    """The class of a system of a registry, name -> (module, class); ConfigError lists the names when there is none."""
    if name not in registry:
        raise ConfigError(
            f"there is no {kind} system '{name}'", where="system", fix=f"use one of: {', '.join(registry)}"
        )
    module, attribute = registry[name]
    return getattr(import_module(module), attribute)


def build_estimator(cls: type[BaseEstimator], name: str, settings: Mapping[str, Any]) -> Any:
    """An unfitted system; lists, as a file has them, become tuples. ConfigError for an unknown setting."""
    known = cls._get_param_names()
    unknown = sorted(set(settings) - set(known))
    if unknown:
        fix = f"settings are: {', '.join(known)}"
        raise ConfigError(f"{name} has no setting {', '.join(unknown)}", where="system config", fix=fix)
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
