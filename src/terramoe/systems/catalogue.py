"""All published systems together, whatever they work on: scenes, rows of a table, or surfaces."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any, Literal

from terramoe.errors import ConfigError
from terramoe.systems.card import Card
from terramoe.systems.registry import SYSTEMS, system_class
from terramoe.systems.surface_registry import SURFACE_SYSTEMS, surface_system_class
from terramoe.systems.table_registry import TABLE_SYSTEMS, table_system_class

Kind = Literal["scenes", "rows", "surfaces"]
_CLASSES = {"scenes": system_class, "rows": table_system_class, "surfaces": surface_system_class}
FROM_DATA = "from the data"


def catalogue() -> dict[str, Kind]:
    """Every system by name, in the order of the alphabet, and what it works on."""
    kinds: dict[str, Kind] = dict.fromkeys(SYSTEMS, "scenes")
    kinds |= dict.fromkeys(TABLE_SYSTEMS, "rows") | dict.fromkeys(SURFACE_SYSTEMS, "surfaces")
    return dict(sorted(kinds.items()))


def kind_of_system(name: str) -> Kind:
    """What a system works on; ConfigError lists the names when there is none."""
    found = catalogue()
    if name not in found:
        raise ConfigError(f"there is no system '{name}'", where="system", fix=f"use one of: {', '.join(found)}")
    return found[name]


def class_of(name: str) -> type:
    """The class of any system."""
    return _CLASSES[kind_of_system(name)](name)


def card_of(name: str) -> Card:
    """The card of any system."""
    return class_of(name).card


def settings_of(name: str) -> dict[str, Any]:
    """The settings of any system and their defaults; ``FROM_DATA`` where the data give them."""
    cls = class_of(name)
    if kind_of_system(name) == "scenes":
        return {f.name: FROM_DATA if f.default is MISSING else f.default for f in fields(cls.Config)}
    parameters = inspect.signature(cls.__init__).parameters.values()
    found = {p.name: FROM_DATA if p.default is p.empty else p.default for p in parameters if p.name != "self"}
    return {key: value for key, value in found.items() if key != "random_state"}
