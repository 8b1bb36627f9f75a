"""MEG: the experts' equation, what tasks share, losses, mixed targets, trunks, the claim's world, real sound."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import decimate
from scipy.spatial.distance import jensenshannon
from torch import nn

from terramoe.errors import ConfigError
from terramoe.experiments.claims import meg as claim
from terramoe.moe import Routing
from terramoe.nets.sound_trunks import ClassTrunk, PlaceTrunk, Spectrogram, SqueezedResidual
from terramoe.systems.meg import MEG, Heads, unevenness

OUTPUTS = {"class": 4, "range": 1, "depth": 1}


@pytest.fixture(scope="module")
def table():
    return MEG.tiny_table(120, 0)


@pytest.fixture(scope="module")
def fitted(table):
    return MEG.tiny().fit(*table)


def built(columns=200, targets=3, classes=4, **settings):
    system = MEG.tiny().set_params(**settings)
    system.classes_ = np.arange(classes)
    torch.manual_seed(0)
    return system, system.network(columns, targets)


def numbers(module):
    return sum(p.numel() for p in module.parameters())


# --- experts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", OUTPUTS)
def test_heads_by_numpy(task):
    """The three largest of five softmax weights times linear maps; what is left out is not made up for."""
    torch.manual_seed(1)
    heads = Heads(6, 5, 3, OUTPUTS)
    x = torch.randn(7, 6)
    y, routing = heads(task, x)
    layer = heads.layers[task]
    gate, bank = layer.scorer.linear, layer.bank.experts
    for i, v in enumerate(x.numpy()):
        score = gate.weight.detach().numpy() @ v + gate.bias.detach().numpy()
        p = np.exp(score) / np.exp(score).sum()
        top = np.argsort(-p)[:3]
        answers = [bank[j].weight.detach().numpy() @ v + bank[j].bias.detach().numpy() for j in top]
        np.testing.assert_allclose(y[i].detach().numpy(), p[top] @ np.array(answers), rtol=1e-4, atol=1e-6)
        assert routing.dense()[i].sum().item() == pytest.approx(p[top].sum(), rel=1e-5)
    assert routing.dense().sum(1).max() < 1


def test_dense_twin_is_one_linear_map():
    torch.manual_seed(1)
    heads = Heads(6, 1, 1, OUTPUTS)
    x = torch.randn(7, 6)
    torch.testing.assert_close(heads("class", x)[0], heads.layers["class"].bank.experts[0](x))
    system = MEG().control("dense")
    assert (system.experts, system.top_k) == (1, 1)


def test_no_expert_is_shared_unless_asked_for():
    """In the pools of the paper no task's loss reaches another's experts; in one pool all do."""
    for shared, reached in ((False, {"range"}), (True, set(OUTPUTS))):
        torch.manual_seed(1)
        heads = Heads(6, 5, 3, OUTPUTS, shared=shared)
        heads("range", torch.randn(20, 6))[0].square().sum().backward()
        moved = {
            name for name, layer in heads.layers.items() if any(p.grad is not None for p in layer.bank.parameters())
        }
        assert moved == reached
        gates = {name for name, layer in heads.layers.items() if layer.scorer.linear.weight.grad is not None}
        assert gates == {"range"}


@pytest.mark.parametrize("shared", [False, True])
def test_wide_twin_has_as_many_parameters(shared):
    """Of the paper's size; its gate of one expert has no use and is not counted."""
    _, routed = built(embedding=192, experts=5, top_k=3, shared=shared)
    _, wide = built(embedding=192, experts=5, top_k=3, shared=shared, wide=True)
    idle = sum(numbers(layer.scorer) for layer in wide.heads.layers.values())
    assert numbers(wide.heads) - idle == pytest.approx(numbers(routed.heads), rel=0.05)
    x = torch.randn(4, 200)
    assert all(routing.num_experts == 1 for routing in wide.eval()(x).routings.values())


def test_the_papers_size():
    """9.6 and 7.7 million parameters of the trunks, as the released networks have."""
    system = MEG()
    system.classes_ = np.arange(5)
    network = system.network(80_000, 3)
    assert numbers(network.what) / 1e6 == pytest.approx(9.6, abs=0.05)
    assert numbers(network.where) / 1e6 == pytest.approx(7.7, abs=0.05)


def test_one_pool_stays_one_in_storage(table):
    import skops.io

    X, y = table
    system = MEG.tiny().set_params(shared=True, steps=2).fit(X, y)
    content = skops.io.dumps(system)
    again = skops.io.loads(content, trusted=skops.io.get_untrusted_types(data=content))
    pools = {id(layer.bank) for layer in again.network_.heads.layers.values()}
    assert len(pools) == 1
    np.testing.assert_array_equal(again.predict(X), system.predict(X))


