"""Which reader a command needs: a scene's, a table's or that of surfaces. The system says, or the model on disk."""

from __future__ import annotations

from pathlib import Path

from terramoe.data.point_table import is_table
from terramoe.errors import ConfigError
from terramoe.experiments import simulated_surfaces
from terramoe.experiments.simulated_tables import PREFIX
from terramoe.storage import is_estimator
from terramoe.systems.catalogue import Kind, kind_of_system
from terramoe.systems.surface_registry import SURFACE_SYSTEMS
from terramoe.systems.table_registry import TABLE_SYSTEMS


def kind_in(argv: list[str]) -> Kind:
    """What the system works on that ``--system NAME``, or the file after ``--config``, names.

    Raises:
        ConfigError: there is no such system, or a table or a simulated surface without a system that works on it.
    """
    name = _after(argv, "--system")
    config = _after(argv, "--config")
    if name is None and config is not None and Path(config).is_file():
        name = _named_in(Path(config))
    if name is None:
        for what, given, systems in (
            ("a table needs a system that works on rows", _is_table, TABLE_SYSTEMS),
            ("a simulated surface needs a system that works on surfaces", _is_surface, SURFACE_SYSTEMS),
        ):
            if any(map(given, argv)):
                raise ConfigError(what, where="fit", fix=f"add --system with {', '.join(systems)}")
    return "scenes" if name is None else kind_of_system(name)


def kind_of_model(argv: list[str]) -> Kind:
    """What the model works on that is the first argument; a model that cannot be told is left to the scene's reader."""
    paths = [word for word in argv if not word.startswith("-")]
    if not paths or not is_estimator(paths[0]):
        return "scenes"
    from terramoe.storage import load_manifest

    return kind_of_system(load_manifest(paths[0])["system"])


def _is_table(word: str) -> bool:
    return is_table(word) or word.startswith(PREFIX)


def _is_surface(word: str) -> bool:
    return word.startswith(simulated_surfaces.PREFIX)


def _after(argv: list[str], option: str) -> str | None:
    """Value of ``--option VALUE`` or ``--option=VALUE``; the last one counts."""
    found = None
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _named_in(path: Path) -> str | None:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # the parser will say what is wrong
    return values.get("system") if isinstance(values, dict) else None
