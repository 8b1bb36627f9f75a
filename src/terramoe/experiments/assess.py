"""Assess a trained model on the test pixels of its fold."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from terramoe.data import Scene, Split, raster_of
from terramoe.evaluation import (
    Alignment,
    Cost,
    Interval,
    Reliability,
    active_parameters,
    average_accuracy,
    block_confusions,
    class_expert_alignment,
    f1,
    flops_per_pixel,
    interval,
    kappa,
    merge_blocks,
    overall_accuracy,
    peak_memory_mib,
    recall,
    reliability,
    total_parameters,
)
from terramoe.experiments.subsets import Subset, score_subsets
from terramoe.inference import Box, PredictedTile, Predictor, WindowReader, predict_array
from terramoe.moe import LayerStatistics, RoutingMeter
from terramoe.training import History


@dataclass(frozen=True)
class Assessment:
    """One trained model on its test pixels, N of them.

    Attributes:
        seed, fold: of the run.
        counts: (blocks, K, K) confusion counts of each test block.
        blocks: (blocks,) their ids in the split.
        truth: (N,) classes 1..K. probability: (N, K).
        tile: the prediction behind the scores, with the training pixels hidden from the network.
        statistics: per routed layer, over all windows of that prediction.
        cost, history: see their classes.
        predictor: the model itself, for further measures.
        subsets: confusion counts like ``counts`` for every subset of the sensors but the whole; empty for one sensor.
    """

    seed: int
    fold: int
    counts: np.ndarray
    blocks: np.ndarray
    truth: np.ndarray
    probability: np.ndarray
    tile: PredictedTile
    statistics: dict[str, LayerStatistics]
    cost: Cost
    history: History
    predictor: Predictor
    subsets: Mapping[Subset, np.ndarray] = field(default_factory=dict)


def assess(predictor: Predictor, scene: Scene, split: Split, history: History, seed: int) -> Assessment:
    """Predict the scene with the training pixels hidden, and score the test pixels.

    Hiding them means that no test prediction can lean on a pixel whose label was known, however far the network sees.
    """
    meter = RoutingMeter()
    started = time.perf_counter()
    tile = predict_array(predictor, scene.image, scene.valid, available=scene.available, hide=split.train, meter=meter)
    seconds = time.perf_counter() - started
    truth = scene.labels[split.test]
    probability = tile.probability[:, split.test].T
    statistics = meter.compute()
    cost = Cost(
        total=total_parameters(predictor.system),
        active=active_parameters(predictor.system, statistics),
        flops=flops_per_pixel(predictor.system, _window(predictor, scene)),
        train_seconds=history.seconds,
        predict_seconds=seconds,
        peak_mib=peak_memory_mib(),
    )
    blocks = split.blocks[split.test]
    counts = block_confusions(truth, probability.argmax(1) + 1, blocks, scene.classes)
    return Assessment(
        seed=seed,
        fold=split.fold,
        counts=counts,
        blocks=np.unique(blocks),
        truth=truth,
        probability=probability,
        tile=tile,
        statistics=statistics,
        cost=cost,
        history=history,
        predictor=predictor,
        subsets=score_subsets(predictor, scene, split),
    )


def assess_ensemble(members: Sequence[Assessment], scene: Scene, split: Split) -> Assessment:
    """Several models of one fold as one: their probabilities are averaged, their costs added.

    Routing maps and statistics are those of the first; subsets of sensors are left out.
    """
    first = members[0]
    mean = np.mean([m.tile.probability for m in members], axis=0)
    blocks = split.blocks[split.test]
    probability = mean[:, split.test].T
    costs = [m.cost for m in members]
    return replace(
        first,
        counts=block_confusions(first.truth, probability.argmax(1) + 1, blocks, scene.classes),
        probability=probability,
        tile=replace(first.tile, probability=mean),
        subsets={},
        cost=Cost(
            total=sum(c.total for c in costs),
            active=sum(c.active for c in costs),
            flops=sum(c.flops for c in costs),
            train_seconds=sum(c.train_seconds for c in costs),
            predict_seconds=sum(c.predict_seconds for c in costs),
            peak_mib=max(c.peak_mib for c in costs),
        ),
    )


def _window(predictor: Predictor, scene: Scene) -> dict[str, torch.Tensor]:
    """The scene's first prediction window as a batch of one."""
    rows, columns = (min(predictor.window, size) for size in (scene.height, scene.width))
    window = Box(0, 0, rows, columns)
    reader = WindowReader(predictor, raster_of(scene.name, scene.image, scene.valid, scene.available))
    return reader.read(window.grown(predictor.reach)).batch(window, predictor.reach)


@dataclass(frozen=True)
class Scores:
    """Scores pooled over the runs of one model, with intervals over blocks.

    Attributes:
        overall, average, kappa: with 95 % intervals; accuracies as shares.
        recall, f1: per class.
        counts: (K, K) summed confusion counts.
        per_seed: overall accuracy of each run.
        reliability: over all test predictions.
    """

    overall: Interval
    average: Interval
    kappa: Interval
    recall: list[Interval]
    f1: list[Interval]
    counts: np.ndarray
    per_seed: tuple[float, ...]
    reliability: Reliability

    @property
    def mean_and_spread(self) -> tuple[float, float]:
        """Mean and standard deviation (n - 1) of overall accuracy over runs; spread 0 for a single run."""
        values = np.array(self.per_seed)
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def pool(assessments: Sequence[Assessment]) -> Scores:
    """Pool the runs of one model."""
    counts = merge_blocks(
        np.concatenate([a.counts for a in assessments]), np.concatenate([a.blocks for a in assessments])
    )
    return Scores(
        overall=interval(overall_accuracy, counts),
        average=interval(average_accuracy, counts),
        kappa=interval(kappa, counts),
        recall=interval(recall, counts),
        f1=interval(f1, counts),
        counts=counts.sum(0),
        per_seed=tuple(float(overall_accuracy(a.counts.sum(0))) for a in assessments),
        reliability=reliability(
            np.concatenate([a.probability for a in assessments]), np.concatenate([a.truth for a in assessments])
        ),
    )


def routing_follows(assessment: Assessment, scene: Scene, split: Split) -> dict[str, Alignment]:
    """Per routed layer, how the top expert goes with the class, over the labelled test pixels."""
    alignments = {}
    for layer, maps in assessment.tile.routing.items():
        inside = split.test & (maps[0] >= 0)
        if not inside.any():
            continue
        alignments[layer] = class_expert_alignment(
            scene.labels[inside],
            maps[0, inside].astype(int),
            positions=np.argwhere(inside),
            num_classes=scene.classes,
            num_experts=len(assessment.statistics[layer].load),
        )
    return alignments
