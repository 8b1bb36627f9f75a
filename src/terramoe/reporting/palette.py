"""Colours: distinct for classes and experts, also to colour-blind readers."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]

# Tol's "muted" and "bright" qualitative schemes, made to be told apart with colour-blind eyes, then darker variants.
# fmt: off
_BASE = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255",
    "#aa4499", "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#bbbbbb", "#ee8866",
    "#77aadd", "#99ddff", "#bbcc33", "#aaaa00", "#eedd88", "#ffaabb", "#6f4c9b", "#8c4e99",
)
# fmt: on

EXPERT_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")


def class_colours(count: int) -> list[Colour]:
    """``count`` colours as (red, green, blue) in 0..255; beyond 24 the list goes on in darker shades."""
    colours = []
    for number in range(count):
        base = _BASE[number % len(_BASE)]
        shade = 0.7 ** (number // len(_BASE))
        colours.append(tuple(round(int(base[i : i + 2], 16) * shade) for i in (1, 3, 5)))
    return colours


def expert_colours(count: int) -> list[str]:
    """``count`` colours as hexadecimal strings."""
    if count <= len(EXPERT_COLOURS):
        return list(EXPERT_COLOURS[:count])
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in class_colours(count)]


def paint(values: np.ndarray, colours: list[Colour]) -> np.ndarray:
    """(H, W) classes 0..K -> (H, W, 3) uint8; 0 becomes white."""
    table = np.array([(255, 255, 255), *colours], dtype=np.uint8)
    return table[values]
