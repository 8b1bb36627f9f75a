"""Light scattered up and down in layers: the two-stream approximation, vectorised over everything but the layers."""

from __future__ import annotations

import numpy as np


def layer_sources(path: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(..., L) integral of exp(-path) over optical depth (..., L); the path (..., L + 1) is linear in each layer."""
    top, change = path[..., :-1], np.diff(path, axis=-1)
    small = np.abs(change) < 1e-6
    mean = np.where(small, 1 - change / 2, -np.expm1(-change) / np.where(small, 1, change))
    return depth * np.exp(-top) * mean


def two_stream(
    depth: np.ndarray,
    single: np.ndarray,
    asymmetry: np.ndarray,
    beam: np.ndarray,
    slant: np.ndarray,
    sun: np.ndarray,
    albedo: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse fluxes up and down at the L + 1 edges of the layers, (..., L + 1) each, for an irradiance of the sun of
    1.

    Eddington's closure: Two-stream approximations to radiative transfer in planetary atmospheres: a unified description
    of existing methods and a new improvement, 1980, doi:10.1175/1520-0469(1980)037<0630:TSATRT>2.0.CO;2. The equations
    are discretised by the midpoint rule in each layer, which keeps flux exactly where nothing absorbs, and solved by
    one sweep up (reflectance of all below) and one down.

    Args:
        depth, single, asymmetry: (N, W, L) optical depth, single-scattering albedo and asymmetry, from the top down.
        beam: (N, W, L) integral of direct sunlight over each layer's optical depth. slant: (N, W, L + 1) its path.
        sun: (N,) cosine of the sun's zenith angle. albedo: (N,) of the Lambertian ground.
    """
    half = depth / 2
    gain = half * (7 - single * (4 + 3 * asymmetry)) / 4
    loss = -half * (1 - single * (4 - 3 * asymmetry)) / 4
    upwards = np.clip((2 - 3 * asymmetry * sun[:, None, None]) / 4, 0, 1)
    up_source, down_source = upwards * single * beam, (1 - upwards) * single * beam
    layers = depth.shape[-1]
    reflect = np.broadcast_to(albedo[:, None], depth.shape[:-1])
    emit = (albedo * sun)[:, None] * np.exp(-slant[..., -1])  # the sunlit ground
    edges, steps = [(reflect, emit)], []
    for i in reversed(range(layers)):  # up = reflect * down + emit, at each edge from the ground up
        a, b, s, t = gain[..., i], loss[..., i], up_source[..., i], down_source[..., i]
        feed = (1 - a) * reflect + b
        denominator = 1 + a - b * reflect - b * feed / (1 + a)
        alpha = (1 - a + b**2 / (1 + a)) / denominator
        beta = (b * emit + t + b * ((1 - a) * emit + s) / (1 + a)) / denominator
        reflect, emit = (feed * alpha + b) / (1 + a), (feed * beta + (1 - a) * emit + s) / (1 + a)
        edges.append((reflect, emit))
        steps.append((alpha, beta))
    down = [np.zeros(depth.shape[:-1])]
    for alpha, beta in reversed(steps):
        down.append(alpha * down[-1] + beta)
    up = [r * f + e for (r, e), f in zip(reversed(edges), down, strict=True)]
    return np.stack(up, axis=-1), np.stack(down, axis=-1)
