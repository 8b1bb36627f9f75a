"""Evaluation: ``metrics``, ``intervals`` over blocks, ``comparison`` of two models and ``family`` of several.

How sure: ``two_way`` (seeds and blocks), ``holm``, ``ranks`` over scenes. Does it mean what it says:
``calibration``, ``temperature``, ``conformal`` sets, ``selective`` answers. Where does it fail: ``strata``. What does
the routing follow: ``probe``, ``alignment``. Has the world changed: ``drift``, ``recalibration``.
``cost`` counts parameters, time and memory. All but ``cost`` work on arrays and know nothing of torch.
"""

from terramoe.evaluation.alignment import Alignment, class_expert_alignment
from terramoe.evaluation.calibration import Reliability, reliability
from terramoe.evaluation.comparison import ROPE, Comparison, Verdict, compare
from terramoe.evaluation.conformal import Conformal, fit_conformal
from terramoe.evaluation.cost import Cost, active_parameters, flops_per_pixel, peak_memory_mib, total_parameters
from terramoe.evaluation.drift import Drift, band_drift, feature_drift, load_drift
from terramoe.evaluation.family import Family, Tally, compare_all, compare_with_controls, tally
from terramoe.evaluation.holm import holm
from terramoe.evaluation.intervals import Interval, block_confusions, interval, merge_blocks, resample
from terramoe.evaluation.metrics import (
    average_accuracy,
    brier,
    confusion,
    f1,
    iou,
    kappa,
    log_loss,
    macro,
    overall_accuracy,
    precision,
    recall,
    weighted,
)
from terramoe.evaluation.metrics_regression import bias, mae, r2, rmse
from terramoe.evaluation.probe import Factor, Finding, Probe, probe_routing
from terramoe.evaluation.ranks import Ranks, rank_systems
from terramoe.evaluation.recalibration import Recalibration, adjust_shares, class_shares, recalibrate
from terramoe.evaluation.selective import RiskCoverage, risk_coverage
from terramoe.evaluation.strata import Stratum, failure_audit
from terramoe.evaluation.temperature import fit_temperature, soften
from terramoe.evaluation.two_way import Estimate, estimate

__all__ = [
    "ROPE",
    "Alignment",
    "Comparison",
    "Conformal",
    "Cost",
    "Drift",
    "Estimate",
    "Factor",
    "Family",
    "Finding",
    "Interval",
    "Probe",
    "Ranks",
    "Recalibration",
    "Reliability",
    "RiskCoverage",
    "Stratum",
    "Tally",
    "Verdict",
    "active_parameters",
    "adjust_shares",
    "average_accuracy",
    "band_drift",
    "bias",
    "block_confusions",
    "brier",
    "class_expert_alignment",
    "class_shares",
    "compare",
    "compare_all",
    "compare_with_controls",
    "confusion",
    "estimate",
    "f1",
    "failure_audit",
    "feature_drift",
    "fit_conformal",
    "fit_temperature",
    "flops_per_pixel",
    "holm",
    "interval",
    "iou",
    "kappa",
    "load_drift",
    "log_loss",
    "macro",
    "mae",
    "merge_blocks",
    "overall_accuracy",
    "peak_memory_mib",
    "precision",
    "probe_routing",
    "r2",
    "rank_systems",
    "recalibrate",
    "recall",
    "reliability",
    "resample",
    "risk_coverage",
    "rmse",
    "soften",
    "tally",
    "total_parameters",
    "weighted",
]
