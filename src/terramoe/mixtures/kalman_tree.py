"""The Kalman smoother on a quad-tree: exact mean, variance and likelihood in one sweep up and one sweep down.

Fine to coarse, each node merges what was observed at it and what its four children report; coarse to fine, it learns
what lies outside its own subtree. Both sweeps carry information (a precision and a mean), so that "nothing known" is
precision 0, and both only ever add it, never subtract: no digits are lost where data are precise. Multiscale Recursive
Estimation, Data Fusion, and Regularization, 1994, IEEE Transactions on Automatic Control 39(3), of which this is the
two-filter form; likelihood as in Likelihood Calculation for a Class of Multiscale Stochastic Models, 1995,
DOI 10.1109/83.342185.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terramoe.errors import DataError
from terramoe.mixtures.quad_tree import (
    Observation,
    TreeModel,
    check_leaves,
    check_shapes,
    family,
    leaf_shape,
    level_shape,
    siblings,
)

Message = tuple[np.ndarray, np.ndarray]  # precision and mean of what is known of each node, (h, w) both


@dataclass(frozen=True)
class Smoothed:
    """The posterior of all nodes.

    Attributes:
        mean, variance: M + 1 arrays, level 0 (roots) to M (the leaves, (H, W)).
        left_out: for each observation, (mean, variance) of its nodes given all data but this observation *at that
            node*: what it would have been predicted to be, less its own noise. (h, w) each.
        log_likelihood: of all observations together.
    """

    mean: tuple[np.ndarray, ...]
    variance: tuple[np.ndarray, ...]
    left_out: tuple[tuple[np.ndarray, np.ndarray], ...]
    log_likelihood: float


def smooth(model: TreeModel, observations: Sequence[Observation], shape: tuple[int, int] | None = None) -> Smoothed:
    """The posterior of a tree, or of several side by side, given observations at any of its levels.

    Args:
        model: of M levels below the roots. Leaves that are no multiple of 2 ** M are padded with unseen ones.
        observations: any number, also several of one level.
        shape: (H, W) of the leaves; None: that of an observation of scale 0.

    Raises:
        DataError: an observation that does not cover the leaves, or lies above the roots.
    """
    shape = leaf_shape(observations) if shape is None else shape
    check_leaves(shape)
    check_shapes(observations, shape)
    for index, observation in enumerate(observations):
        if observation.scale > model.depth:
            raise DataError(
                f"scale {observation.scale} lies above the roots, {model.depth} levels over the leaves",
                where=f"observation {index}",
                fix="use a deeper tree",
            )
    roots = level_shape(shape, model.depth)
    own = [[] for _ in range(model.depth + 1)]
    for observation in observations:
        level = model.depth - observation.scale
        own[level].append(_pad(observation, (roots[0] << level, roots[1] << level)))
    reports, log_likelihood = _upward(model, own, roots)
    log_likelihood -= 0.5 * sum(
        np.log(2 * np.pi * observation.variance[observation.seen]).sum() for observation in observations
    )
    posterior, left_out = _downward(model, own, reports, roots)
    sizes = [level_shape(shape, model.depth - level) for level in range(model.depth + 1)]
    beliefs = [_crop(belief, size) for belief, size in zip(posterior, sizes, strict=True)]
    queues = [iter(level) for level in left_out]  # back from levels to the order in which they were given
    outside = [_crop(next(queues[model.depth - one.scale]), one.value.shape) for one in observations]
    return Smoothed(
        mean=tuple(mean for mean, _ in beliefs),
        variance=tuple(variance for _, variance in beliefs),
        left_out=tuple(outside),
        log_likelihood=float(log_likelihood),
    )


def _upward(model: TreeModel, own: list[list[Message]], roots: tuple[int, int]) -> tuple[list[list[Message]], float]:
    """What the four children of each node report to it, by level of the parent, and the log-likelihood.

    The likelihood lacks the observations' own ``log(2 pi variance)``.
    """
    reports: list[list[Message]] = [[] for _ in own]
    log_likelihood = 0.0
    for level in range(model.depth, 0, -1):
        step, factor = model.process_variance[level - 1], model.transition[level - 1]
        (precision, mean), gain = _before_step(
            own[level] + reports[level], step, (roots[0] << level, roots[1] << level)
        )
        reports[level - 1] = list(zip(siblings(factor**2 * precision), siblings(mean / factor), strict=True))
        log_likelihood += gain
    (precision, mean), gain = _before_step(own[0] + reports[0], model.root_variance, roots)
    return reports, log_likelihood + gain - 0.5 * float((precision * (mean - model.root_mean) ** 2).sum())


def _before_step(messages: list[Message], step: float, shape: tuple[int, int]) -> tuple[Message, float]:
    """What the messages about each node say of its expectation, from which it differs by a variance ``step``; and
    what is added to the log-likelihood."""
    (precision, mean), misfit = _merge(messages, shape)
    spent = np.log1p(step * precision).sum()
    return (precision / (1 + step * precision), mean), -0.5 * (misfit + float(spent))


def _downward(
    model: TreeModel, own: list[list[Message]], reports: list[list[Message]], roots: tuple[int, int]
) -> tuple[list[Message], list[list[Message]]]:
    """(mean, variance) of each level given everything, and for each observation given everything but itself."""
    outside: Message = (np.full(roots, 1 / model.root_variance), np.full(roots, model.root_mean))
    posterior, left_out = [], []
    for level, (seen, below) in enumerate(zip(own, reports, strict=True)):
        shape = outside[0].shape
        known = [outside, *seen, *below]
        posterior.append(_moments(_merge(known, shape)[0]))
        left_out.append([_moments(_merge(_without(known, 1 + i), shape)[0]) for i in range(len(seen))])
        if level < model.depth:
            first = 1 + len(seen)
            others = [_merge(_without(known, first + child), shape)[0] for child in range(4)]
            precision, mean = (family(np.stack(part)) for part in zip(*others, strict=True))
            factor, step = model.transition[level], model.process_variance[level]
            outside = precision / (factor**2 + step * precision), factor * mean
    return posterior, left_out


def _merge(messages: list[Message], shape: tuple[int, int]) -> tuple[Message, float]:
    """The product of Gaussians as one, and the sum of the squares by which they disagree."""
    total, mean = np.zeros(shape), np.zeros(shape)
    misfit = 0.0
    for precision, value in messages:  # one by one, as a Kalman filter would: the mean moves by its gain
        joint = total + precision
        gain = np.divide(precision, joint, out=np.zeros(shape), where=joint > 0)
        gap = value - mean
        misfit += float((total * gain * gap**2).sum())
        total, mean = joint, mean + gain * gap
    return (total, mean), misfit


def _without(messages: list[Message], index: int) -> list[Message]:
    return messages[:index] + messages[index + 1 :]


def _moments(message: Message) -> Message:
    """(mean, variance): the root's prior reaches every node, so no precision is 0."""
    precision, mean = message
    return mean, 1 / precision


def _pad(observation: Observation, shape: tuple[int, int]) -> Message:
    """Precision and value on a level of whole trees; both 0 in gaps."""
    height, width = observation.value.shape
    precision, value = np.zeros(shape), np.zeros(shape)
    precision[:height, :width] = 1 / observation.variance
    value[:height, :width] = np.where(observation.seen, observation.value, 0.0)
    return precision, value


def _crop(message: Message, shape: tuple[int, int]) -> Message:
    height, width = shape
    return message[0][:height, :width], message[1][:height, :width]
