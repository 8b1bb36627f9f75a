"""Loyola's boxes: weights against the formula, networks that learn alone, equal steps, and what the controls are."""

import numpy as np
import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.moe.scorers.boxes import axis_weights, box_weights
from terramoe.systems.loyola import COLUMNS, OZONE_AXES, OZONE_BOXES, BestSteps, BoxNetworks, LoyolaOzone


@pytest.fixture(scope="module")
def table():
    return LoyolaOzone.tiny_table(240, 0)


@pytest.fixture(scope="module")
def soft(table):
    return LoyolaOzone.tiny().fit(*table)


def ozone_like(rows, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 15))
    X[:, 10], X[:, 13], X[:, 14] = rng.uniform(0, 50, rows), rng.uniform(0, 90, rows), rng.integers(0, 2, rows)
    return X, X[:, 0] + X[:, 13] / 50


# ---------------------------------------------------------------- the gate


def test_weights_along_an_axis_follow_the_formula():
    u = np.linspace(15, 75, 25)
    found = axis_weights(torch.from_numpy(u), (15.0, 45.0, 75.0), 15.0, 7.5).numpy()
    expected = np.clip((15 + 7.5 - np.abs(u[:, None] - [15, 45, 75])) / 15, 0, 1)
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found[u == 30], [[0.5, 0.5, 0]])
    np.testing.assert_allclose(found[u == 45], [[0, 1, 0]])


def test_beyond_the_outermost_centres_their_boxes_go_on():
    found = axis_weights(torch.tensor([-1e9, 0.0, 1e9]), (15.0, 45.0, 75.0), 15.0, 7.5)
    assert found.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_without_overlap_the_nearest_centre_takes_all_ties_to_the_lower():
    assert axis_weights(torch.tensor([0.0, 0.5, 1.0, 0.6]), (0.0, 1.0), 0.5, 0.0).tolist() == [
        [1, 0], [1, 0], [0, 1], [0, 1]]  # fmt: skip


def test_twelve_boxes_are_the_product_of_the_axes_in_the_order_of_their_names():
    X, _ = ozone_like(200)
    found = box_weights(torch.from_numpy(X), OZONE_AXES)
    assert found.shape == (200, len(OZONE_BOXES)) == (200, 12)
    np.testing.assert_allclose(found.sum(dim=1), 1)
    one = np.zeros((1, 15))
    one[0, [COLUMNS.index("aerosol"), COLUMNS.index("latitude"), COLUMNS.index("view")]] = 1, 80, 5
    assert (
        OZONE_BOXES[int(box_weights(torch.from_numpy(one), OZONE_AXES).argmax())] == "rural, high latitude, normal view"
    )


def test_the_network_gates_scaled_rows_as_the_axes_say_for_raw_ones():
    X, y = ozone_like(300)
    system = LoyolaOzone(steps=1, random_state=0).fit(X, y)
    routing = system.routing(X)["boxes"]
    np.testing.assert_allclose(routing.dense().numpy(), box_weights(torch.from_numpy(X), OZONE_AXES), atol=1e-5)
    assert system.expert_names("boxes") == OZONE_BOXES


def test_a_hard_gate_takes_the_box_of_greatest_weight_whole(table):
    hard = LoyolaOzone.tiny().set_params(gate="hard").fit(*table)
    soft = LoyolaOzone.tiny().fit(*table)
    X = table[0]
    whole, shares = hard.routing(X)["boxes"].dense(), soft.routing(X)["boxes"].dense()
    assert whole.amax(dim=1).tolist() == pytest.approx([1.0] * len(X))
    assert (whole.argmax(dim=1) == shares.argmax(dim=1)).all()


def test_hard_and_soft_have_the_same_networks(table, soft):
    hard = LoyolaOzone.tiny().set_params(gate="hard").fit(*table)
    for a, b in zip(soft.network_.parameters(), hard.network_.parameters(), strict=True):
        assert torch.equal(a, b)
    inside = (soft.routing(table[0])["boxes"].dense() > 0).sum(dim=1).numpy() == 1
    np.testing.assert_allclose(soft.predict(table[0])[inside], hard.predict(table[0])[inside], atol=1e-6)
    assert not np.allclose(soft.predict(table[0])[~inside], hard.predict(table[0])[~inside], atol=1e-3)


# ---------------------------------------------------------------- the networks


def test_the_bank_is_twelve_tanh_networks_by_one_batched_product():
    network = BoxNetworks(OZONE_AXES, 15, 20, 1, "soft")
    bank, x = network.layer.bank, torch.randn(12, 7, 15)
    first, offset, last, shift = bank.weights()
    expected = torch.baddbmm(shift[:, None], torch.tanh(torch.baddbmm(offset[:, None], x, first)), last)
    torch.testing.assert_close(bank.run_padded(x), expected)
    assert sum(p.numel() for p in bank.parameters()) == 12 * (15 * 20 + 20 + 20 + 1)


def test_the_mixture_is_the_weighted_sum_of_the_networks():
    X, y = ozone_like(100)
    system = LoyolaOzone(steps=20, random_state=0).fit(X, y)
    x = system._rows(X)
    with torch.no_grad():
        each = system.network_.layer.bank.run_all(x)[..., 0].T
    expected = (system.routing(X)["boxes"].dense() * each).sum(dim=1).double().numpy()[:, None]
    np.testing.assert_allclose(system.predict(X), system.y_scaler_.inverse_transform(expected)[:, 0], atol=1e-5)


def test_the_fused_gradient_of_tanh_is_that_of_autograd():
    torch.manual_seed(0)
    network, x = BoxNetworks((), 4, 6, 1, "soft"), torch.randn(30, 4)
    network(x).prediction.square().sum().backward()
    fused = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network.layer.bank.run_padded(x[None]).square().sum().backward()
    for a, b in zip(fused, network.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)


