"""Score a stored model on a labelled scene, without ever counting a pixel it was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from terramoe.data import Scene, Split
from terramoe.data.splits import block_ids
from terramoe.errors import DataError, ModelFileError
from terramoe.experiments.arrange import arrange
from terramoe.experiments.assess import Scores, assess, pool
from terramoe.experiments.card import plain
from terramoe.experiments.plan import SplitSettings, labels_digest, scene_digest
from terramoe.inference import Predictor, load_predictor
from terramoe.storage import RunFolder
from terramoe.training import History

BLOCK = 16  # pixels; unit of the bootstrap on a scene that the model was not trained on


@dataclass(frozen=True)
class Evaluation:
    """Scores of a stored model.

    Attributes:
        which: the pixels that were counted, in words. pixels: how many.
        class_names: of the model. scores: pooled.
    """

    which: str
    pixels: int
    class_names: tuple[str, ...]
    scores: Scores

    def plain(self) -> dict[str, Any]:
        """As JSON-able values; null where a score does not exist."""
        s = self.scores
        recalls = {name: asdict(r) for name, r in zip(self.class_names, s.recall, strict=True) if not np.isnan(r.value)}
        return plain(
            {
                "which": self.which,
                "pixels": self.pixels,
                "overall_accuracy": asdict(s.overall),
                "average_accuracy": asdict(s.average),
                "kappa": asdict(s.kappa),
                "ece": s.reliability.ece,
                "recall": recalls,
            }
        )


def evaluate_model(model: str | Path, scene: Scene) -> Evaluation:
    """Score a model.

    Args:
        model: run folder or model file.
        scene: with labels in the same values as in training.

    Raises:
        ModelFileError: see ``load_predictor``.
        DataError: other bands than in training, or a label value that the model does not know.
    """
    predictor = load_predictor(model)
    scene, split, which = fair_pixels(model, predictor, arrange(scene, predictor))
    assessment = assess(predictor, scene, split, History((), 0.0), 0)
    return Evaluation(which, len(assessment.truth), predictor.class_names, pool([assessment]))


def fair_pixels(model: str | Path, predictor: Predictor, scene: Scene) -> tuple[Scene, Split, str]:
    """The pixels that a stored model may be scored on.

    Args:
        model: run folder or model file of the predictor.

    Returns:
        The scene with the labels as the model's classes; a split whose ``test`` pixels count and whose ``train``
        pixels must be hidden; and which pixels these are, in words.

    Raises:
        ModelFileError: the run's card is damaged. DataError: a label value that the model does not know.
    """
    labels = _labels_of_model(scene, predictor.class_values)
    scene = replace(scene, labels=labels, class_values=predictor.class_values, class_names=predictor.class_names)
    split = _split_of_run(Path(model), scene)
    if split is not None:
        return scene, split, "the test pixels of its run, training pixels hidden"
    none = np.zeros(labels.shape, dtype=bool)
    split = Split("all", 0, none, labels > 0, none, block_ids(labels.shape, BLOCK))
    return scene, split, "all labelled pixels: not the scene it was trained on"


def _labels_of_model(scene: Scene, class_values: tuple[int, ...]) -> np.ndarray:
    """The scene's labels as numbers of the model's classes."""
    unknown = sorted(set(scene.class_values) - set(class_values))
    if unknown:
        raise DataError(
            f"label values {unknown} are none of the model's ({list(class_values)})",
            where=scene.name,
            fix="use the label values of the training scene",
        )
    table = np.array([0, *(class_values.index(value) + 1 for value in scene.class_values)])
    return table[scene.labels]


def _split_of_run(model: Path, scene: Scene) -> Split | None:
    """The fold that the model was tested on, if this is the scene it was trained on."""
    card_path = RunFolder(model if model.is_dir() else model.parent).card
    if not card_path.exists():
        return None
    try:
        card = json.loads(card_path.read_text())
        facts, plan = card["facts"], card["plan"]
        # The labels tell the ground, also where a sensor is missing now; runs of old versions did not note them.
        known = facts.get("labels_digest", facts["scene_digest"])
        if known not in (labels_digest(scene), scene_digest(scene)):
            return None
        seed = plan["train"]["seed"]
        splits = list(SplitSettings(**plan["split"]).for_scene(scene).masks(scene.labels))
        split = splits[seed % len(splits)]
        same = split.digest() == facts["split_digests"][str(seed)]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError("the run's card is damaged", where=card_path, fix="train anew") from error
    if not same:
        raise ModelFileError("the run's split cannot be made again", where=card_path, fix="train anew")
    return split
