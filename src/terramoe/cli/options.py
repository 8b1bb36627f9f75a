"""Options that several verbs share."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from terramoe.data import Scene, indian_pines, load_scene
from terramoe.data.rasters import MEMORY_GIB
from terramoe.errors import DataError

INDIAN_PINES = "indian-pines"


def parser(verb: str, description: str) -> ArgumentParser:
    """An empty parser for ``terramoe VERB``."""
    return ArgumentParser(prog=f"terramoe {verb}", description=description)


def add_scene(to: ArgumentParser) -> None:
    """IMAGE, LABELS and how to read them."""
    to.add_argument(
        "image", help=f"GeoTIFF, ENVI, .mat or .npy image; or '{INDIAN_PINES}', the scene that is installed"
    )
    to.add_argument("labels", nargs="?", help="label raster on the same grid: 0 unlabelled, 1.. classes")
    to.add_argument("--image-variable", help="array of a .mat image")
    to.add_argument("--labels-variable", help="array of a .mat label file")
    to.add_argument("--class-names", help="names of the label values 1, 2, 3 ..., separated by commas")
    to.add_argument("--max-gib", type=float, default=MEMORY_GIB, help="refuse larger images (default: %(default)s)")


def read_scene(options: Namespace) -> Scene:
    """The scene that the options of ``add_scene`` name."""
    if options.image == INDIAN_PINES and options.labels is None:
        return indian_pines()
    if options.labels is None:
        raise DataError("no labels are given", where=options.image, fix="name the label raster after the image")
    names = None if options.class_names is None else [name.strip() for name in options.class_names.split(",")]
    return load_scene(
        options.image,
        options.labels,
        image_variable=options.image_variable,
        labels_variable=options.labels_variable,
        class_names=names,
        max_gib=options.max_gib,
    )
