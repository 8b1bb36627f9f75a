"""Figures of a comparison: drawn from arrays, on file, with the right things in them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.image import imread

from terramoe.errors import DataError
from terramoe.evaluation import Interval, Ranks, rank_systems, reliability, risk_coverage
from terramoe.reporting.compare_figures import (
    critical_difference,
    forest,
    quality_against_cost,
    reliability_diagram,
    risk_against_coverage,
)

NAMES = ("Alpha", "Beta", "Gamma", "Delta")


def ranks_of(average, distance):
    return Ranks(NAMES[: len(average)], np.array(average), distance, 0.01, 10)


def draw(kind, path):
    generator = np.random.default_rng(0)
    intervals = {name: Interval(v, v - 1, v + 1) for name, v in zip(NAMES, (2.0, 0.2, -3.0, 0.0), strict=True)}
    shares = {name: Interval(v, v - 0.05, v + 0.05) for name, v in zip(NAMES, (0.7, 0.8, 0.75, 0.6), strict=True)}
    costs = dict(zip(NAMES, (1e3, 1e5, 1e6, 1e4), strict=True))
    probability = generator.dirichlet(np.ones(3), 300)
    truth = generator.integers(1, 4, 300)
    confidence, correct = probability.max(1), probability.argmax(1) + 1 == truth
    return {
        "critical": lambda: critical_difference(path, rank_systems(NAMES, generator.random((9, 4)))),
        "forest": lambda: forest(path, intervals, 0.5),
        "cost": lambda: quality_against_cost(path, shares, costs),
        "risk": lambda: risk_against_coverage(path, {name: risk_coverage(confidence, correct) for name in NAMES}),
        "reliability": lambda: reliability_diagram(path, reliability(probability, truth)),
    }[kind]()


KINDS = ("critical", "forest", "cost", "risk", "reliability")


def words(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda part: hasattr(part, "get_text")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_lies_on_file_and_names_what_it_shows(kind, tmp_path):
    figure = draw(kind, tmp_path / "deep" / "figure.png")
    pixels = imread(tmp_path / "deep" / "figure.png")
    assert min(pixels.shape[:2]) > 150
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10
    if kind != "reliability":
        assert all(name in words(figure) for name in NAMES)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["figure.png"]
    assert plt.get_fignums() == []  # nothing global


@pytest.mark.parametrize("kind", KINDS)
def test_the_suffix_is_the_format(kind, tmp_path):
    draw(kind, tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    draw(kind, tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def bars(figure):
    return {tuple(np.round(line.get_xdata(), 6).tolist()) for line in figure.axes[0].lines if line.get_linewidth() == 4}


def test_bars_join_just_what_cannot_be_told_apart(tmp_path):
    figure = critical_difference(tmp_path / "a.png", ranks_of([1.2, 3.5, 2.0, 3.3], 1.4))
    assert bars(figure) == {(1.17, 2.03), (1.97, 3.33), (3.27, 3.53)}


def test_brute_force_finds_the_same_bars(tmp_path):
    generator = np.random.default_rng(1)
    for _ in range(10):
        average, distance = np.sort(generator.uniform(1, 4, 4)), generator.uniform(0.2, 3)
        runs = [(i, j) for i in range(4) for j in range(i + 1, 4) if average[j] - average[i] < distance]
        longest = [r for r in runs if not any(o != r and o[0] <= r[0] and o[1] >= r[1] for o in runs)]
        expected = {(round(average[i] - 0.03, 6), round(average[j] + 0.03, 6)) for i, j in longest}
        assert bars(critical_difference(tmp_path / "a.png", ranks_of(average, distance))) == expected


def test_the_critical_difference_is_drawn_to_scale(tmp_path):
    figure = critical_difference(tmp_path / "a.png", ranks_of([1, 2, 3, 4], 1.25))
    ruler = next(line for line in figure.axes[0].lines if line.get_linewidth() == 2)
    assert np.ptp(ruler.get_xdata()) == pytest.approx(1.25)
    assert "1.25" in words(figure)


def test_the_forest_fills_what_is_settled(tmp_path):
    rows = {
        "better": Interval(2, 0.6, 3),
        "worse": Interval(-2, -3, -0.6),
        "tie": Interval(0.1, -0.4, 0.4),
        "open": Interval(0.4, -0.1, 0.9),
    }
    figure = forest(tmp_path / "a.png", rows, 0.5)
    axes = figure.axes[0]
    markers = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() != "white" for line in markers] == [True, True, True, False]
    assert [line.get_xdata()[0] for line in markers] == [2, -2, 0.1, 0.4]
    band = axes.patches[0]
    assert (band.get_x(), band.get_x() + band.get_width()) == (-0.5, 0.5)
    assert [t.get_text() for t in axes.get_yticklabels()] == list(rows)
    assert axes.yaxis_inverted()  # the first row is on top


def test_the_frontier_leaves_out_what_is_beaten_at_lower_cost(tmp_path):
    shares = {name: Interval(v, v, v) for name, v in zip(NAMES, (0.7, 0.8, 0.75, 0.6), strict=True)}
    figure = quality_against_cost(tmp_path / "a.png", shares, dict(zip(NAMES, (1e3, 1e5, 1e6, 1e4), strict=True)))
    dashed = next(line for line in figure.axes[0].lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(dashed.get_xdata(), [1e3, 1e5])
    np.testing.assert_allclose(dashed.get_ydata(), [70, 80])
    assert figure.axes[0].get_xscale() == "log"


def test_bars_of_reliability_reach_from_accuracy_to_confidence(tmp_path):
    curve = reliability(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]), np.array([1, 2, 1]), bins=10)
    above = reliability_diagram(tmp_path / "a.png", curve).axes[0]
    tops = sorted(round(p.get_y() + p.get_height(), 6) for p in above.patches)
    assert tops == [0.5, 0.6, 0.9, 1.0]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError):
        draw("forest", tmp_path / "file" / "figure.png")
