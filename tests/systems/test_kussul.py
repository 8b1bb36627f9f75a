"""Kussul's committee: who is averaged with which weight, what a gap does, and the measures of its claim."""

import warnings

import numpy as np
import pytest
from skops.io import dumps, get_untrusted_types

from terramoe.errors import ConfigError, DataError, RoutingError
from terramoe.experiments.claims import kussul as claim
from terramoe.mixtures.fixed_gates import draw_experts
from terramoe.systems.kussul import KussulCommittee

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, Y = KussulCommittee.tiny_table(160, 0)
TEST_X, TEST_Y = KussulCommittee.tiny_table(120, 1)


def two_sensors(rows, seed):
    """Optical columns 0 to 5 in two bands, radar columns 6 and 7 that are noise."""
    x, y = KussulCommittee.tiny_table(rows, seed)
    return np.hstack([x, np.random.default_rng(seed).standard_normal((rows, 2))]), y


SENSORS = {"sensors": ((5, 4, 3, 2, 1, 0), (7, 6)), "bands": ((0, 1, 2), (3, 4, 5), (6, 7))}


@pytest.fixture(scope="module")
def fused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KussulCommittee.tiny().set_params(**SENSORS, validation=0.3).fit(*two_sensors(160, 0))


def test_the_paper_averages_all_members():
    model = KussulCommittee.tiny().fit(X, Y)
    assert KussulCommittee().mode == "committee"  # the paper's meaning, not the survey's
    np.testing.assert_allclose(model.predict_proba(TEST_X), model.member_proba(TEST_X).mean(axis=1))
    np.testing.assert_allclose(model.routing(TEST_X)["members"].dense().numpy(), 0.5)
    assert model.score(TEST_X, TEST_Y) > 0.9
    gone = np.full((1, 6), np.nan)
    np.testing.assert_allclose(model.predict_proba(gone).sum(), 1)
    np.testing.assert_array_equal(model.restore(TEST_X)[~np.isnan(TEST_X)], TEST_X[~np.isnan(TEST_X)])


def test_the_survey_asks_the_committee_of_one_region():
    model = KussulCommittee.tiny().set_params(mode="partitioned", regions=3).fit(X, Y)
    routing = model.routing(TEST_X)["regions"]
    assert routing.fixed_k == 1
    assert (routing.load() > 0).all()
    committee = model.committees_[0]
    features = committee.scaling_.apply(model.restore(TEST_X))
    for row, region in enumerate(routing.expert.tolist()):
        proba = np.zeros(3)
        for member in committee.committees_[region]:
            proba[member.classes_] += member.predict_proba(features[row : row + 1])[0] / 2
        np.testing.assert_allclose(model.predict_proba(TEST_X[row : row + 1])[0], proba)
    assert model.expert_names("regions") == ("region 1", "region 2", "region 3")


def test_sensors_weigh_by_what_they_got_right_on_rows_held_out(fused):
    x, y = two_sensors(160, 0)
    train, held = fused._hold_out(160, None, np.random.RandomState(0))  # the draw that fit makes first
    assert len(held) == 48
    assert not np.isin(train, held).any()
    parts = [np.arange(6), np.array([6, 7]), np.arange(8)]
    proba = np.stack([c.predict_proba(x[:, p]) for c, p in zip(fused.committees_, parts, strict=True)])
    right = 1e-3 + (fused.classes_[proba[:, held].argmax(axis=2)] == y[held]).mean(axis=1)
    np.testing.assert_allclose(fused.weight_, right / right.sum())
    assert fused.weight_[0] > 1.5 * fused.weight_[1]  # radar is noise here
    np.testing.assert_allclose(fused.predict_proba(x), np.einsum("p,pnk->nk", fused.weight_, proba))
    np.testing.assert_allclose(fused.routing(x)["sensors"].dense()[7].numpy(), fused.weight_)
    assert fused.expert_names("sensors") == ("sensor 1", "sensor 2", "all sensors")


def test_a_group_is_never_parted(fused):
    groups = np.arange(160) // 10
    train, held = fused._hold_out(160, groups, np.random.RandomState(3))
    assert len(held) > 0
    assert not np.isin(groups[train], groups[held]).any()


def test_a_class_that_was_held_out_whole_is_never_said():
    x, y = two_sensors(90, 0)
    model = KussulCommittee.tiny().set_params(**SENSORS, validation=0.3)
    proba = model.fit(x, y, groups=y).predict_proba(x)  # groups are the classes: one of three is held out
    assert proba.shape == (90, 3)
    assert (proba.max(axis=0) == 0).sum() == 1
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_a_band_is_restored_from_itself_alone(fused):
    row = np.array([[0.1, np.nan, 0.9, 0.2, 0.1, np.nan, 0.0, 0.0]])
    other = row.copy()
    other[0, 3:] = [5.0, -5.0, np.nan, 2.0, np.nan]
    assert fused.restore(row)[0, 1] == fused.restore(other)[0, 1]
    assert fused.restore(row)[0, 5] != fused.restore(other)[0, 5]


@pytest.mark.parametrize("mode", ["committee", "partitioned"])
def test_the_random_control_asks_one_expert_by_the_row(mode):
    model = KussulCommittee.tiny().set_params(mode=mode, regions=2).control("random").fit(X, Y)
    drawn = model.routing(TEST_X)[model._layer()]
    assert drawn.fixed_k == 1
    assert 40 < int(drawn.load()[0]) < 80
    members = model.member_proba(TEST_X)
    expected = members[np.arange(120), drawn.expert.numpy()] if mode == "committee" else members.mean(axis=1)
    np.testing.assert_allclose(model.predict_proba(TEST_X), expected)
    alone = [int(model.routing(TEST_X[i : i + 1])[model._layer()].expert) for i in range(20)]
    assert alone == drawn.expert[:20].tolist()


