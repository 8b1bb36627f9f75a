"""Scorers and links: formulas, noise only in training, gradients, float32 routers, bad input."""

import math

import pytest
import torch
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe import RouteInput, links
from terramoe.moe.scorers import (
    AttributeScorer,
    BinaryCodeScorer,
    CosineScorer,
    EmbeddedKeyScorer,
    FixedNoiseScorer,
    FrozenScorer,
    GaussianScorer,
    GumbelScorer,
    HierarchicalScorer,
    JitterScorer,
    LinearScorer,
    MLPScorer,
    NoisyScorer,
    PerKeyScorer,
    PrototypeScorer,
    ZeroScorer,
    smooth_step,
)

D, E, T = 5, 4, 7
EVERY = {
    "linear": lambda: LinearScorer(D, E, bias=True),
    "cosine": lambda: CosineScorer(D, E, projected=6),
    "mlp": lambda: MLPScorer(D, E, hidden=6),
    "prototype": lambda: PrototypeScorer(D, E),
    "euclidean": lambda: PrototypeScorer(D, E, metric="euclidean", temperature=0.5),
    "gaussian": lambda: GaussianScorer(D, E),
    "hierarchical": lambda: HierarchicalScorer(D, 2, 2),
    "per key": lambda: PerKeyScorer("task", [LinearScorer(D, E) for _ in range(3)]),
    "embedded": lambda: EmbeddedKeyScorer("task", 3, E),
    "embedded with item": lambda: EmbeddedKeyScorer("task", 3, E, dim=D),
    "attributes": lambda: AttributeScorer("attributes", 8, E),
    "code": lambda: BinaryCodeScorer(E, 2),
    "code per item": lambda: BinaryCodeScorer(E, 2, dim=D),
    "noisy": lambda: NoisyScorer(LinearScorer(D, E), D, E),
    "fixed noise": lambda: FixedNoiseScorer(LinearScorer(D, E), 1 / E),
    "gumbel": lambda: GumbelScorer(LinearScorer(D, E)),
    "jitter": lambda: JitterScorer(LinearScorer(D, E), 0.1),
    "frozen": lambda: FrozenScorer(LinearScorer(D, E)),
}
NOISY = ("noisy", "fixed noise", "gumbel", "jitter")
BLIND = ("embedded", "attributes", "code")  # they look at no item


def make(name, dtype=torch.float32):
    torch.manual_seed(0)
    return EVERY[name]().to(dtype)


def batch(dtype=torch.float32, items=T):
    generator = torch.Generator().manual_seed(1)
    keys = {
        "task": torch.arange(items) % 3,
        "attributes": torch.randn(items, 8, generator=generator, dtype=dtype),
    }
    return RouteInput(torch.randn(items, D, generator=generator, dtype=dtype), keys=keys)


@pytest.mark.parametrize("name", EVERY)
def test_shape_and_determinism_in_evaluation(name):
    """P23."""
    scorer = make(name).eval()
    first, second = scorer(batch()).logits, scorer(batch()).logits
    assert first.shape == (T, E)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", NOISY)
def test_noise_in_training_only(name):
    scorer = make(name).train()
    assert not torch.equal(scorer(batch()).logits, scorer(batch()).logits)
    torch.testing.assert_close(scorer.eval()(batch()).logits, scorer.scorer(batch()).logits)


@pytest.mark.parametrize("name", EVERY)
def test_items_do_not_see_each_other(name):
    scorer, inp = make(name).eval(), batch()
    part = RouteInput(inp.x[:3], keys={k: v[:3] for k, v in inp.keys.items()})
    torch.testing.assert_close(scorer(inp).logits[:3], scorer(part).logits)


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_items_get_float32_logits(name):
    """P27."""
    scorer, inp = make(name), batch()
    half = RouteInput(inp.x.bfloat16(), keys=inp.keys)
    assert scorer(half).logits.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer(inp).logits.dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in EVERY if n not in NOISY])
def test_gradients_by_finite_differences(name):
    scorer, inp = make(name, torch.float64).eval(), batch(torch.float64, 4)
    names = [n for n, p in scorer.named_parameters() if p.requires_grad]
    values = [p.detach().clone().requires_grad_() for p in scorer.parameters() if p.requires_grad]
    x = inp.x.clone().requires_grad_(name not in BLIND)

    def probs(x, *values):
        parameters = dict(zip(names, values, strict=True))
        moved = RouteInput(x, keys=inp.keys)
        return links.softmax(torch.func.functional_call(scorer, parameters, (moved,)).logits)

    assert torch.autograd.gradcheck(probs, (x, *values))


@pytest.mark.parametrize("name", [n for n in EVERY if n not in (*BLIND, "per key", "embedded with item")])
def test_a_wrong_width_is_named(name):
    with pytest.raises(RoutingError, match=r"channels, the router expects 5"):
        make(name)(RouteInput(torch.randn(3, D + 1)))


@pytest.mark.parametrize("name", ["per key", "embedded", "attributes"])
def test_a_missing_key_is_named(name):
    with pytest.raises(RoutingError, match=r"is missing.*Fix: pass keys"):
        make(name)(RouteInput(torch.randn(3, D)))


def test_keys_out_of_range_are_named():
    inp = RouteInput(torch.randn(2, D), keys={"task": torch.tensor([0, 3]), "attributes": torch.zeros(2, 3)})
    for name in ("per key", "embedded"):
        with pytest.raises(RoutingError, match="0 to 3.*Fix: use 0 to 2"):
            make(name)(inp)
    with pytest.raises(RoutingError, match="expected \\(items, 8\\)"):
        make("attributes")(inp)