def test_class_and_place_do_not_touch_each_other():
    """Own pools: together or apart, each network gets the same gradient. One pool is what both move."""
    for shared in (False, True):
        _, network = built(shared=shared)
        network(torch.randn(6, 200)).prediction[:, :4].square().sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in network.where.parameters())
        pool = network.heads.layers["range"].bank
        assert any(p.grad is not None and p.grad.any() for p in pool.parameters()) == shared


# --- losses ---------------------------------------------------------------------------------------------------------


def test_losses_are_means_over_the_batch():
    """The released code sums those of range and depth: there a batch twice as large doubles them."""
    system, network = built(balance=0.0)
    network.eval().training = True  # the weights of training, without batch norm's
    x, target = torch.randn(6, 200), torch.rand(6, 3)
    target[:, 0] = torch.arange(6) % 4
    once = system.loss(network(x), target, network)["task"]
    twice = system.loss(network(x.repeat(2, 1)), target.repeat(2, 1), network)["task"]
    torch.testing.assert_close(once, twice)


def test_loss_by_hand():
    system, network = built(balance=0.0)
    network.eval()
    x, target = torch.randn(6, 200), torch.rand(6, 3)
    target[:, 0] = torch.arange(6) % 4
    output = network(x)
    with torch.no_grad():
        network.weights.log_scale.copy_(torch.tensor([0.5, -1.0, -0.3]))
    right = output.prediction[:, :4].log_softmax(1)[torch.arange(6), target[:, 0].long()]
    parts = [-right.mean(), *(output.prediction[:, 4:] - target[:, 1:]).square().mean(0)]
    c2 = torch.exp(2 * network.weights.log_scale)
    network.training = True
    expected = sum(part / (2 * c) + torch.log(1 + c) for part, c in zip(parts, c2, strict=True))
    torch.testing.assert_close(system.loss(output, target, network)["task"], expected)


def test_held_out_rows_are_judged_without_the_learned_weights():
    system, network = built()
    x, target = torch.randn(6, 200), torch.zeros(6, 3)
    found = {}
    for mode in (False, True):
        network.eval().training = mode
        for scale in (-1.0, 2.0):
            nn.init.constant_(network.weights.log_scale, scale)
            found[mode, scale] = float(system.loss(network(x), target, network)["task"].detach())
    assert found[False, -1.0] == found[False, 2.0]
    assert found[True, -1.0] != found[True, 2.0]
    assert found[False, -1.0] <= min(found[True, -1.0], found[True, 2.0])


def routing_of(probs):
    probs = torch.as_tensor(probs, dtype=torch.float64)
    item, expert = torch.meshgrid(torch.arange(len(probs)), torch.arange(probs.shape[1]), indexing="ij")
    flat = item.flatten()
    return Routing(
        probs.log(), probs, flat, expert.flatten(), torch.zeros_like(flat), probs.flatten(), torch.ones_like(flat) > 0
    )


def test_unevenness_rewards_even_use():
    even, two, one = (
        unevenness(routing_of([p, p])) for p in ([0.2] * 5, [0.5, 0.5, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0])
    )
    assert float(even) == pytest.approx(0.0, abs=1e-12)
    assert even < two < one
    swapped = routing_of([[1.0, 0.0], [0.0, 1.0]])
    assert float(unevenness(swapped)) == pytest.approx(0.0, abs=1e-12)  # sure of each, even over all


def test_both_terms_of_the_balance_pull_the_same_way():
    """With the sign of the released code the entropy pulls towards few experts, against the variance."""
    logits = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    q = logits.softmax(1)
    variance, entropy = (q - 1 / 3).square().sum(), torch.special.entr(q).sum()
    terms = variance, entropy, unevenness(routing_of(q))
    even, released, ours = (torch.autograd.grad(term, logits, retain_graph=True)[0] for term in terms)
    assert (even * released).sum() < 0
    torch.testing.assert_close(ours, even - 0.1 * released)


def test_no_balance_loss_unless_asked_for():
    assert MEG().balance == 0
    system, network = built(balance=0.0)
    assert set(system.loss(network(torch.randn(6, 200)), torch.zeros(6, 3), network)) == {"task"}


