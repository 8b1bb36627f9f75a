"""Options that several verbs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from terramoe.data import BENCHMARKS, Scene, indian_pines, load_scene, open_benchmark
from terramoe.data.rasters import MEMORY_GIB
from terramoe.errors import ConfigError, DataError

if TYPE_CHECKING:
    from terramoe.experiments import Plan

INDIAN_PINES = "indian-pines"
WORLD = "world:"


def parser(verb: str, description: str) -> ArgumentParser:
    """An empty parser for ``terramoe VERB``."""
    return ArgumentParser(prog=f"terramoe {verb}", description=description)


IMAGE_HELP = (
    f"GeoTIFF, ENVI, .mat or .npy image, or NAME=FILE,NAME=FILE with one a sensor; or '{INDIAN_PINES}', the scene that "
    f"is installed; or '{WORLD}NAME[:SEED]', a simulated one; or a benchmark in the folder TERRAMOE_DATA: "
    f"{', '.join(BENCHMARKS)}"
)
LABELS_HELP = "label raster on the same grid: 0 unlabelled, 1.. classes"


def add_scene(to: ArgumentParser) -> None:
    """IMAGE, LABELS and how to read them."""
    to.add_argument("image", help=IMAGE_HELP)
    to.add_argument("labels", nargs="?", help=LABELS_HELP)
    _add_reading(to)


def add_data(to: ArgumentParser) -> None:
    """``--data IMAGE [LABELS]`` and how to read them, for verbs whose arguments are something else."""
    to.add_argument("--data", nargs="+", default=[INDIAN_PINES], help=f"{IMAGE_HELP}; then the {LABELS_HELP}")
    _add_reading(to)


def _add_reading(to: ArgumentParser) -> None:
    to.add_argument("--image-variable", help="array of a .mat image")
    to.add_argument("--labels-variable", help="array of a .mat label file")
    to.add_argument("--class-names", help="names of the label values 1, 2, 3 ..., separated by commas")
    to.add_argument("--max-gib", type=float, default=MEMORY_GIB, help="refuse larger images (default: %(default)s)")


def read_scene(options: Namespace) -> Scene:
    """The scene that the options of ``add_scene`` name."""
    return _read(options.image, options.labels, options)


def read_data(options: Namespace) -> Scene:
    """The scene that the options of ``add_data`` name."""
    image, *labels = options.data
    if len(labels) > 1:
        raise DataError(f"{len(labels)} label rasters", where="--data", fix="give an image and one label raster")
    return _read(image, labels[0] if labels else None, options)


def _read(image: str, labels: str | None, options: Namespace) -> Scene:
    if image == INDIAN_PINES and labels is None:
        return indian_pines()
    if image.startswith(WORLD) and labels is None:
        return _simulated(image)
    if image in BENCHMARKS and labels is None:
        return open_benchmark(image)
    if labels is None:
        raise DataError("no labels are given", where=image, fix="name the label raster after the image")
    names = None if options.class_names is None else [name.strip() for name in options.class_names.split(",")]
    return load_scene(
        image,
        labels,
        image_variable=options.image_variable,
        labels_variable=options.labels_variable,
        class_names=names,
        max_gib=options.max_gib,
    )


def _simulated(text: str) -> Scene:
    """The scene of ``world:NAME[:SEED]``."""
    from terramoe.data.worlds import make_world

    name, _, seed = text.removeprefix(WORLD).partition(":")
    if seed and not seed.isdecimal():
        raise DataError(f"'{seed}' is no seed", where=text, fix=f"write {WORLD}NAME or {WORLD}NAME:SEED, such as :3")
    return make_world(name, seed=int(seed or 0)).scene()


def with_split_kind(argv: list[str]) -> list[str]:
    """Lets ``--split block`` stand for ``--split.kind block``."""
    return ["--split.kind" if word == "--split" else word for word in argv]


def plan_of(options: ArgumentParser, chosen: Namespace) -> Plan:
    """The plan that the options of ``add_class_arguments(Plan)`` name."""
    from terramoe.experiments import Plan

    names = Plan.__dataclass_fields__
    return Plan(**{name: value for name, value in vars(options.instantiate(chosen)).items() if name in names})


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers separated by commas. ConfigError if they are none."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"'{text}' is no list of whole numbers", where=option, fix="write such as 1,2,4") from error
