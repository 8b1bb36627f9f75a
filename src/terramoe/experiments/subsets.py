"""How a multi-sensor model does with every subset of its sensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from terramoe.data import Scene, Split
from terramoe.evaluation import Interval, block_confusions, interval, merge_blocks, overall_accuracy
from terramoe.inference import Predictor, predict_array

Subset = tuple[str, ...]  # the sensors that are there


def subsets_of(sensors: Sequence[str]) -> list[Subset]:
    """Every non-empty subset, all sensors first, then by size."""
    return [chosen for size in range(len(sensors), 0, -1) for chosen in combinations(sensors, size)]


def score_subsets(predictor: Predictor, scene: Scene, split: Split) -> dict[Subset, np.ndarray]:
    """(blocks, K, K) confusion counts of the test pixels for each subset of sensors but the whole.

    The training pixels are hidden. A test pixel that has none of the sensors left counts as an error. Empty for a model
    of one sensor.
    """
    names = [name for name, _ in predictor.sensors] if predictor.system.multi_sensor else []
    truth, blocks = scene.labels[split.test], split.blocks[split.test]
    found = {}
    for present in subsets_of(names)[1:]:
        gone = [name for name in names if name not in present]
        tile = predict_array(
            predictor, scene.image, scene.valid, available=scene.available, hide=split.train, missing=gone
        )
        answered = tile.valid[split.test]
        predicted = np.where(answered, tile.probability[:, split.test].argmax(0) + 1, truth % scene.classes + 1)
        found[present] = block_confusions(truth, predicted, blocks, scene.classes)
    return found


def measures_of(counts: Mapping[Subset, np.ndarray]) -> dict[str, float]:
    """Overall accuracy by subset, as plain numbers for the record of a run."""
    return {f"accuracy, {' + '.join(p)} only": float(overall_accuracy(c.sum(0))) for p, c in counts.items()}


def subset_grid(
    runs: Mapping[str, Sequence[tuple[Mapping[Subset, np.ndarray], np.ndarray]]],
) -> dict[Subset, dict[str, Interval]]:
    """Subset -> model -> overall accuracy with its interval over blocks.

    Args:
        runs: by model, for each run the counts of its subsets and the ids of their blocks.
    """
    grid: dict[Subset, dict[str, Interval]] = {}
    for model, found in runs.items():
        for present in found[0][0] if found else ():
            counts = np.concatenate([subsets[present] for subsets, _ in found])
            blocks = np.concatenate([ids for _, ids in found])
            grid.setdefault(present, {})[model] = interval(overall_accuracy, merge_blocks(counts, blocks))
    return grid
