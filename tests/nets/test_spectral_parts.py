"""Spectral stem, tokeniser, filters in the frequency domain, dynamic convolution, wavelengths."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from terramoe.errors import ConfigError, DataError
from terramoe.nets.dynamic_conv import DynamicDepthwiseConv
from terramoe.nets.spectral_filter import AXES, BandMaskFilter, RadialFilter
from terramoe.nets.spectral_stem import HetConv, SpectralStem
from terramoe.nets.tokeniser import LearnedTokeniser
from terramoe.nets.wavelengths import WavelengthEmbedding, encode_wavelengths

PARTS = {
    "stem": lambda: SpectralStem(6, 8, band_kernel=3),
    "tokeniser": lambda: LearnedTokeniser(6, 3, 5),
    "band mask, channels": lambda: BandMaskFilter(6, "channels"),
    "band mask, height": lambda: BandMaskFilter(6, "height", 4),
    "band mask, width": lambda: BandMaskFilter(6, "width", 4),
    "radial": lambda: RadialFilter(6, 4, 2),
    "dynamic": lambda: DynamicDepthwiseConv(6, 3),
}
FILTERS = [name for name in PARTS if name.startswith(("band", "radial"))]


def randomised(module, seed=0):
    """The module in float64 with random parameters: at the start a filter is the identity and hides everything."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def maps(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# what all of them promise


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("training", [True, False])
def test_a_map_does_not_depend_on_its_batch_mates(name, training):
    part = randomised(PARTS[name]()).train(training)
    x, valid = maps(4, 6, 5, 7), torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(2)) < 0.7
    torch.testing.assert_close(part(x, valid)[1:2], part(x[1:2], valid[1:2]))


@pytest.mark.parametrize("name", PARTS)
def test_what_stands_in_an_invalid_pixel_changes_nothing(name):
    part, x = randomised(PARTS[name]()), maps(2, 6, 5, 7)
    valid = torch.ones(2, 5, 7).bool()
    valid[0, 1:3, 2], valid[1] = False, False  # some pixels of one map, all of the other
    parameters = list(part.parameters())
    results = []
    for value in (0.0, 1e6, math.nan):
        held = torch.where(valid[:, None], x, value).requires_grad_()
        y = part(held, valid)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), [*parameters, held])))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert two.isfinite().all()
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)
    if name != "tokeniser":
        assert (results[0][0].movedim(1, -1)[~valid] == 0).all()
    assert (results[0][0][1] == 0).all()


@pytest.mark.parametrize("name", PARTS)
def test_an_all_valid_mask_is_no_mask(name):
    part, x = randomised(PARTS[name]()), maps(2, 6, 4, 5)
    torch.testing.assert_close(part(x, torch.ones(2, 4, 5).bool()), part(x))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (3, 3), (15, 15), (4, 7)])
