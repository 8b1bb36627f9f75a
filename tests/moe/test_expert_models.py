"""Models trained apart: balanced clusters, a router by distance, and mixtures of probabilities."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from terramoe.errors import RoutingError
from terramoe.moe.conversion.expert_models import ClusterRouter, MixedModels, balanced_clusters

F, E, C = 3, 4, 5


def items(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def make_models(seed=0):
    torch.manual_seed(seed)
    return [nn.Linear(F, C).double() for _ in range(E)]


def make_mixture(k=2, temperature=0.7):
    return MixedModels(make_models(), ClusterRouter(items(E, F, seed=5), k, temperature))


# clusters


@given(st.integers(1, 25), st.integers(0, 10**6), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_sizes_differ_by_at_most_one(count_items, seed, doubles, data):
    count = data.draw(st.integers(1, count_items))
    features = items(count_items, 2, seed=seed)
    if doubles:
        features = features.round()
    centres, label = balanced_clusters(features, count, seed=seed)
    sizes = torch.bincount(label, minlength=count)
    assert sizes.shape == (count,)
    assert sizes.max() - sizes.min() <= 1
    assert centres.shape == (count, 2)
    for d in range(count):
        close(centres[d], features[label == d].mean(0))


def total(features, label, centres):
    return (features - centres[label]).square().sum()


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_the_best_balanced_ones_for_the_centres(seed):
    features = items(7, 2, seed=seed)
    centres, label = balanced_clusters(features, 3, seed=seed)  # converged: labels fit the final centres
    every = (torch.tensor(a) for a in itertools.product(range(3), repeat=7))
    allowed = [a for a in every if sorted(torch.bincount(a, minlength=3).tolist()) == [2, 2, 3]]
    least = min(total(features, a, centres) for a in allowed)
    close(total(features, label, centres), least)


def test_blobs_are_found_and_the_seed_decides():
    blob = torch.arange(E).repeat(10)
    features = 20 * torch.eye(E, dtype=torch.float64)[blob] + 0.1 * items(40, E)
    label = balanced_clusters(features, E).label
    assert len(set(zip(label.tolist(), blob.tolist(), strict=True))) == E
    state = torch.get_rng_state()
    unclear = items(60, F)
    first, again, other = (balanced_clusters(unclear, E, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.label, again.label)
    assert torch.equal(first.centres, again.centres)
    assert not torch.equal(first.label, other.label)
    assert torch.equal(torch.get_rng_state(), state)


def test_more_iterations_never_raise_the_cost():
    better = 0
    for seed in range(4):
        features, costs = items(50, F, seed=seed), []
        for n in range(1, 8):
            centres, label = balanced_clusters(features, E, iterations=n, seed=seed)
            costs.append(total(features, label, centres).item())
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(costs))
        better += costs[-1] < costs[0] - 1e-6
    assert better >= 2


def test_unequal_blobs_are_cut_to_equal_sizes():
    features = torch.cat([torch.zeros(9, 1), torch.full((1, 1), 100.0)])
    assert torch.bincount(balanced_clusters(features, 2).label).tolist() == [5, 5]


def test_far_from_the_origin_is_the_same():
    features = items(40, F)
    near, far = balanced_clusters(features, E), balanced_clusters(features + 1e6, E)
    assert torch.equal(near.label, far.label)
    torch.testing.assert_close(far.centres - 1e6, near.centres, rtol=0, atol=1e-8)


# router


@pytest.mark.parametrize("k", [1, 2, E])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_weights_follow_the_formula(k, temperature):
    centres, x = items(E, F, seed=5), items(20, F)
    routing = ClusterRouter(centres, k, temperature)(x)
    kernel = torch.exp(-(x[:, None] - centres).square().sum(-1) / temperature)
    p = kernel / kernel.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.probs, p, rtol=1e-9, atol=1e-12)
    top = p.topk(k).indices
    want = torch.zeros_like(p).scatter(1, top, p.gather(1, top))
    close(routing.dense(), want / want.sum(-1, keepdim=True))
    assert routing.num_choices == k


def test_temperature_ends():
    centres, x = items(E, F, seed=5), items(20, F)
    nearest = torch.cdist(x, centres).argmin(-1)
    cold, warm = (ClusterRouter(centres, E, t)(x).dense() for t in (1e-6, 1e9))
    close(cold, torch.eye(E, dtype=torch.float64)[nearest])
    torch.testing.assert_close(warm, torch.full_like(warm, 1 / E), rtol=1e-6, atol=1e-7)


def test_far_and_tied_items_stay_finite_and_go_low():
    router = ClusterRouter(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), 1, 0.1)
    routing = router(torch.tensor([[0.0, 0.0], [0.0, -1e4], [1e4, 0.0]]))
    assert routing.weight.tolist() == [1.0, 1.0, 1.0]
    assert routing.expert.tolist() == [0, 0, 0]
    assert routing.probs.isfinite().all()
    half = ClusterRouter(torch.tensor([[1.0], [-1.0]]), 2)(torch.zeros(1, 1))
    assert half.dense().tolist() == [[0.5, 0.5]]


def test_router_has_no_parameters_and_is_saved():
    router = ClusterRouter(items(E, F))
    assert not list(router.parameters())
    other = ClusterRouter(torch.zeros(E, F, dtype=torch.float64))
    other.load_state_dict(router.state_dict())
    assert torch.equal(other(items(9, F)).dense(), router(items(9, F)).dense())
    assert ClusterRouter(torch.zeros(2, 2).bfloat16())(torch.ones(1, 2).bfloat16()).weight.dtype == torch.float32


# mixture


@pytest.mark.parametrize("k", [1, 2, E])
def test_the_mixture_is_a_distribution_of_probabilities(k):
    mixture, x = make_mixture(k), items(20, F)
    y, routing = mixture(x)
    close(y.sum(1), torch.ones(20, dtype=torch.float64))
    assert (y >= 0).all()
    each = torch.stack([model(x).softmax(1) for model in mixture.models], dim=1)
    close(y, torch.einsum("te,tec->tc", routing.dense(), each))
    if k > 1:  # a mixture of logits is another thing
        logits = torch.einsum("te,tec->tc", routing.dense(), torch.stack([m(x) for m in mixture.models], dim=1))
        assert not torch.allclose(y, logits.softmax(1), atol=1e-4)


def test_one_choice_is_the_model_of_the_nearest_cluster():
    mixture, x = make_mixture(1), items(20, F)
    nearest = torch.cdist(x, mixture.router.centres).argmin(-1)
    want = torch.stack([mixture.models[int(d)](row).softmax(0) for d, row in zip(nearest, x, strict=True)])
    close(mixture(x)[0], want)


def test_equal_models_mix_to_themselves():
    model = nn.Linear(F, C).double()
    mixture, x = MixedModels([model] * E, ClusterRouter(items(E, F), E, 5.0)), items(9, F)
    close(mixture(x)[0], model(x).softmax(1))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Conv2d(2, C, 1).double(), []

    def forward(self, x):
        self.seen.append(x.shape[0])
        return self.net(x)


def test_images_are_mixed_by_features_of_their_own_and_models_run_on_their_items_only():
    models = [Counting() for _ in range(E)]
    mixture = MixedModels(models, ClusterRouter(10 * torch.eye(E, dtype=torch.float64), 1))
    features = 10 * torch.eye(E, dtype=torch.float64)[[0, 2, 2, 0, 2]]
    images = items(5, 2, 3, 4)
    y, routing = mixture(images, features)
    assert [m.seen for m in models] == [[2], [], [3], []]
    assert routing.expert.tolist() == [0, 2, 2, 0, 2]
    close(y[1], models[2].net(images[1:2]).softmax(1)[0])
    assert y.shape == (5, C, 3, 4)
    close(y.sum(1), torch.ones(5, 3, 4, dtype=torch.float64))


def test_masked_items_run_nowhere_and_harm_nobody():
    mixture, x = make_mixture(2), items(6, F)
    clean, mask = mixture(x)[0], torch.tensor([True, False, True, True, False, True])
    x[~mask] = torch.nan
    y, routing = mixture(x, mask=mask)
    assert (y[~mask] == 0).all()
    close(y[mask], clean[mask])
    assert set(routing.item.tolist()) == {0, 2, 3, 5}


def test_gradients_reach_models_and_inputs():
    mixture = make_mixture(2)
    x = items(3, F).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: mixture(z)[0], (x,))
    mixture(x)[0][:, 0].sum().backward()
    used = set(mixture(x)[1].expert.tolist())
    assert {d for d, m in enumerate(mixture.models) if m.weight.grad is not None} == used


def test_large_logits_stay_a_distribution():
    mixture = make_mixture(2)
    with torch.no_grad():
        for model in mixture.models:
            model.weight.mul_(1e5)
    y = mixture(items(8, F))[0]
    close(y.sum(1), torch.ones(8, dtype=torch.float64))


def test_models_of_their_own_regions_beat_one_model():
    torch.manual_seed(0)
    x = torch.rand(240, 1, dtype=torch.float64) * 4 - 2
    y = (torch.floor(x[:, 0]).long()) % 2  # classes alternate from region to region: no line separates them
    centres, label = balanced_clusters(x, 4)

    def fit(rows):
        model = nn.Linear(1, 2).double()
        optimiser = torch.optim.LBFGS(model.parameters(), max_iter=50)

        def closure():
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            return loss

        optimiser.step(closure)
        return model

    mixture = MixedModels([fit(label == d) for d in range(4)], ClusterRouter(centres, 1))
    apart = (mixture(x)[0].argmax(1) == y).double().mean()
    alone = (fit(label >= 0)(x).argmax(1) == y).double().mean()
    assert apart > 0.9
    assert alone < 0.7


# hostile input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: balanced_clusters(items(3, 2), 4), "4 clusters of 3 items"),
        (lambda: balanced_clusters(items(3, 2), 0), "0 clusters"),
        (lambda: balanced_clusters(items(3, 2), 2, iterations=0), "0 iterations"),
        (lambda: balanced_clusters(items(3), 2), r"features of shape \(3,\)"),
        (lambda: balanced_clusters(torch.zeros(0, 2), 1), "features of shape"),
        (lambda: balanced_clusters(torch.tensor([[math.nan], [1.0]]), 1), "finite features"),
        (lambda: ClusterRouter(items(3), 1), "centres of shape"),
        (lambda: ClusterRouter(torch.full((2, 2), math.inf), 1), "finite centres"),
        (lambda: ClusterRouter(items(3, 2), 4), "k = 4 with 3 experts"),
        (lambda: ClusterRouter(items(3, 2), 0), "k = 0"),
        (lambda: ClusterRouter(items(3, 2), 1, 0.0), "temperature 0.0"),
        (lambda: ClusterRouter(items(3, 2), 1, math.nan), "temperature nan"),
        (lambda: ClusterRouter(items(3, 2), 1)(items(5, 3)), r"expected \(items, 2\)"),
        (lambda: ClusterRouter(items(3, 2), 1)(items(5, 2, 2)), r"expected \(items, 2\)"),
        (lambda: ClusterRouter(items(3, 2), 1)(torch.tensor([[math.nan, 1.0]])), "1 of 1 items"),
        (lambda: MixedModels([], ClusterRouter(items(3, 2))), "0 models for 3 clusters"),
        (lambda: MixedModels(make_models(), ClusterRouter(items(3, 2))), "4 models for 3 clusters"),
        (lambda: make_mixture()(items(3, F), items(2, F)), "3 inputs with 2 rows"),
        (lambda: make_mixture()(items(0, F)), "no item to run"),
        (lambda: make_mixture()(items(2, F), mask=torch.zeros(2, dtype=torch.bool)), "no item to run"),
        (lambda: make_mixture()(items(2, F), mask=torch.ones(3, dtype=torch.bool)), "there are 2 items"),
        (
            lambda: MixedModels(
                [nn.Linear(F, 2).double(), nn.Linear(F, 3).double()], ClusterRouter(items(2, F), 2, 100.0)
            )(items(4, F)),
            "model 1 gives logits",
        ),
        (lambda: MixedModels([nn.Flatten(0)] * 2, ClusterRouter(items(2, F), 1))(items(4, F)), "gives logits"),
    ],
)
def test_bad_input_is_one_error_of_ours(make, message):
    with pytest.raises(RoutingError, match=message):
        make()
