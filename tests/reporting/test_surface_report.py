"""The report of a run on surfaces: whole, escaped, without network; the map of experts; the hillshade."""

import base64
import io
import re

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from test_report import Balance

from terramoe.data.surfaces import Surfaces
from terramoe.experiments.surface_run import SurfacePlan, run_surface
from terramoe.inference.surface_maps import SurfaceMaps, surface_maps
from terramoe.reporting.surface_figures import expert_map, hillshade
from terramoe.reporting.surface_report import print_surface, sentences, write_surface_report
from terramoe.systems.surface_registry import surface_system_class

MODELS = {
    "aggarwal": {"n_experts": 2, "scales": 3, "tol": 1e-3},
    "nagarajan-slatton": {"n_experts": 2, "window": 12, "lags": 3, "tol": 1e-3},
}


@pytest.fixture(scope="module", params=MODELS)
def made(request, tmp_path_factory):
    """Plan, surfaces, run, maps, and the folder of the report."""
    scene = tuple(surface_system_class(request.param).tiny_observations(0))
    noise = tuple(float(np.sqrt(one.variance[one.seen].mean())) for one in scene)
    surfaces = Surfaces(scene, ("<b>radar</b>", "LiDAR"), noise, scene[-1].value.shape)
    plan = SurfacePlan(request.param, MODELS[request.param], "LiDAR", block=8, guard=1, share=0.3, seeds=2)
    found = run_surface(plan, surfaces)
    maps, folder = surface_maps(found.system, surfaces), tmp_path_factory.mktemp("report")
    write_surface_report(plan, surfaces, found, maps, folder)
    return plan, surfaces, found, maps, folder


def test_the_page_is_whole_and_needs_no_network(made):
    plan, _, found, maps, folder = made
    text = (folder / "report.html").read_text()
    page = Balance()
    page.feed(text)
    assert not page.open
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<script" not in text
    assert "<b>radar" not in text
    assert "&lt;b&gt;radar&lt;/b&gt; and LiDAR" in text
    assert page.ids == ["verdict", "scores", "controls", "experts", "sensors", "again"]
    for control, said in zip(found.comparisons, sentences(plan, found), strict=True):
        assert control in said
        assert said.startswith(found.comparisons[control].verdict.capitalize())
        assert f"<div>{said}</div>" in text
    corrected = found.p_holm()
    assert all(corrected[name] >= one.p_value for name, one in found.comparisons.items())
    mean, sd = found.table()["dense"]["rmse"]
    assert f"<td>{mean:.3g} ± {sd:.2g}</td>" in text
    for name, load in zip(maps.names, maps.load, strict=True):
        assert f"<tr><td>{name}</td><td>{100 * load:.1f}</td>" in text
    assert ("its segment" in text) == (plan.system == "nagarajan-slatton")
    assert "system: " + plan.system in re.search("<pre>(.*?)</pre>", text, re.S)[1]


def test_the_picture_of_the_page_is_the_file(made):
    folder = made[-1]
    inside = re.search(r'src="data:image/png;base64,([^"]+)"', (folder / "report.html").read_text())[1]
    content = (folder / "experts.png").read_bytes()
    assert base64.b64decode(inside) == content
    image = imread(io.BytesIO(content))
    assert image.shape[1] > 1200
    assert image[..., :3].std() > 0.05


def test_maps_are_what_the_system_says(made):
    plan, surfaces, found, maps, _ = made
    scene = list(surfaces.observations)
    weight = found.system.posterior(scene).weight
    np.testing.assert_allclose(maps.load, weight.mean(axis=(0, 1)))
    np.testing.assert_array_equal(maps.expert, weight.argmax(axis=-1))
    np.testing.assert_allclose(maps.share, weight.max(axis=-1))
    assert maps.top.sum() == pytest.approx(1)
    np.testing.assert_allclose(maps.std, found.system.predict_std(scene))
    assert (maps.segments is None) == (plan.system == "aggarwal")


def test_the_terminal_shows_every_measure_in_80_columns(made):
    plan, _, found, _, _ = made
    console = Console(width=80, record=True, file=io.StringIO())
    print_surface(plan, found, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    for start in ("RMSE", "MAE", "bias", "in 50 %", "in 90 %", "in 95 %", "NLL"):
        assert sum(line.strip().startswith(start) for line in lines) == 1


def test_the_sun_is_in_the_north_west_whatever_the_unit():
    rows, columns = np.indices((40, 40)) - 19.5
    cone = -np.hypot(rows, columns)  # a hill
    shade = hillshade(cone)
    assert shade[10, 10] > shade[10, 29] > shade[29, 29]
    np.testing.assert_allclose(hillshade(1000 * cone + 5), shade, atol=1e-9)
    plain = hillshade(np.full((8, 8), 3.0))
    assert np.ptp(plain) == 0
    assert hillshade(np.zeros((1, 9))).shape == (1, 9)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (2000, 3)])
@pytest.mark.parametrize("experts", [1, 12])
def test_odd_maps_are_drawn(shape, experts):
    rng = np.random.default_rng(0)
    expert = rng.integers(0, experts, shape)
    field, even = rng.normal(size=shape), np.full(experts, 1 / experts)
    names = tuple(f"expert {k}" for k in range(experts))
    png = expert_map(
        SurfaceMaps(field, np.abs(field), expert, np.ones(shape), np.zeros(shape), expert, names, even, even)
    )
    assert max(imread(io.BytesIO(png)).shape) < 4000
