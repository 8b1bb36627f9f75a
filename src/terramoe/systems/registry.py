"""The registry: one line per published system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import import_module
from typing import Any

from terramoe.errors import ConfigError
from terramoe.systems.base import System
from terramoe.systems.card import Card

SYSTEMS: dict[str, tuple[str, str]] = {  # name on the command line: (module, class)
    "amofe": ("terramoe.systems.amofe", "AMoFE"),
    "cplp-dmoes": ("terramoe.systems.cplp_dmoes", "CPLPDMoEs"),
    "hypertransxnet": ("terramoe.systems.hypertransxnet", "HyperTransXNet"),
    "land-moe": ("terramoe.systems.land_moe", "LandMoE"),
    "mambamoe": ("terramoe.systems.mambamoe", "MambaMoE"),
    "mamol": ("terramoe.systems.mamol", "MaMOL"),
    "mecka": ("terramoe.systems.mecka", "MECKA"),
    "mixturers": ("terramoe.systems.mixturers", "MixtureRS"),
    "spectralx": ("terramoe.systems.spectralx", "SpectralX"),
}


def system_class(name: str) -> type[System]:
    """The class of a system; ConfigError lists the names when there is none."""
    if name not in SYSTEMS:
        raise ConfigError(
            f"there is no system '{name}' over scenes", where="system", fix=f"use one of: {', '.join(SYSTEMS)}"
        )
    module, attribute = SYSTEMS[name]
    return getattr(import_module(module), attribute)


def card(name: str) -> Card:
    """The card of a system."""
    return system_class(name).card


def make_config(name: str, values: Mapping[str, Any]) -> Any:
    """The configuration of a system from plain values, as they stand in a manifest or a YAML file.

    Raises:
        ConfigError: an unknown system, an unknown or missing setting, or a value that the system refuses.
    """
    cls = system_class(name)
    known = {field.name: field for field in fields(cls.Config)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"{name} has no setting {', '.join(unknown)}",
            where="system config",
            fix=f"settings are: {', '.join(known)}",
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return cls.Config(**values)
    except TypeError as error:  # a missing setting, or a value of a type that cannot even be compared
        raise ConfigError(str(error), where=f"system config of {name}", fix="see 'terramoe systems NAME'") from error


def build(name: str, values: Mapping[str, Any]) -> System:
    """A new system from plain values. Raises what ``make_config`` raises."""
    return system_class(name)(make_config(name, values))


def plain_config(system: System) -> dict[str, Any]:
    """The configuration as plain values for JSON or YAML; ``build`` takes it back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(system.config).items()}
