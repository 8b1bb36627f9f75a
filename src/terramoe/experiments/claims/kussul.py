"""Kussul: do self-organising maps fill the gaps of clouds better than simpler means, and do committees gain from it?

``CLAIM`` is a simulated year of fields under clouds. ``REAL_CLAIM`` is a patch of Sentinel-2 in Slovenia with its own
clouds (eo-learn's example), which the user must have: see ``data.benchmarks``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, f1_score

from terramoe.data.benchmark_files import FOLDER, find_file, read_npy
from terramoe.data.satellite_benchmarks import SATELLITE_SOURCES
from terramoe.data.worlds.clouds import cloud_opacity
from terramoe.data.worlds.fields import cells, stream
from terramoe.data.worlds.phenology import Calendar, greenness
from terramoe.errors import DataError
from terramoe.experiments.claims.rows_claim import Above, Compared, RowsClaim
from terramoe.mixtures import SelfOrganizingMap
from terramoe.systems.kussul import KussulCommittee

SIZE, FIELDS = 96, 80
CROPS = (Calendar(90, 190), Calendar(140, 280), Calendar(155, 270), Calendar(100, 300, 0.3))
GUARD = 10  # columns between the halves
TRAIN = 1000  # pixels that train: labels are few
HIDDEN = 0.3  # of the clear observations, for the error of restoration
SEEN = 0.05  # a date counts if so much of the training pixels is clear
MADE, REAL = "made", "real"


class Halves(NamedTuple):
    """Series (n, dates) with NaN under clouds, classes (n,), of pixels that train and that test; days (dates,)."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    days: np.ndarray


