"""Evaluation: ``metrics``, ``intervals`` over blocks, ``comparison`` of two models, ``calibration``, ``alignment``.

``cost`` counts parameters, time and memory. All but ``cost`` work on arrays and know nothing of torch.
"""

from terramoe.evaluation.alignment import Alignment, class_expert_alignment
from terramoe.evaluation.calibration import Reliability, reliability
from terramoe.evaluation.comparison import Comparison, compare
from terramoe.evaluation.cost import Cost, active_parameters, peak_memory_mib, total_parameters
from terramoe.evaluation.intervals import Interval, block_confusions, interval, merge_blocks, resample
from terramoe.evaluation.metrics import average_accuracy, confusion, f1, kappa, overall_accuracy, precision, recall

__all__ = [
    "Alignment",
    "Comparison",
    "Cost",
    "Interval",
    "Reliability",
    "active_parameters",
    "average_accuracy",
    "block_confusions",
    "class_expert_alignment",
    "compare",
    "confusion",
    "f1",
    "interval",
    "kappa",
    "merge_blocks",
    "overall_accuracy",
    "peak_memory_mib",
    "precision",
    "recall",
    "reliability",
    "resample",
    "total_parameters",
]