def test_learning_rate_rises_then_falls():
    system = MEG(steps=150)
    rates = np.array([system.schedule(step) for step in range(150)])
    assert rates.argmax() in (19, 20)
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[19] == 1
    assert (np.diff(rates[:20]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert rates[85] == pytest.approx(0.5)


# --- targets --------------------------------------------------------------------------------------------------------


def test_it_learns_all_three(table, fitted):
    X, y = MEG.tiny_table(200, 1)
    found = fitted.predict(X)
    assert np.mean(found[:, 0] == y[:, 0]) > 0.9
    assert (np.mean((found - y)[:, 1:] ** 2, axis=0) < 0.8 * y[:, 1:].var(axis=0)).all()
    assert fitted.score(X, y) > 0.5
    assert set(fitted.routing(X)) == {"class", "range", "depth"}


def test_spread_of_values_and_none_of_the_class(table, fitted):
    X, _ = table
    std = fitted.predict_std(X)
    assert std.shape == (120, 3)
    assert np.isnan(std[:, 0]).all()
    assert (std[:, 1:] > 0).all()


@pytest.mark.parametrize(
    ("columns", "settings", "layers"),
    [
        ([0], {}, ("class",)),
        ([0, 1], {}, ("class", "value0")),
        ([0, 1, 2, 1], {}, ("class", "value0", "value1", "value2")),
        ([1, 2], {"recognise": False}, ("range", "depth")),
        ([1], {"recognise": False}, ("value0",)),
    ],
)
def test_any_number_of_values_with_or_without_a_class(table, columns, settings, layers):
    X, y = table
    y = y[:, columns[0]] if len(columns) == 1 else y[:, columns]
    system = MEG.tiny().set_params(steps=3, **settings).fit(X, y)
    assert system.predict(X).shape == y.shape
    assert tuple(system.routing(X)) == layers
    std = np.atleast_1d(system.residual_std_)
    assert np.isnan(std).tolist() == [layer == "class" for layer in layers]
    if "class" in layers:
        assert system.predict_proba(X).shape == (len(X), 3)
    else:
        with pytest.raises(ConfigError, match="there is no class"):
            system.predict_proba(X)


def test_classes_are_any_numbers_and_all_are_known_wherever_they_fall(table):
    X, y = table
    y = np.column_stack([np.array([7.0, -2.5, 30.0])[y[:, 0].astype(int)], y[:, 1:]])
    y[5, 0] = 99.0  # one recording, which may be held out
    for seed in range(2):
        system = MEG.tiny().set_params(validation=0.5, random_state=seed, steps=30).fit(X, y)
        np.testing.assert_array_equal(system.classes_, [-2.5, 7.0, 30.0, 99.0])
        assert set(system.predict(X)[:, 0]) <= set(system.classes_)
    assert np.mean(system.predict(X)[:, 0] == y[:, 0]) > 0.8


def test_the_unit_of_a_value_does_not_matter(table):
    """Values are divided by the largest: km or m give the same network."""
    X, y = table
    metres = MEG.tiny().set_params(steps=10).fit(X, y * [1, 1024, 1])
    kilometres = MEG.tiny().set_params(steps=10).fit(X, y)
    np.testing.assert_allclose(metres.predict(X), kilometres.predict(X) * [1, 1024, 1], rtol=1e-5)


# --- trunks ---------------------------------------------------------------------------------------------------------


def test_spectrogram_by_numpy():
    x = np.random.default_rng(0).standard_normal((2, 50))
    found = Spectrogram(16, 5).double()(torch.as_tensor(x)).numpy()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(16) / 16)
    padded = np.pad(x, ((0, 0), (8, 8)))
    frames = np.stack([padded[:, i : i + 16] * window for i in range(0, 51, 5)], axis=2)
    np.testing.assert_allclose(found, np.log(np.abs(np.fft.rfft(frames, axis=1)) + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("samples", [1, 3, 7, 16])
def test_recordings_shorter_than_a_window_and_silence(samples):
    _, network = built(columns=samples, n_fft=16, hop=4)
    prediction = network.eval()(torch.zeros(2, samples)).prediction
    assert prediction.shape == (2, 6)
    assert torch.isfinite(prediction).all()


def test_dilated_pair_reaches_as_far_as_it_should():
    """Kernels of three moments, ``dilation`` and then ``dilation`` + 3 apart."""
    block = SqueezedResidual(2, 2).eval()
    with torch.no_grad():
        for part in block.pair.modules():
            if isinstance(part, nn.Conv1d):
                part.weight.fill_(1.0)
    x = torch.zeros(1, 2, 31)
    x[..., 15] = 1.0
    reached = block.pair(x)[0, 0].detach().nonzero().ravel() - 15
    assert set(reached.tolist()) == {a + b for a in (-2, 0, 2) for b in (-5, 0, 5)}


def test_trunks_gate_channels_and_keep_length():
    torch.manual_seed(0)
    block = SqueezedResidual(32, 3).eval()
    x = torch.randn(2, 32, 9)
    assert block(x).shape == x.shape
    with torch.no_grad():
        block.gate[2].weight.zero_()
    inner = block.before(x)
    torch.testing.assert_close(block(x), 0.5 * block.after(torch.relu(inner + block.pair(inner))))


def test_range_and_depth_share_a_trunk_and_the_class_none():
    torch.manual_seed(0)
    where, what = PlaceTrunk(5, 8, 4, 6, ["range", "depth"]), ClassTrunk(5, 8, 6)
    vectors = where(torch.randn(3, 5, 7))
    assert {name: tuple(vector.shape) for name, vector in vectors.items()} == {"range": (3, 6), "depth": (3, 6)}
    vectors["range"].square().sum().backward()
    assert where.first[0].weight.grad.abs().max() > 0
    assert where.vectors["depth"][0].weight.grad is None
    found = what(torch.randn(3, 5, 7))
    assert found.shape == (3, 6)
    assert (found >= 0).all()


# --- hostile input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n_fft", 1), ("hop", 0), ("width", 0), ("embedding", 0), ("bottleneck", 0), ("experts", 0), ("top_k", 0),
     ("top_k", 4), ("batch", 1), ("balance", -1.0)],
)  # fmt: skip
def test_settings_that_cannot_be(table, setting, value):
    with pytest.raises(ConfigError, match=setting):
        MEG.tiny().set_params(**{setting: value}).fit(*table)


def test_one_recording_left_to_train_on(table):
    X, y = table
    with pytest.raises(ValueError, match="1 sample"):
        MEG.tiny().set_params(validation=0.6).fit(X[:2], y[:2])


def test_missing_samples_and_targets(table):
    X, y = table
    for hurt in (np.nan, np.inf):
        for where in (0, 2):
            targets = y.copy()
            targets[3, where] = hurt
            with pytest.raises(ValueError, match=r"NaN|infinity"):
                MEG.tiny().fit(X, targets)


# --- the claim ------------------------------------------------------------------------------------------------------


def test_divergence_is_jensen_shannons():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.1, 0.8])
    assert claim.divergence(p, q) == pytest.approx(jensenshannon(p, q) ** 2)
    assert claim.divergence(p, p) == pytest.approx(0)