def test_maps_of_any_size_pass_and_every_parameter_learns(name, size):
    part = randomised(PARTS[name]())
    y = part(maps(3, 6, *size))
    assert y.isfinite().all()
    if name != "tokeniser":
        assert y.shape[-2:] == size
    (y * maps(*y.shape, seed=4)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
    if size == (15, 15):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_those_of_finite_differences(name):
    part = randomised(PARTS[name]())
    valid = torch.ones(1, 3, 4).bool()
    valid[0, 0, 1] = False
    torch.autograd.gradcheck(lambda x, *_: part(x, valid), (maps(1, 6, 3, 4).requires_grad_(), *part.parameters()))


# stem


@pytest.mark.parametrize(("bands", "kernel"), [(1, 1), (2, 1), (3, 3), (4, 3), (8, 7), (9, 9), (30, 9)])
def test_the_kernel_is_clipped_to_the_bands_and_the_patch_of_one_pixel_is_seen(bands, kernel):
    torch.manual_seed(0)
    stem = SpectralStem(bands, 16)
    assert stem.spectral.kernel_size == (kernel, 3, 3)
    x = torch.randn(4, bands, 1, 1, requires_grad=True)
    y = stem(x)
    assert y.shape == (4, 16, 1, 1)
    assert not torch.allclose(y[0], y[1])  # a norm over a single value would give the same for all
    (y * torch.randn(y.shape)).sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_the_stem_is_the_published_stack_up_to_the_norm():
    stem = randomised(SpectralStem(12, 16, filters=4))
    x = maps(2, 12, 5, 4)
    y = nn.functional.conv3d(x[:, None], stem.spectral.weight, stem.spectral.bias, padding=(0, 1, 1)).reshape(
        2, 16, 5, 4
    )
    y = F.group_norm(y, 1, stem.spectral_norm.weight, stem.spectral_norm.bias).relu()
    y = F.conv2d(y, stem.mix.spatial.weight, stem.mix.spatial.bias, padding=1, groups=16) + F.conv2d(
        y, stem.mix.pointwise.weight, stem.mix.pointwise.bias
    )
    y = F.group_norm(y, 1, stem.mix_norm.weight, stem.mix_norm.bias).relu()
    torch.testing.assert_close(stem(x), y)


def test_nodata_beside_a_map_is_the_border_of_a_smaller_map():
    stem, x = randomised(SpectralStem(12, 16)), maps(2, 12, 6, 8)
    valid = torch.zeros(2, 6, 8).bool()
    valid[:, 1:, :5] = True
    torch.testing.assert_close(stem(x, valid)[:, :, 1:, :5], stem(x[:, :, 1:, :5]))


@pytest.mark.parametrize(("channels", "out", "groups"), [(1088, 64, 16), (8, 64, 8), (9, 64, 1), (24, 36, 12)])
def test_groups_are_the_largest_that_divide_both(channels, out, groups):
    assert HetConv(channels, out).groups == groups


# tokeniser


def test_tokens_are_weighted_means_of_valid_pixels():
    part, x = randomised(LearnedTokeniser(4, 2, 3)), maps(1, 4, 3, 3)
    valid = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    rows = x[0].permute(1, 2, 0)[valid[0]]
    weights = (rows @ part.attend.weight.T).softmax(0)
    torch.testing.assert_close(part(x, valid)[0], weights.T @ rows @ part.value.weight.T)


def test_tokens_do_not_depend_on_the_order_of_pixels():
    part, x = randomised(LearnedTokeniser(4, 2, 3)), maps(2, 4, 3, 4)
    torch.testing.assert_close(part(x.flip(2).transpose(2, 3)), part(x))


# filters


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (6, 8)])
def test_a_filter_starts_as_the_identity_and_one_step_ends_that(name, size):
    """The released HyperTransXNet follows its transform by the inverse at once, which is the identity for good."""
    torch.manual_seed(0)
    part, x = PARTS[name](), torch.randn(2, 6, *size)
    assert torch.equal(part(x), x)
    optimiser = torch.optim.SGD(part.parameters(), 0.1)
    part(x).square().sum().backward()
    optimiser.step()
    assert (part(x) - x).abs().max() > 1e-3


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("size", [7, 8])
def test_a_band_mask_is_a_circular_convolution_with_its_own_impulse_response(axis, size):
    shape = [1, size, size, size]
    part, x = randomised(BandMaskFilter(size, axis, 5)), maps(*shape)
    dim = AXES[axis]
    response = torch.fft.irfft(part.mask(size), n=size)  # (channels or 1, size)
    expected = torch.zeros_like(x)
    for shift in range(size):
        weight = response[:, shift] if axis == "channels" else response[:, shift, None, None]
        expected += x.roll(shift, dim) * weight
    torch.testing.assert_close(part(x), expected)


