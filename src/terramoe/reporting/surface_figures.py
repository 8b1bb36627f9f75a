"""Figures of a run on surfaces, as PNG bytes."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LightSource, ListedColormap
from matplotlib.figure import Figure

from terramoe.inference.surface_maps import SurfaceMaps
from terramoe.reporting.figures import GREY, INK, new_figure, png_bytes, show_image
from terramoe.reporting.palette import expert_colours

MOST_PIXELS = 800  # along a side; of larger maps a figure shows every second, third ... pixel
STEEP = 98  # percentile of the slopes that the hillshade shows at 45 degrees
FAINTEST = 0.45  # how much of a colour is left in the darkest shade
SUN = LightSource(azdeg=315, altdeg=45)
LAND = ListedColormap(colormaps["terrain"](np.linspace(0.25, 0.97, 256)))  # without the blue of water


def expert_map(maps: SurfaceMaps) -> bytes:
    """Hillshade of the fused surface beside the most used expert, its share of the weight, the standard deviation, the
    segments if there are, and the load of each expert, whose bars are the legend of the colours."""
    step = -(-max(maps.mean.shape) // MOST_PIXELS)
    mean, std, expert, share = (part[::step, ::step] for part in (maps.mean, maps.std, maps.expert, maps.share))
    shade, colours = hillshade(mean), np.array(expert_colours(len(maps.names)))
    tall = float(np.clip(mean.shape[0] / mean.shape[1], 0.5, 1.6))
    rows = [["surface", "expert", "load"], ["share", "std", "load"]]
    if maps.segments is not None:
        rows = [["surface", "expert", "segments"], ["share", "std", "load"]]
    figure = new_figure(13.0, 8.0 * tall + 0.4)
    panels = figure.subplot_mosaic(rows, width_ratios=(1, 1, 0.75 if maps.segments is None else 1))
    _scaled(figure, panels["surface"], mean, "fused surface, hillshade", LAND, shade=shade)
    _painted(panels["expert"], expert, colours, shade, "most used expert")
    if maps.segments is not None:
        _painted(panels["segments"], maps.segments[::step, ::step], colours, shade, "segments")
    _scaled(figure, panels["share"], share, "its share of the weight", "viridis", (1 / (len(colours) + 1e-9), 1.0))
    _scaled(figure, panels["std"], std, "standard deviation", "magma", _middle(std))
    _bars(panels["load"], maps, colours, slots=4 if maps.segments is not None else 8)
    for name in panels.keys() - {"load"}:
        panels[name].set_anchor("W")  # so that those of a column begin at one place
    return png_bytes(figure)


def hillshade(heights: np.ndarray) -> np.ndarray:
    """(H, W) heights -> (H, W) brightness in 0..1 under a sun in the north-west.

    Heights and pixels may have different units, so the slopes are stretched until the steep ones stand at 45 degrees.
    """
    if min(heights.shape) < 2:
        return np.full(heights.shape, 0.7)
    slope = np.percentile(np.hypot(*np.gradient(heights)), STEEP)
    return SUN.hillshade(heights, vert_exag=1 / slope if slope > 0 else 1.0)


def _painted(axes: Axes, ids: np.ndarray, colours: np.ndarray, shade: np.ndarray, title: str) -> None:
    """Ids in their colours, over the hillshade."""
    flat = ListedColormap(list(colours))(ids.astype(int))[..., :3]
    show_image(axes, _shaded(flat, shade), title)


def _scaled(
    figure: Figure,
    axes: Axes,
    values: np.ndarray,
    title: str,
    colours: str | Colormap,
    ends: tuple[float | None, float | None] = (None, None),
    shade: np.ndarray | None = None,
) -> None:
    """Values under a colour scale; with a shade, darkened by it."""
    image = show_image(axes, values, title, cmap=colours, vmin=ends[0], vmax=ends[1])
    figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, aspect=25)
    if shade is not None:
        axes.imshow(_shaded(image.to_rgba(values)[..., :3], shade), interpolation="nearest")


def _shaded(colours: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """(H, W, 3) colours under (H, W) brightness."""
    return colours * (FAINTEST + (1 - FAINTEST) * shade[..., None])


def _bars(axes: Axes, maps: SurfaceMaps, colours: np.ndarray, slots: int) -> None:
    """Horizontal bars from the top; ``slots`` of them fill the panel, more are narrower."""
    places = np.arange(len(maps.names))
    axes.barh(places, 100 * maps.load, color=colours, edgecolor=GREY, height=0.6)
    for place, name, load in zip(places, maps.names, maps.load, strict=True):
        axes.text(0, place - 0.36, f"{name}: {100 * load:.0f} %", fontsize=9, color=INK, va="bottom")
    axes.set_ylim(max(len(places), slots) - 0.4, -0.9)  # the first on top
    axes.set_xlim(0, 100)
    axes.set_yticks([])
    axes.set_title("load: share of all weight, %", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _middle(values: np.ndarray) -> tuple[float, float]:
    """Ends of a colour scale that a few odd pixels do not stretch."""
    low, high = np.percentile(values, (1, 99))
    return float(low), float(max(high, low + 1e-12))
