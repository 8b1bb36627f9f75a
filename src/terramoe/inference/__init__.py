"""Inference: ``predictor`` (a trained system), ``windows``, ``window_reader``, ``predict`` and ``write_maps``."""

from terramoe.inference.predict import (
    NO_VALUE,
    ROUTING_BANDS,
    PredictedTile,
    predict_array,
    predict_tiles,
    routing_maps,
    uncertainty_bands,
)
from terramoe.inference.predictor import Predictor, load_predictor
from terramoe.inference.window_reader import View, WindowReader
from terramoe.inference.windows import Box
from terramoe.inference.write_maps import write_maps

__all__ = [
    "NO_VALUE",
    "ROUTING_BANDS",
    "Box",
    "PredictedTile",
    "Predictor",
    "View",
    "WindowReader",
    "load_predictor",
    "predict_array",
    "predict_tiles",
    "routing_maps",
    "uncertainty_bands",
    "write_maps",
]