@pytest.mark.parametrize("size", [6, 9])
def test_a_mask_with_a_point_per_frequency_keeps_one_wave_and_removes_another(size):
    part = BandMaskFilter(1, "width", size // 2 + 1).double()
    step = torch.arange(size, dtype=torch.float64) * 2 * math.pi / size
    slow, fast = torch.cos(step), torch.cos(2 * step)
    with torch.no_grad():
        part.change[..., 2:, 0] = -1  # from the third point on: the second wave of 6, not of 9, lies on a point
    y = part((slow + fast).view(1, 1, 1, -1))[0, 0, 0]
    gain = part.mask(size)[0].real
    torch.testing.assert_close(y, gain[1] * slow + gain[2] * fast)
    assert gain[1] > 0.85
    assert gain[2] < 0.25


def test_points_of_the_mask_lie_at_the_frequencies_of_the_channels():
    part = randomised(BandMaskFilter(10, "channels"))
    torch.testing.assert_close(part.mask(10)[0], 1 + torch.view_as_complex(part.change[0].detach()))


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 6), (1, 1)])
def test_the_radial_filter_is_the_full_transform_times_a_real_gain(size):
    part, x = randomised(RadialFilter(4, 5, 2)), maps(2, 4, *size)
    rows, columns = torch.fft.fftfreq(size[0]).double(), torch.fft.fftfreq(size[1]).double()
    band = (torch.sqrt(rows[:, None] ** 2 + columns**2) / math.sqrt(0.5) * 5 + 1e-6).long().clamp(max=4)
    gain = (2 / (1 + torch.exp(-part.logit)))[:, band].repeat_interleave(2, 0)
    y = torch.fft.ifft2(torch.fft.fft2(x) * gain)
    assert y.imag.abs().max() < 1e-12
    torch.testing.assert_close(part(x), y.real)


def test_a_radial_filter_of_a_turned_map_is_the_turned_map():
    part, x = randomised(RadialFilter(2, 6)), maps(1, 2, 7, 7)
    torch.testing.assert_close(part(x.rot90(1, (2, 3))), part(x).rot90(1, (2, 3)))


def test_a_hole_does_not_ring():
    """A constant with a hole stays constant whatever happens to high frequencies, where 0 in the hole would spread."""
    part = RadialFilter(1, 8)
    with torch.no_grad():
        part.logit[:, 1:] = -20
    valid = torch.ones(1, 9, 9).bool()
    valid[0, 3:5, 4:6] = False
    y = part(torch.full((1, 1, 9, 9), 3.0), valid)
    torch.testing.assert_close(y, 3.0 * valid[:, None])


