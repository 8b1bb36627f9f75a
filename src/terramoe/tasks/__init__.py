"""Tasks by output type. ``pixel_class``: one class per pixel."""

from terramoe.tasks.pixel_class import IGNORE, masked_labels, pixel_cross_entropy

__all__ = ["IGNORE", "masked_labels", "pixel_cross_entropy"]
