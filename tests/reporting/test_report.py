"""The report: one file, whole, escaped, without network; and what the terminal shows."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from terramoe.data import Scene
from terramoe.experiments import Plan, SplitSettings, audit, run_experiment
from terramoe.reporting import class_colours, print_audit, print_summary, write_report
from terramoe.storage import RunFolder
from terramoe.training import TrainSettings

VOID = {"meta", "img", "br", "link"}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, scene):
    nasty = Scene(**{**vars(scene), "name": "<b>made</b>", "class_names": ("<script>alert(1)</script>", "b & c", "ü")})
    plan = Plan(
        model={"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2},
        train=TrainSettings(steps=4, steps_per_epoch=2, batch=1, crop=32),
        split=SplitSettings(block=8, guard=2),
        seeds=2,
        twin=True,
        reduced=("everything",),
    )
    folder = RunFolder.create(tmp_path_factory.mktemp("run"))
    return run_experiment(plan, nasty, folder, audit(plan, nasty))


@pytest.fixture(scope="module")
def page(experiment, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(experiment, path)
    return path.read_text()


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values[k] for k in ("src", "href") if k in values]
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_tags_balance_and_nothing_is_loaded_from_elsewhere(page):
    parser = parse(page)
    assert parser.sources
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "@import" not in page
    assert "url(" not in page
    assert "<script" not in page


def test_all_sections_are_there(page):
    expected = ["verdict", "models", "audit", "maps", "experts", "classes", "training", "system", "limits", "again"]
    assert parse(page).ids == expected


def test_what_users_write_is_escaped(page):
    assert "&lt;script&gt;alert(1)" in page
    assert "b &amp; c" in page
    assert "&lt;b&gt;made" in page


def test_figures_show_something(page):
    images = re.findall(r"base64,([^\"]+)", page)
    assert len(images) == 9
    for image in images:
        pixels = imread(io.BytesIO(base64.b64decode(image)))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10


def test_figures_in_the_text_are_those_of_the_experiment(experiment, page):
    value = 100 * experiment.scores["MambaMoE"].overall.value
    assert f"{value:.1f} [" in page
    assert experiment.comparison.sentence in page
    audit_row = next(a for a in experiment.audits if a.name == "block")
    assert f"({100 * audit_row.coordinates:.1f} %)" in page
    assert experiment.facts["scene_digest"] in page
    assert "Reduced: everything." in page


def test_without_a_twin_there_is_no_comparison(experiment, tmp_path):
    name = experiment.card.name
    alone = dataclasses.replace(
        experiment,
        comparison=None,
        runs={name: experiment.runs[name]},
        scores={name: experiment.scores[name]},
        alignments={},
    )
    write_report(alone, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "No control was trained" in page
    assert "dense twin</td>" not in page
    assert "Class × expert" not in page
    parse(page)


def test_the_terminal_fits_80_columns(experiment):
    console = Console(width=80, record=True, file=io.StringIO())
    print_audit(experiment.audits, console)
    print_summary(experiment, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in ("coordinates", "logistic", "MambaMoE", "dense twin", experiment.comparison.verdict.capitalize()):
        assert word in text


@pytest.mark.parametrize("count", [1, 16, 24, 60])
def test_class_colours_are_distinct(count):
    colours = class_colours(count)
    assert len(set(colours)) == len(colours) == count
    assert all(0 <= value <= 255 for colour in colours for value in colour)