def striped(seed):
    """Smooth scenes, and the same with an offset for each column: (6, 2, 33, 31)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(6, 2, 5, 5, generator=generator)
    clean = F.interpolate(coarse, (33, 31), mode="bicubic", align_corners=True)
    return clean, clean + 0.7 * torch.randn(6, 2, 1, 31, generator=generator)


def noisy_spectra(seed):
    """Smooth spectra of 61 bands, and the same with noise in each band: (2, 61, 10, 10)."""
    generator = torch.Generator().manual_seed(seed)
    clean = F.interpolate(torch.randn(200, 1, 8, generator=generator), 61, mode="linear", align_corners=True)
    clean = clean.view(2, 10, 10, 61).permute(0, 3, 1, 2)
    return clean, clean + 0.5 * torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize(
    ("part", "make", "factor"),
    [
        (lambda: RadialFilter(2), striped, 2.4),  # 2.8 on another scene; the smooth part of the stripes must stay
        (lambda: BandMaskFilter(2, "width"), striped, 3.0),  # 3.6
        (lambda: BandMaskFilter(61, "channels"), noisy_spectra, 3.5),  # 4.3
    ],
)
def test_a_fitted_filter_suppresses_stripes_and_noise_of_scenes_it_has_not_seen(part, make, factor):
    part = part()
    optimiser = torch.optim.Adam(part.parameters(), 0.1)
    clean, noisy = make(0)
    for _ in range(80):
        optimiser.zero_grad()
        F.mse_loss(part(noisy), clean).backward()
        optimiser.step()
    clean, noisy = make(1)
    with torch.no_grad():
        assert F.mse_loss(noisy, clean) / F.mse_loss(part(noisy), clean) > factor


@pytest.mark.parametrize("name", FILTERS)
def test_filters_take_and_give_low_precision(name):
    x = torch.randn(1, 6, 4, 5).bfloat16()
    y = PARTS[name]()(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, x)


# dynamic convolution


def test_a_single_kernel_is_an_ordinary_depthwise_convolution():
    part, x = randomised(DynamicDepthwiseConv(6, 1)), maps(2, 6, 5, 4)
    torch.testing.assert_close(part(x), F.conv2d(x, part.weight[0][:, None], part.bias, padding=1, groups=6))


def test_each_map_is_convolved_with_its_own_mixture():
    part, x = randomised(DynamicDepthwiseConv(4, 3, reduction=2)), maps(3, 4, 6, 5)
    kernels = part.kernel(x)
    assert (kernels[0] - kernels[1]).abs().max() > 1e-2
    low, high = part.weight.amin(0), part.weight.amax(0)  # weights that sum to 1 stay between
    assert ((kernels >= low - 1e-12) & (kernels <= high + 1e-12)).all()
    for image, kernel, y in zip(x, kernels, part(x), strict=True):
        torch.testing.assert_close(y, F.conv2d(image, kernel[:, None], part.bias, padding=1, groups=4))


def test_the_kernel_is_made_of_valid_pixels_only():
    part, x = randomised(DynamicDepthwiseConv(4, 3)), maps(1, 4, 1, 1).expand(1, 4, 6, 6)
    valid = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.8
    torch.testing.assert_close(part.kernel(x * valid[:, None], valid), part.kernel(x))  # a mean of equals is the same


# wavelengths


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 15_000), min_size=2, max_size=12, unique=True))
def test_different_wavelengths_have_different_codes(nanometres):
    codes = encode_wavelengths(torch.tensor(nanometres), 16)
    distance = torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    assert distance.min() > 1e-2
    torch.testing.assert_close(codes.square().sum(1), torch.full((len(nanometres),), 8.0))  # sines beside cosines


def test_close_bands_have_closer_codes():
    codes = encode_wavelengths(torch.tensor([660.0, 665.0, 705.0, 1600.0]), 32)
    distance = (codes - codes[0]).norm(dim=1)
    assert (distance.diff() > 0).all()


def test_bands_without_a_wavelength_share_one_learned_vector():
    torch.manual_seed(0)
    part = WavelengthEmbedding(8)
    y = part((490.0, 0.0, 0.0))
    assert torch.equal(y[1], part.none)
    assert torch.equal(y[2], part.none)
    torch.testing.assert_close(y[0], encode_wavelengths(torch.tensor(490.0), 8))
    y.sum().backward()
    torch.testing.assert_close(part.none.grad, torch.full((8,), 2.0))


# hostile input


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: SpectralStem(0, 8), ConfigError),
        (lambda: SpectralStem(5, 8, band_kernel=4), ConfigError),
        (lambda: SpectralStem(5, 8)(torch.zeros(1, 6, 3, 3)), DataError),
        (lambda: HetConv(4, 4, 0), ConfigError),
        (lambda: LearnedTokeniser(4, 0, 4), ConfigError),
        (lambda: BandMaskFilter(4, "depth"), ConfigError),
        (lambda: BandMaskFilter(4, "width", 1), ConfigError),
        (lambda: RadialFilter(4, 3, 3), ConfigError),
        (lambda: RadialFilter(4, 0), ConfigError),
        (lambda: DynamicDepthwiseConv(4, size=2), ConfigError),
        (lambda: WavelengthEmbedding(7), ConfigError),
        (lambda: WavelengthEmbedding(8)([-1.0]), DataError),
        (lambda: WavelengthEmbedding(8)([math.nan]), DataError),
    ],
)
def test_impossible_settings_and_inputs_are_named(wrong, error):
    with pytest.raises(error, match="Fix:"):
        wrong()
