"""The mixture density head against torch's distributions."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from terramoe.errors import ConfigError
from terramoe.nets.mixture_density import (
    MixtureDensityHead,
    likeliest_mean,
    log_density,
    mixture_mean,
    mixture_variance,
    variances,
)


def made(covariance, targets=4, components=3, rows=7):
    """A head, its mixture in float64, and torch's distribution of the same."""
    torch.manual_seed(0)
    head = MixtureDensityHead(5, targets, components, covariance).double()
    mixture = head.unpack(head(3 * torch.randn(rows, 5, dtype=torch.float64)))
    if covariance == "full":
        parts = MultivariateNormal(mixture.mean, scale_tril=mixture.factor)
    else:
        parts = Independent(Normal(mixture.mean, mixture.factor), 1)
    return head, mixture, MixtureSameFamily(Categorical(logits=mixture.log_weight), parts)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("targets", [1, 4])
def test_density_and_moments_are_those_of_torch(covariance, targets):
    _, mixture, law = made(covariance, targets)
    target = torch.randn(7, targets, dtype=torch.float64)
    torch.testing.assert_close(log_density(mixture, target), law.log_prob(target))
    torch.testing.assert_close(mixture_mean(mixture), law.mean)
    torch.testing.assert_close(mixture_variance(mixture), law.variance)
    torch.testing.assert_close(variances(mixture), law.component_distribution.variance)


def test_variance_is_not_that_of_the_transposed_factor():
    """The released code's intervals use L'L, while its likelihood uses LL'."""
    _, mixture, _ = made("full")
    transposed = mixture.factor.square().sum(-2)
    assert (variances(mixture) - transposed).abs().max() > 0.1


def test_factor_is_lower_triangular_and_no_direction_has_less_variance_than_the_floor():
    head, mixture, _ = made("full")
    assert not mixture.factor.triu(1).any()
    least = torch.linalg.eigvalsh(mixture.factor @ mixture.factor.mT).amin()
    assert head.floor * (1 - 1e-9) <= least < 0.1
    for covariance in ("full", "diagonal"):
        head, _, _ = made(covariance)
        bare = head.unpack(torch.zeros(1, sum(head.sizes), dtype=torch.float64))
        torch.testing.assert_close(variances(bare), torch.full((1, 3, 4), head.floor, dtype=torch.float64))


def test_every_packed_number_counts_and_once():
    for covariance in ("full", "diagonal"):
        head, _, _ = made(covariance)
        packed = torch.rand(2, sum(head.sizes), dtype=torch.float64, requires_grad=True)  # components that overlap
        log_density(head.unpack(packed), torch.ones(2, 4, dtype=torch.float64)).sum().backward()
        assert (packed.grad != 0).all()
        assert torch.autograd.gradcheck(
            lambda p, head=head: log_density(head.unpack(p), torch.ones(2, 4, dtype=torch.float64)), packed
        )


def test_rows_do_not_see_each_other_and_one_row_keeps_its_shape():
    """The released code drops the dimension of a batch of one row."""
    head, mixture, _ = made("full")
    packed = torch.randn(5, sum(head.sizes), dtype=torch.float64)
    together = likeliest_mean(head.unpack(packed))
    alone = torch.cat([likeliest_mean(head.unpack(packed[i : i + 1])) for i in range(5)])
    assert together.shape == (5, 4)
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert likeliest_mean(mixture._replace(log_weight=torch.zeros_like(mixture.log_weight))).equal(mixture.mean[:, 0])


def test_likeliest_follows_the_weight_and_not_the_density():
    _, mixture, _ = made("full")
    chosen = mixture.log_weight.argmax(-1)
    torch.testing.assert_close(likeliest_mean(mixture), torch.stack([mixture.mean[i, c] for i, c in enumerate(chosen)]))


def test_far_targets_and_large_features_stay_finite():
    """In float32 the factorisation of the released code fails here."""
    torch.manual_seed(1)
    head = MixtureDensityHead(5, 20, 5)
    features = (1e3 * torch.randn(4, 5)).requires_grad_()
    found = log_density(head.unpack(head(features)), torch.full((4, 20), 1e3))
    found.sum().backward()
    assert found.isfinite().all()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"targets": 0}, {"components": 0}, {"covariance": "round"}, {"floor": 0.0}, {"width": 0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        MixtureDensityHead(**{"width": 3, "targets": 2, **settings})
