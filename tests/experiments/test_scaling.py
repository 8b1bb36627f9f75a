"""Scaling curves: every size once, costs that grow as they must."""

import csv
import io

import pytest
from test_study import make_plan

from terramoe.errors import ConfigError
from terramoe.experiments.scaling import scaling_csv, scaling_points, scaling_variants
from terramoe.experiments.study import run_study
from terramoe.experiments.study_summary import summarise_study


def test_points_have_their_sizes_and_costs_grow(scene, tmp_path):
    plan = make_plan(seeds=1)
    variants = scaling_variants(plan, "mambamoe", scene, [4, 1, 2], [1, 2])
    assert [v.name for v in variants] == ["E1-k1", "E2-k1", "E4-k1", "E2-k2", "E4-k2"]
    records = run_study(plan, variants, scene, tmp_path)
    points = scaling_points(records, summarise_study(records).scores, scene.height * scene.width)
    by_size = {(p.experts, p.top_k): p for p in points.values()}
    assert set(by_size) == {(1, 1), (2, 1), (4, 1), (2, 2), (4, 2)}
    assert by_size[1, 1].total < by_size[2, 1].total < by_size[4, 1].total
    assert by_size[2, 1].total == by_size[2, 2].total
    assert by_size[4, 2].flops > by_size[4, 1].flops
    assert by_size[1, 1].effective_experts == pytest.approx(1)
    assert by_size[2, 2].effective_experts == pytest.approx(2)
    assert by_size[2, 2].largest_load == pytest.approx(0.5)
    rows = list(csv.DictReader(io.StringIO(scaling_csv(list(points.values())))))
    assert [(int(r["experts"]), int(r["top_k"])) for r in rows] == [(p.experts, p.top_k) for p in points.values()]
    assert all(float(r["overall_low"]) <= float(r["overall_value"]) <= float(r["overall_high"]) for r in rows)


@pytest.mark.parametrize(("experts", "top_k"), [([0], [1]), ([2], [3]), ([-1, 2], [1])])
def test_bad_sizes(scene, experts, top_k):
    with pytest.raises(ConfigError, match="experts .* with top-k"):
        scaling_variants(make_plan(), "mambamoe", scene, experts, top_k)
