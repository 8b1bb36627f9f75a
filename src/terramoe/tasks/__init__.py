"""Tasks by output type. ``pixel_class``: one class per pixel; ``partial_labels``: a set of candidate classes;
``class_and_values``: both for one row; ``uncertainty_weights``: several losses whose weights are learned.
"""

from terramoe.tasks.partial_labels import partial_label_loss, pruned_candidates
from terramoe.tasks.pixel_class import IGNORE, masked_labels, pixel_cross_entropy

__all__ = ["IGNORE", "masked_labels", "partial_label_loss", "pixel_cross_entropy", "pruned_candidates"]
