"""The registry of the systems that answer for rows of a table: one line per published system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from terramoe.systems.estimators import build_estimator, find_class
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
    return find_class(TABLE_SYSTEMS, name, "table")


def build_table_system(name: str, settings: Mapping[str, Any]) -> TableSystem:
    """An unfitted system. ConfigError for an unknown system or setting."""
    return build_estimator(table_system_class(name), name, settings)
