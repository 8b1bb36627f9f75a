"""Scores of a stored surface system on a scene whose truth is known."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import adjusted_rand_score

from terramoe.data.surfaces import Surfaces
from terramoe.errors import DataError
from terramoe.experiments.surface_scores import surface_scores
from terramoe.storage import StoredEstimator


def evaluate_surface(
    stored: StoredEstimator,
    surfaces: Surfaces,
    truth: np.ndarray,
    *,
    regimes: np.ndarray | None = None,
    unseen: bool = False,
) -> dict[str, float]:
    """Scores of a stored system on a scene.

    Args:
        stored: see ``inference.load_surface_system``.
        truth: (H, W) on the user's grid, NaN where it is not known; see ``data.surfaces.read_surface``.
        regimes: (H, W) ids of parts of different roughness, if they are known.
        unseen: only pixels where the precise sensor has no value count.

    Returns:
        ``surface_scores``, how many pixels they count and, of a system that segments, where regimes are known,
        "segments_ari": the adjusted Rand index of segments and regimes over the whole scene.

    Raises:
        DataError: a truth of another shape, or no pixel that counts.
    """
    if truth.shape != surfaces.grid:
        raise DataError(f"truth {truth.shape} for a grid {surfaces.grid}", where="truth", fix="give one grid")
    system, scene = stored.estimator, list(surfaces.observations)
    values = surfaces.lay(truth)
    where = np.isfinite(values)
    if unseen:
        where &= ~surfaces.observations[surfaces.index(stored.data["target"])].seen
    found = {"pixels": int(where.sum()), **surface_scores(system.posterior(scene), values, where)}
    segments = None if regimes is None else system.segments(scene)
    if segments is not None:
        found["segments_ari"] = float(adjusted_rand_score(regimes.ravel(), surfaces.crop(segments).ravel()))
    return found