def test_a_network_never_sees_a_row_outside_of_its_box(table):
    X, y = table
    right = X[:, 0] > 0.6  # beyond the overlap, which ends at 0.5: held by the second box alone
    other = np.where(right, y + 100, y)
    plain, changed = (_weights(X, target) for target in (y, other))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, changed, strict=True))
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(plain, changed, strict=True))


def _weights(X, y):
    """Of the two networks, without scaling of y, which all rows take part in."""

    class Plain(LoyolaOzone):
        def scalers(self):
            x_scaler, y_scaler = super().scalers()
            return x_scaler, y_scaler.set_params(with_mean=False, with_std=False)

    system = Plain(((0, (-1.0, 1.0), 1.0, 0.5),), hidden=3, steps=20, validation=0.0, random_state=0)
    return list(system.fit(X, y).network_.parameters())


def test_a_box_of_few_rows_takes_as_many_steps_as_any():
    """One row in the second box: learnt to the last digit, though the other box has fifty times as many."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.uniform(-2, -0.6, (50, 1)), [[1.0]]])
    y = np.append(np.sin(X[:50, 0]), 7.0)
    system = LoyolaOzone(
        ((0, (-1.0, 1.0), 1.0, 0.5),), hidden=4, steps=1000, learning_rate=0.02, validation=0.0, random_state=0
    ).fit(X, y)
    assert system.predict([[1.0]])[0] == pytest.approx(7, abs=0.01)


def test_a_box_without_rows_is_trained_on_all(table):
    X, y = table
    system = LoyolaOzone.tiny().set_params(axes=((0, (-1.0, 1.0, 50.0), 30.0, 1.0),)).fit(X, y + 40)
    assert np.isfinite(system.predict([[60.0, 0, 0]])).all()
    assert abs(system.predict([[60.0, 0, 0]])[0] - 40) < 10


def test_each_network_keeps_its_own_best_step():
    network = BoxNetworks(((0, (-1.0, 1.0), 1.0, 0.5),), 1, 2, 1, "soft")
    bank, x = network.layer.bank, torch.tensor([[-1.5], [1.5]])
    inside, best = torch.eye(2, dtype=torch.bool), BestSteps(bank)

    def say(*answers):
        with torch.no_grad():
            bank.w_out_EHD.zero_()
            bank.b_out_ED.copy_(torch.tensor(answers)[:, None])

    for step, answers in enumerate([(3.0, 0.2), (0.1, 2.0), (1.0, 1.0)], start=1):
        say(*answers)
        best.look(step, x, torch.zeros(2, 1), inside)
    best.restore()
    assert best.step.tolist() == [2, 1]
    assert bank.b_out_ED[:, 0].tolist() == pytest.approx([0.1, 0.2])


# ---------------------------------------------------------------- the controls


def test_dense_is_one_network_and_wide_is_as_large_as_all():
    X, y = ozone_like(60)
    sizes = {}
    for name in ("routed", "dense", "wide"):
        system = LoyolaOzone(steps=1).control(name).fit(X, y)
        sizes[name] = sum(p.numel() for p in system.network_.parameters())
    assert sizes["dense"] == 15 * 20 + 20 + 20 + 1
    assert sizes["routed"] == 12 * sizes["dense"]
    assert sizes["wide"] == sizes["routed"] - 11  # it has one offset of the output instead of twelve


def test_uniform_networks_see_all_rows_and_random_ones_their_share(table):
    X = table[0]
    uniform, random = (LoyolaOzone.tiny().control(name).fit(*table) for name in ("uniform", "random"))
    assert torch.allclose(uniform.routing(X)["boxes"].dense(), torch.tensor(0.5))
    drawn = random.routing(X)["boxes"].dense()
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    assert 0.35 < float(drawn[:, 0].mean()) < 0.65
    assert torch.equal(random.routing(X[7:9])["boxes"].dense(), drawn[7:9])  # the draw goes with the row
    assert torch.equal(random.network_.members(random._rows(X)), drawn > 0)
    assert uniform.network_.members(uniform._rows(X)).all()


# ---------------------------------------------------------------- hostile input


@pytest.mark.parametrize(
    "axis",
    [
        (0, (1.0, 0.0), 1.0, 0.5),  # not rising
        (0, (), 1.0, 0.5),
        (0, (0.0, 10.0), 1.0, 0.5),  # a gap between the boxes
        (0, (0.0, 1.0), 0.0, 0.5),
        (0, (0.0, 1.0), 1.0, -0.5),
        (9, (0.0, 1.0), 1.0, 0.5),  # no such column
        (-1, (0.0, 1.0), 1.0, 0.5),
        (0.5, (0.0, 1.0), 1.0, 0.5),
        (0, (0.0, 1.0), 1.0),
        "latitude",
    ],
)
def test_an_axis_that_cannot_be_is_refused(table, axis):
    with pytest.raises(ConfigError):
        LoyolaOzone.tiny().set_params(axes=(axis,)).fit(*table)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("gate", "learned"), ("hidden", 0), ("steps", 0), ("batch", 0), ("learning_rate", 0), ("validation", 1.0)],
)
def test_a_setting_that_cannot_be_is_named(table, setting, value):
    with pytest.raises(ConfigError, match=setting):
        LoyolaOzone.tiny().set_params(**{setting: value}).fit(*table)


def test_axes_may_come_as_lists_from_a_file(table):
    listed = LoyolaOzone.tiny().set_params(axes=[[0, [-1.0, 1.0], 1.0, 0.5]]).fit(*table)
    np.testing.assert_array_equal(listed.predict(table[0]), LoyolaOzone.tiny().fit(*table).predict(table[0]))
