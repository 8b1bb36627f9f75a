"""The registry of the systems that answer for rows of a table: one line per published system."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from terramoe.errors import ConfigError
from terramoe.systems.table_system import TableSystem

TABLE_SYSTEMS: dict[str, tuple[str, str]] = {  # name on the command line: (module, class)
    "jiang": ("terramoe.systems.jiang", "JiangPrecipitation"),
    "kussul": ("terramoe.systems.kussul", "KussulCommittee"),
    "loyola": ("terramoe.systems.loyola", "LoyolaOzone"),
    "meg": ("terramoe.systems.meg", "MEG"),
    "pasika": ("terramoe.systems.pasika", "PasikaCommittee"),
    "pha-moe": ("terramoe.systems.pha_moe", "PhAMoE"),
    "pmmoe": ("terramoe.systems.pmmoe", "PMMoE"),
    "stf-moe": ("terramoe.systems.stf_moe", "STFMoE"),
    "yuksel-gader": ("terramoe.systems.yuksel_gader", "YukselGaderHMM"),
}


def table_system_class(name: str) -> type[TableSystem]:
    """The class of a system; ConfigError lists the names when there is none."""
    if name not in TABLE_SYSTEMS:
        raise ConfigError(
            f"there is no table system '{name}'", where="system", fix=f"use one of: {', '.join(TABLE_SYSTEMS)}"
        )
    module, attribute = TABLE_SYSTEMS[name]
    return getattr(import_module(module), attribute)


def build_table_system(name: str, settings: Mapping[str, Any]) -> TableSystem:
    """An unfitted system. ConfigError for an unknown system or setting."""
    cls = table_system_class(name)
    known = cls._get_param_names()
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(
            f"{name} has no setting {', '.join(unknown)}",
            where="system config",
            fix=f"settings are: {', '.join(known)}",
        )
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