def test_cosine_is_the_angle():
    """The released router of Tutel: normalised projection times exp(log 2), capped at 100."""
    scorer, x = make("cosine"), torch.randn(3, D)
    rows = scorer.projection(x)
    expected = F.cosine_similarity(rows[:, None], scorer.experts[None], dim=-1) * 2.0
    torch.testing.assert_close(scorer(RouteInput(x)).logits, expected)
    with torch.no_grad():
        scorer.log_scale.fill_(50.0)
    assert scorer(RouteInput(x)).logits.abs().max() <= 100.001


def test_gaussian_logits_are_log_densities():
    scorer, x = make("gaussian", torch.float64), torch.randn(6, D, dtype=torch.float64)
    with torch.no_grad():
        scorer.log_std.normal_()
        scorer.log_prior.normal_()
    normal = torch.distributions.Normal(scorer.mean, scorer.log_std.exp())
    expected = normal.log_prob(x[:, None]).sum(-1) + scorer.log_prior.log_softmax(0)
    torch.testing.assert_close(scorer(RouteInput(x)).logits, expected)


def test_euclidean_prototypes_are_squared_distances():
    scorer, x = make("euclidean", torch.float64), torch.randn(6, D, dtype=torch.float64)
    expected = -torch.cdist(x, scorer.prototypes).square() / 0.5
    torch.testing.assert_close(scorer(RouteInput(x)).logits, expected)


def test_hierarchical_probabilities_are_products_along_the_path():
    scorer, inp = make("hierarchical"), batch()
    top, lower = scorer.top(inp).logits.softmax(-1), scorer.lower(inp).logits.unflatten(1, (2, 2)).softmax(-1)
    expected = (top[:, :, None] * lower).flatten(1)
    logits = scorer(inp).logits
    torch.testing.assert_close(links.softmax(logits), expected)
    torch.testing.assert_close(logits.logsumexp(1), torch.zeros(T))


def test_per_key_uses_that_keys_scorer():
    scorer, inp = make("per key"), batch()
    logits = scorer(inp).logits
    for item in range(T):
        torch.testing.assert_close(logits[item], scorer.scorers[item % 3](inp).logits[item])


def test_a_frozen_router_gets_no_gradient_but_its_items_do():
    scorer = make("frozen")
    x = torch.randn(3, D, requires_grad=True)
    scorer(RouteInput(x)).logits.sum().backward()
    assert all(p.grad is None for p in scorer.parameters())
    assert x.grad.abs().sum() > 0
    assert "scorer.linear.weight" in scorer.state_dict()


def test_gumbel_noise_samples_the_softmax():
    torch.manual_seed(0)
    scorer = GumbelScorer(ZeroScorer(2)).train()
    with torch.no_grad():
        logits = torch.tensor([0.0, math.log(3.0)])
        scorer.scorer.forward = lambda inp: type(ZeroScorer(2)(inp))(logits.expand(4000, 2))
        wins = scorer(RouteInput(torch.zeros(4000, 1))).logits.argmax(1).float().mean()
    assert float(wins) == pytest.approx(0.75, abs=0.03)


def test_smooth_step_is_once_differentiable():
    t = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    y = smooth_step(t)
    assert y.tolist() == pytest.approx([0, 0, 0.5, 1, 1])
    (slope,) = torch.autograd.grad(y.sum(), t)
    assert slope.tolist() == pytest.approx([0, 0, 1.5, 0, 0])


@pytest.mark.parametrize(("experts", "whole"), [(4, True), (8, True), (5, False)])
def test_binary_codes_keep_their_mass_only_for_powers_of_two(experts, whole):
    torch.manual_seed(0)
    scorer = BinaryCodeScorer(experts, 2).double()
    mass = scorer.code_mass(RouteInput(torch.zeros(3, 1, dtype=torch.float64)))
    if whole:
        torch.testing.assert_close(mass, torch.ones(3, dtype=torch.float64))
    else:
        assert (mass < 0.9).all()


def test_binary_codes_use_at_most_k_experts_once_every_code_is_decided():
    """Trap 15: |z| >= gamma / 2 is needed; before, more experts have weight."""
    torch.manual_seed(0)
    scorer = BinaryCodeScorer(8, 2)
    inp = RouteInput(torch.zeros(1, 1))
    assert (links.softmax(scorer(inp).logits) > 0).sum() == 8
    with torch.no_grad():
        scorer.z.copy_(torch.tensor([[0.5, -0.5, 0.7], [-3.0, 0.6, 0.5]]))
    q = links.softmax(scorer(inp).logits)[0]
    assert q.nonzero().flatten().tolist() == [5, 6]
    torch.testing.assert_close(q[[5, 6]], scorer.w.softmax(0))
    q[5].backward()
    assert scorer.w.grad.isfinite().all()
    assert scorer.z.grad.isfinite().all()


def test_sparsemax_agrees_with_entmax_and_is_a_projection():
    """P16."""
    entmax = pytest.importorskip("entmax")
    z = torch.randn(50, 6, dtype=torch.float64) * 2
    p = links.sparsemax(z)
    torch.testing.assert_close(p, entmax.sparsemax(z, dim=-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(p.sum(-1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(links.sparsemax(z + 7.0), p)
    assert (p == 0).any()
    assert torch.autograd.gradcheck(links.sparsemax, (z[:5].clone().requires_grad_(),))
    torch.testing.assert_close(links.sparsemax(torch.tensor([[0.2, -torch.inf, 0.0]])), torch.tensor([[0.6, 0.0, 0.4]]))


def test_tempered_softmax_sharpens():
    z = torch.tensor([[1.0, 0.0]])
    assert links.Tempered(0.1)(z)[0, 0] > 0.999
    assert links.Tempered(1e6)(z)[0, 0] == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(RoutingError, match="temperature 0"):
        links.Tempered(0)
