"""What a prediction rests on: its attributions to bands and pixels, beside the routing of the same window.

The explained score is a logit: of one class at one pixel, or its mean over all pixels of a window that the model gives
to the class. What can matter are the pixels of the prediction window, the one whose centre is nearest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from terramoe.data import Raster, Sensors
from terramoe.errors import ConfigError, DataError
from terramoe.experiments.attribution import ExplainSettings, attribute, load_captum
from terramoe.inference import Predictor, predict_tiles, routing_maps
from terramoe.inference.window_reader import WindowReader
from terramoe.inference.windows import Box, blend_weights, touching


@dataclass(frozen=True)
class Explanation:
    """Why a class scores as it does.

    Attributes:
        method: of ``METHODS``. box: the window, cut to the raster.
        target: the explained class, 1..K. row, column: the explained pixel in the raster; None for a window.
        region: (h, w) bool: the pixels whose score is explained. valid: (h, w) bool: pixels with data.
        attribution: (bands, h, w) float32, or (1, h, w) for grad-cam; 0 in invalid pixels, and where a band's sensor
            has no data. In logits, but for grad-cam and saliency.
        score, baseline: the explained score of the image, and where every pixel has the mean spectrum of training.
        rerouted: what the choices of the image, held, change of the baseline (integrated gradients; else 0).
        routing: per layer (5, h, w), see ``inference.ROUTING_BANDS``.
        sensors: name and number of bands of each, () where the model does not know them.
        available: (sensors, h, w) bool: which sensors a pixel has; None for a model that does not ask.
    """

    method: str
    box: Box
    target: int
    row: int | None
    column: int | None
    region: np.ndarray
    valid: np.ndarray
    attribution: np.ndarray
    score: float
    baseline: float
    rerouted: float
    routing: dict[str, np.ndarray]
    sensors: Sensors = ()
    available: np.ndarray | None = None

    @property
    def seen(self) -> np.ndarray:
        """(h, w) or (bands, h, w) bool: where ``attribution`` can be other than 0."""
        if self.available is None or self.by_band is None:
            return self.valid
        return self.valid & np.repeat(self.available, [bands for _, bands in self.sensors], axis=0)

    @property
    def by_sensor(self) -> dict[str, float] | None:
        """Sums over the bands of each sensor and the window; None where method or model knows none."""
        if not self.sensors or self.by_band is None:
            return None
        ends = np.cumsum([bands for _, bands in self.sensors])[:-1]
        sums = [float(part.sum()) for part in np.split(self.by_band, ends)]
        return dict(zip([name for name, _ in self.sensors], sums, strict=True))

    @property
    def by_band(self) -> np.ndarray | None:
        """(bands,) sums over the window; None where the method knows no bands."""
        return None if self.method == "grad-cam" else self.attribution.sum((1, 2), dtype=np.float64)

    @property
    def by_pixel(self) -> np.ndarray:
        """(h, w) sums over the bands."""
        return self.attribution.sum(0)

    @property
    def gap(self) -> float | None:
        """What integrated gradients leave unexplained, in logits: 0 with infinitely many steps."""
        if self.method != "integrated-gradients":
            return None
        return self.score - self.baseline - self.rerouted - float(self.attribution.sum(dtype=np.float64))


def explain(
    predictor: Predictor,
    raster: Raster,
    *,
    row: int | None = None,
    column: int | None = None,
    target: int | None = None,
    settings: ExplainSettings | None = None,
) -> Explanation:
    """Explain one pixel, or one class over the window where it is most common.

    Args:
        row, column: of the pixel; both or neither.
        target: class 1..K; for a pixel, the predicted one unless given.

    Raises:
        ConfigError: captum is missing; neither pixel nor class is given; see ``attribute``.
        DataError: other bands than the model's; a pixel outside of the raster or without data; a class that is
            predicted nowhere.
    """
    load_captum()  # before anything that takes time
    settings = settings or ExplainSettings()
    if (row is None) != (column is None) or (row is None and target is None):
        raise ConfigError(
            "neither pixel nor class is given", where="explain", fix="give --row and --column, or --class"
        )
    if raster.bands != predictor.bands:
        raise DataError(
            f"the raster has {raster.bands} bands, the model was trained on {predictor.bands}",
            where=raster.path,
            fix="use the same bands in the same order as in training",
        )
    if row is None:
        at = _window_of_class(predictor, raster, target)
    else:
        at = _window_of_pixel(predictor, raster, row, column)
    window, at = at, at.grown(predictor.reach)
    batch = WindowReader(predictor, raster).read(at).batch(window, predictor.reach)
    image, valid = batch["image"], batch["valid"]
    asked = valid & batch["wanted"] if "wanted" in batch else valid
    with torch.no_grad():
        output = predictor.system(batch)
    predicted = output.prediction[0].argmax(0) + 1
    if row is None:
        region = (predicted == target) & asked[0]
    else:
        region = torch.zeros_like(valid[0])
        region[row - at.row, column - at.column] = valid[0][row - at.row, column - at.column]
    if not region.any():  # of a class: it was predicted only where windows are blended
        raise _nowhere(raster, target) if row is None else _no_data(raster, row, column)
    target = int(predicted[region]) if target is None else target

    def score(system: nn.Module, images: Tensor) -> Tensor:
        """Normalised images (N, bands, H, W) -> (N,)."""
        others = {key: value.expand(len(images), *value.shape[1:]) for key, value in batch.items() if key != "image"}
        return system({"image": images, **others}).prediction[:, target - 1][:, region].mean(1)

    with torch.no_grad():
        found, baseline = (float(score(predictor.system, x)) for x in (image, torch.zeros_like(image)))
    counts, available = [bands for _, bands in predictor.sensors], batch.get("available")
    seen = valid.expand_as(image[0])
    if available is not None:
        seen = seen & available[0].repeat_interleave(torch.tensor(counts), dim=0)
    attribution, held = attribute(
        predictor.system, score, image, len(predictor.class_values), settings, seen=seen, sensors=counts
    )
    whole = Box(0, 0, raster.height, raster.width)
    rows, columns = at.within(whole)
    size = (..., *whole.within(at))
    return Explanation(
        method=settings.method,
        box=Box(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start),
        target=target,
        row=row,
        column=column,
        region=region[size].numpy(),
        valid=valid[0][size].numpy(),
        attribution=attribution[size].numpy().astype(np.float32),
        score=found,
        baseline=baseline,
        rerouted=0.0 if held is None else held - baseline,
        routing={name: maps[0][size] for name, maps in routing_maps(output).items()},
        sensors=predictor.sensors,
        available=None if available is None else (available[0] & valid)[size].numpy(),
    )


def _window_of_pixel(predictor: Predictor, raster: Raster, row: int, column: int) -> Box:
    """The prediction window that decides most of the pixel, as in the map of experts."""
    if not (0 <= row < raster.height and 0 <= column < raster.width):
        raise DataError(
            f"row {row}, column {column} is outside of {raster.height} x {raster.width} pixels",
            where=raster.path,
            fix="count rows and columns from 0",
        )
    windows = _windows(predictor, raster, Box(row, column, 1, 1))
    weight = blend_weights(predictor.window, predictor.overlap)
    return max(windows, key=lambda window: weight[row - window.row, column - window.column])


def _window_of_class(predictor: Predictor, raster: Raster, target: int) -> Box:
    """The prediction window with the most pixels of the class."""
    found: Counter[Box] = Counter()
    for tile in predict_tiles(predictor, raster):
        hits = (tile.probability.argmax(0) + 1 == target) & tile.valid
        for window in _windows(predictor, raster, tile.box):
            found[window] += int(hits[window.within(tile.box)].sum())
    window, pixels = found.most_common(1)[0]
    if pixels == 0:
        raise _nowhere(raster, target)
    return window


def _nowhere(raster: Raster, target: int) -> DataError:
    return DataError(f"class number {target} is predicted nowhere", where=raster.path, fix="choose another")


def _no_data(raster: Raster, row: int, column: int) -> DataError:
    return DataError(f"row {row}, column {column} has no data", where=raster.path, fix="choose another pixel")


def _windows(predictor: Predictor, raster: Raster, box: Box) -> list[Box]:
    stride = predictor.window - predictor.overlap
    return touching(box, raster.height, raster.width, predictor.window, stride)
