"""Inference: ``predictor`` (a trained system), ``windows``, ``predict`` (tile by tile), ``write_maps`` (COGs)."""

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
from terramoe.inference.write_maps import write_maps

__all__ = [
    "NO_VALUE",
    "ROUTING_BANDS",
    "PredictedTile",
    "Predictor",
    "load_predictor",
    "predict_array",
    "predict_tiles",
    "routing_maps",
    "uncertainty_bands",
    "write_maps",
]