def cloudy_year(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A vegetation index of 24 dates (dates, H, W), NaN under clouds, crop (H, W), field (H, W), days of the year.

    A field's season starts and ends some days off its crop's, and its crop is more or less dense; each date has a haze
    of its own. Two fifths of all pixels are cloudy, few dates by half: mostly a date is clear or it is lost.
    """
    draw = stream(seed, "cloudy year")
    field = cells(SIZE, FIELDS, draw, rounds=2)
    crop = draw.permutation(FIELDS) % len(CROPS)
    days = 8 + 15.0 * np.arange(24) + draw.uniform(-4, 4, 24)
    shift, vigour = draw.normal(0, 8, (2, FIELDS)), draw.normal(1, 0.1, FIELDS)
    series = np.empty((len(days), FIELDS))
    for f in range(FIELDS):
        kind = CROPS[crop[f]]
        season = Calendar(kind.start + shift[0, f], kind.end + shift[1, f], kind.floor)
        series[:, f] = 0.15 + 0.65 * vigour[f] * greenness(season, days, 45.0)
    index = series[:, field] + draw.normal(0, 0.02, (len(days), 1, 1)) + draw.normal(0, 0.04, (len(days), SIZE, SIZE))
    cover = draw.beta(0.4, 0.6, len(days))
    cloud = np.stack([cloud_opacity(SIZE, share, draw) > 0 for share in cover])
    return np.where(cloud, np.nan, index), crop[field], field, days


@lru_cache(maxsize=1)
def made_halves(seed: int) -> tuple[Halves, ...]:
    """Train in the west, test in the east; a field that reaches into both does not test."""
    index, crop, field, days = cloudy_year(seed)
    west, east = _halves(SIZE)
    test = east & ~np.isin(field, field[:, west.any(0)])
    return (_rows(index, crop, west & np.ones_like(test), test, days, seed),)


@lru_cache(maxsize=1)
def real_halves(seed: int) -> tuple[Halves, ...]:
    """West to east and east to west; forest, grass and shrub, the covers of which both halves have 50 pixels or more.

    Raises:
        DataError: the folder or a file is not there.
    """
    folder, name, size = os.environ.get(FOLDER), "slovenia-ndvi", (101, 100, 1)
    if not folder:
        raise DataError("no folder of data is named", where=name, fix=f"set {FOLDER}")
    files = SATELLITE_SOURCES[name]
    ndvi, clear = (read_npy(name, Path(folder), file, (68, *size))[..., 0] for file in files[:2])
    cover = read_npy(name, Path(folder), files[2], size)[..., 0]
    days = _days(find_file(name, Path(folder), files[4]))
    index = np.where(clear, ndvi.astype(np.float64), np.nan)
    known = np.isin(cover, (2, 3, 4))
    west, east = (half & known for half in _halves(100))
    return tuple(_rows(index, cover, *pair, days, seed) for pair in ((west, east), (east, west)))


def _days(path: Path) -> np.ndarray:
    """(68,) days since the first of a JSON list of dates."""
    try:
        dates = np.array([str(date)[:10] for date in json.loads(path.read_text())], dtype="datetime64[D]")
        if len(dates) != 68:
            raise ValueError(f"{len(dates)} dates")
    except (ValueError, TypeError) as error:
        raise DataError("this is no JSON list of 68 dates", where=path, fix="get the file that we name") from error
    return (dates - dates[0]).astype(np.float64)


def _halves(width: int) -> tuple[np.ndarray, np.ndarray]:
    """(1, width) columns of the west and of the east, with the guard between."""
    column, middle = np.arange(width)[None], width // 2
    return column < middle - GUARD // 2, column >= middle + GUARD // 2


def _rows(
    index: np.ndarray, kind: np.ndarray, train: np.ndarray, test: np.ndarray, days: np.ndarray, seed: int
) -> Halves:
    chosen = stream(seed, "training pixels").permutation(np.flatnonzero(train))[:TRAIN]
    flat = index.reshape(len(days), -1).T
    dates = (~np.isnan(flat[chosen])).mean(axis=0) > SEEN
    x, test_x = flat[chosen][:, dates], flat[test.ravel()][:, dates]
    return Halves(x, kind.ravel()[chosen], test_x, kind[test], days[dates])


def fill_mean(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(n, dates) gaps filled with the date's mean."""
    return np.where(np.isnan(x), mean, x)


def fill_linear(x: np.ndarray, days: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(n, dates) gaps filled between the row's own dates, beyond them with the nearest; a row of gaps with the mean."""
    filled = fill_mean(x, mean)
    for row, given in zip(filled, ~np.isnan(x), strict=True):
        if given.any():
            row[~given] = np.interp(days[~given], days[given], row[given])
    return filled


def restoration_error(halves: Halves, how: str, seed: int) -> float:
    """Root mean square error of clear observations of the test pixels that were hidden."""
    draw = stream(seed, "hidden")
    x, shown = (np.where(draw.random(part.shape) < HIDDEN, np.nan, part) for part in (halves.x, halves.test_x))
    mean = np.nanmean(x, axis=0)
    if how == "som":
        filled = SelfOrganizingMap(random_state=seed).fit(x).transform(shown)
    else:
        filled = fill_mean(shown, mean) if how == "mean" else fill_linear(shown, halves.days, mean)
    hidden = np.isnan(shown) & ~np.isnan(halves.test_x)
    return float(np.sqrt(np.mean((filled - halves.test_x)[hidden] ** 2)))


def model_of(variant: str, seed: int) -> KussulCommittee:
    """The committee of a variant; those that differ in the filling alone have the system's own."""
    routed = KussulCommittee(random_state=seed)
    parted = KussulCommittee("partitioned", random_state=seed)
    if variant in routed.controls:
        return routed.control(variant)
    return {
        "partitioned": parted,
        "random parts": parted.control("random"),
        "all parts": KussulCommittee(hidden=parted.regions * tuple(parted.hidden), random_state=seed),
    }.get(variant, routed)


def measure(data: str, variant: str, seed: int) -> Mapping[str, float]:
    """Mean over the halves: macro F1, accuracy (%), F1 points over the members' mean, and the error of restoration."""
    pairs = made_halves(seed) if data == MADE else real_halves(seed)
    found = [_measure(halves, variant, seed) for halves in pairs]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _measure(halves: Halves, variant: str, seed: int) -> dict[str, float]:
    x, test_x = halves.x, halves.test_x
    if variant in ("mean", "linear"):
        mean = np.nanmean(x, axis=0)
        x, test_x = (
            fill_mean(part, mean) if variant == "mean" else fill_linear(part, halves.days, mean) for part in (x, test_x)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = model_of(variant, seed).fit(x, halves.y)
    score = partial(f1_score, halves.test_y, average="macro")
    found = {"macro_f1": 100 * score(model.predict(test_x))}
    found["accuracy"] = 100 * accuracy_score(halves.test_y, model.predict(test_x))
    members = model.classes_[model.member_proba(test_x).argmax(axis=2)]
    found["over_members"] = found["macro_f1"] - 100 * float(np.mean([score(member) for member in members.T]))
    if variant in ("routed", "mean", "linear"):
        found["restoration_rmse"] = restoration_error(halves, "som" if variant == "routed" else variant, seed)
    return found


STATEMENTS = (
    Compared("maps restore hidden values better than the mean of the date", "routed", "mean", "restoration_rmse"),
    Compared("maps restore hidden values better than a line in time", "routed", "linear", "restoration_rmse"),
    Compared("a committee on restored series beats one on means", "routed", "mean", "macro_f1", "higher"),
    Compared("a committee on restored series beats one on lines in time", "routed", "linear", "macro_f1", "higher"),
    Above("the committee beats the mean of its members", "routed", "over_members"),
    Compared("the committee beats a member drawn at random", "routed", "random", "macro_f1", "higher"),
    Compared("the committee beats one perceptron as large", "routed", "dense", "macro_f1", "higher"),
    Compared("a committee for each part of the map beats one for all", "partitioned", "routed", "macro_f1", "higher"),
    Compared("the map's parts beat parts drawn at random", "partitioned", "random parts", "macro_f1", "higher"),
)
VARIANTS = ("routed", "dense", "random", "linear", "mean", "partitioned", "random parts")

CLAIM = RowsClaim(
    system="kussul",
    about=f"A simulated year of {FIELDS} fields of 4 crops, {SIZE} x {SIZE} pixels, 24 dates, two fifths under clouds; "
    f"{TRAIN} pixels of the west train, the fields of the east test, {GUARD} pixels between. For the error of "
    f"restoration {HIDDEN:.0%} of the clear observations are hidden. A seed is a world.",
    variants=(*VARIANTS, "all parts"),
    measure=partial(measure, MADE),
    statements=(
        *STATEMENTS,
        Compared("asking one part beats asking all those members", "partitioned", "all parts", "macro_f1", "higher"),
    ),
    metric="macro_f1",
    unit="%",
    higher_is_better=True,
)
REAL_CLAIM = RowsClaim(
    system="kussul",
    about="NDVI of Sentinel-2 in Slovenia, 68 dates of 2015 to 2017 with their own clouds (dates that are nearly all "
    f"cloudy are left out), 101 x 100 pixels, forest, grass and shrub; {TRAIN} pixels of one half train and the "
    "other half tests, both ways. It is one place: a seed draws the training pixels and what is hidden.",
    variants=VARIANTS,
    measure=partial(measure, REAL),
    statements=STATEMENTS,
    metric="macro_f1",
    unit="%",
    higher_is_better=True,
)