def test_claim_in_miniature(monkeypatch):
    monkeypatch.setattr(claim, "SAMPLES", 64)
    monkeypatch.setattr(claim, "SETTINGS", {**claim.SETTINGS, "steps": 2, "width": 4, "embedding": 5})
    claim.recordings.cache_clear()
    try:
        sound, test = claim.recordings(3)
        assert test.sum() == 16
        assert not set(sound.source[test]) & set(sound.source[~test])
        places = np.column_stack([sound.distance, sound.depth])
        assert len(np.unique(places, axis=0)) == 64  # so no place of the training is in the test
        names = {"accuracy", "range_km", "depth_m"}
        for variant in claim.CLAIM.variants:
            found = claim.CLAIM.measure(variant, 3)
            assert set(found) - {"gate_divergence"} == names
            assert np.isfinite(list(found.values())).all()
        metrics = {statement.metric for statement in claim.CLAIM.statements}
        assert metrics == names | {"gate_divergence"}
    finally:
        claim.recordings.cache_clear()


# --- real sound -----------------------------------------------------------------------------------------------------


def clips(path):
    """Half seconds at 4 kHz without offset, scaled by the recording: (n, 2000)."""
    rate, sound = wavfile.read(path)
    sound = decimate(decimate(sound.astype(np.float64), 4), rate // 16_000)
    sound = (sound - sound.mean()) / sound.std()
    return sound[: len(sound) // 2000 * 2000].reshape(-1, 2000)


def test_real_ships():
    """A smoke test: two recordings of each of two kinds are too few to say what is learned of the kind."""
    folder = Path(os.environ.get("TERRAMOE_DATA", "")) / "geo/deepship"
    if not folder.is_dir():
        pytest.skip("the recordings of ships are not at hand (TERRAMOE_DATA)")
    files = sorted(folder.glob("*/*.wav"))
    sounds = [clips(path) for path in files]
    X = np.concatenate(sounds)
    kind = np.concatenate(
        [np.full(len(s), path.parent.name == "Tanker") for s, path in zip(sounds, files, strict=True)]
    )
    system = MEG(n_fft=256, hop=128, width=8, embedding=16, bottleneck=4, steps=60, learning_rate=1e-2, random_state=0)
    system.fit(X, kind.astype(float), groups=np.arange(len(X)) // 4)
    proba = system.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert np.mean(system.predict(X) == kind) > 0.8  # of recordings it has heard
    assert system.routing(X)["class"].dense().shape == (len(X), 5)