def test_draws_are_even_and_follow_nothing():
    rows = np.random.default_rng(0).standard_normal((8000, 3))
    drawn = draw_experts(rows, 4, seed=1)
    np.testing.assert_allclose(np.bincount(drawn) / 8000, 0.25, atol=0.02)  # four standard errors
    np.testing.assert_allclose(
        np.bincount(drawn[rows[:, 0] > 1], minlength=4) / (rows[:, 0] > 1).sum(), 0.25, atol=0.05
    )
    assert (draw_experts(rows, 4, seed=2) != drawn).mean() > 0.7


def test_the_dense_twin_is_one_perceptron_of_all_units():
    model = KussulCommittee.tiny().set_params(mode="partitioned").control("dense").fit(X, Y)
    assert [m.hidden_layer_sizes for m in model.committees_[0].committees_[0]] == [(14,)]
    for name in ("wide", "uniform"):
        assert name in model.exempt
        with pytest.raises(ConfigError, match="no control"):
            model.control(name)


def test_what_is_stored_names_no_type_but_ours(fused):
    assert all(name.startswith("terramoe.") for name in get_untrusted_types(data=dumps(fused)))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"gate": "soft"}, ConfigError),
        ({"mode": "both"}, ConfigError),
        ({"sensors": ((0, 1, 2), (3, 4))}, ConfigError),
        ({"sensors": ((0, 1, 2, 3, 4, 5),)}, ConfigError),
        ({"sensors": ((0, 1, 2, 3, 4, 5), ())}, ConfigError),
        ({"sensors": ((0, 1, 2), (3, 4, 5)), "bands": ((0, 1), (2, 3), (4, 5))}, ConfigError),
        ({"sensors": ((0, 1, 2), (3, 4, 5)), "validation": 0}, ConfigError),
        ({"bands": ((0, 1, 2),)}, ConfigError),
    ],
)
def test_settings_that_cannot_be(settings, error):
    with pytest.raises(error):
        KussulCommittee.tiny().set_params(**settings).fit(X, Y)


def test_data_that_cannot_be():
    with pytest.raises(RoutingError, match="component 2"):
        KussulCommittee.tiny().fit(np.where(np.arange(6) == 2, np.nan, X), Y)
    with pytest.raises(RoutingError, match="1 class"):
        KussulCommittee.tiny().fit(X, np.zeros(160))


# --------------------------------------------------------------------------------------------------------------- claim


def test_lines_in_time_against_an_oracle():
    x = np.array([[np.nan, 1.0, np.nan, np.nan, 4.0], [np.nan] * 5])
    filled = claim.fill_linear(x, np.array([0.0, 1, 2, 6, 7]), np.arange(5.0))
    np.testing.assert_allclose(filled, [[1, 1, 1.5, 3.5, 4], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(claim.fill_mean(x, np.arange(5.0))[0], [0, 1, 2, 3, 4])


def test_the_error_of_restoration_is_that_of_hidden_values_alone():
    """Rows that are constant in time: a line is exact, the date's mean is off by the spread of the rows."""
    rows = np.tile(np.random.default_rng(0).standard_normal((1200, 1)), 12)
    shown = np.where(np.arange(12) == 4, np.nan, rows[1000:])  # what no one saw cannot be judged
    halves = claim.Halves(rows[:1000], np.zeros(1000), shown, np.zeros(200), np.arange(12.0))
    assert claim.restoration_error(halves, "linear", 0) < 1e-12
    assert claim.restoration_error(halves, "mean", 0) == pytest.approx(rows[1000:].std(), rel=0.1)
    assert claim.restoration_error(halves, "som", 0) < 0.3


def test_made_halves_share_no_field_and_fill_nothing():
    (halves,) = claim.made_halves(0)
    assert len(halves.x) == claim.TRAIN
    assert 0.1 < np.isnan(halves.test_x).mean() < 0.7
    assert set(halves.y) == set(halves.test_y) == {0, 1, 2, 3}
    _, _, field, _ = claim.cloudy_year(0)
    west, east = claim._halves(claim.SIZE)
    assert np.argmax(east) - (claim.SIZE - np.argmax(west[0, ::-1])) == claim.GUARD
    assert len(halves.test_y) == (east & ~np.isin(field, field[:, west[0]])).sum()


def test_the_real_claim_says_what_is_missing(monkeypatch, tmp_path):
    claim.real_halves.cache_clear()
    monkeypatch.setenv(claim.FOLDER, str(tmp_path))
    with pytest.raises(DataError, match="missing"):
        claim.REAL_CLAIM.measure("routed", 0)
    monkeypatch.delenv(claim.FOLDER)
    with pytest.raises(DataError, match="no folder"):
        claim.REAL_CLAIM.measure("routed", 0)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '["2015-07-11"]', "7"])
def test_dates_that_are_none(tmp_path, text):
    (tmp_path / "dates.json").write_text(text)
    with pytest.raises(DataError, match="68 dates"):
        claim._days(tmp_path / "dates.json")


def test_the_real_halves():
    claim.real_halves.cache_clear()
    try:
        pairs = claim.real_halves(0)
    except DataError as error:
        pytest.skip(f"the data of the real claim are not here: {error}")
    for halves in pairs:
        assert set(halves.y) == set(halves.test_y) == {2, 3, 4}
        assert halves.x.shape[1] == halves.test_x.shape[1] == len(halves.days)
        assert (np.diff(halves.days) > 0).all()
        assert 0.05 < np.isnan(halves.test_x).mean() < 0.3
