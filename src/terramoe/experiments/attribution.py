"""Attributions of a score to the bands and pixels of one image, by captum, which is the extra ``explain``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe import MoELayer, Pairs, RouteInput

Method = Literal["integrated-gradients", "saliency", "grad-cam", "occlusion"]
METHODS: tuple[str, ...] = get_args(Method)
Score = Callable[[nn.Module, Tensor], Tensor]  # (system, normalised images (N, bands, H, W)) -> (N,)


@dataclass(frozen=True)
class ExplainSettings:
    """How a score is explained.

    Attributes:
        method: integrated-gradients (Axiomatic Attribution for Deep Networks, 2017, arXiv 1703.01365), saliency
            (absolute gradient; Deep Inside Convolutional Networks, 2013, arXiv 1312.6034), grad-cam (2016, arXiv
            1610.02391; places only, no bands) or occlusion (Visualizing and Understanding Convolutional Networks,
            2013, arXiv 1311.2901).
        steps: of the path of integrated gradients.
        patch: side of an occluded patch, in pixels.
        band_group: neighbouring bands that are occluded together.
        layer: module whose activations Grad-CAM weighs; the last convolution that the score depends on, but for the
            one that gives the classes, if not named.
    """

    method: Method = "integrated-gradients"
    steps: int = 64
    patch: int = 16
    band_group: int = 10
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"there is no method '{self.method}'", where="explain", fix=f"use {', '.join(METHODS)}")
        for name in ("steps", "patch", "band_group"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="explain", fix="use at least 1")


def load_captum() -> ModuleType:
    """``captum.attr``; ConfigError if it is not installed."""
    try:
        from captum import attr
    except ImportError as error:
        raise ConfigError(
            "the package captum is missing", where="explain", fix="pip install 'terramoe[explain]'"
        ) from error
    return attr


def attribute(
    system: nn.Module,
    score: Score,
    image: Tensor,
    classes: int,
    settings: ExplainSettings,
    *,
    seen: Tensor | None = None,
    sensors: Sequence[int] = (),
) -> tuple[Tensor, float | None]:
    """Attributions to one image.

    Integrated gradients follow a path from 0, the mean spectrum, to the image. A router that changes its choice on the
    way makes the score jump, and no gradient sees a jump. So the choices of the image are held on the whole path.

    Args:
        image: (1, bands, H, W), normalised.
        classes: of the system; a convolution with as many outputs is taken to give them.
        seen: (bands, H, W) bool, where each band has data; nothing is attributed elsewhere. None: everywhere.
        sensors: number of bands of each sensor; bands of two are never occluded together.

    Returns:
        (bands, H, W), or (1, H, W) for grad-cam: of occlusion, what the score loses with a piece, shared out among its
        pixels with data. And the score at the start of the path under the held choices, for integrated gradients only.

    Raises:
        ConfigError: captum is missing; or a layer for grad-cam is not there, or none can be found.
    """
    seen = torch.ones_like(image[0], dtype=torch.bool) if seen is None else seen
    made, start = _attribute(system, score, image, classes, settings, seen, sensors)
    # Of grad-cam one map for all bands: a place counts if any sensor has it.
    return torch.where(seen if len(made) == len(seen) else seen.any(0, keepdim=True), made, 0.0), start


def _attribute(
    system: nn.Module,
    score: Score,
    image: Tensor,
    classes: int,
    settings: ExplainSettings,
    seen: Tensor,
    sensors: Sequence[int],
) -> tuple[Tensor, float | None]:
    captum = load_captum()
    x = image.clone().requires_grad_()
    if settings.method == "integrated-gradients":
        held = hold_choices(system, lambda copied: score(copied, image))
        # One image at a time: the held choices are for the items of one image.
        made = captum.IntegratedGradients(lambda images: score(held, images)).attribute(
            x, n_steps=settings.steps, internal_batch_size=1
        )
        with torch.no_grad():
            return made.detach()[0], float(score(held, torch.zeros_like(image)))

    def forward(images: Tensor) -> Tensor:
        return score(system, images)

    if settings.method == "saliency":
        return captum.Saliency(forward).attribute(x).detach()[0], None
    if settings.method == "occlusion":
        pieces = _pieces(image, settings.band_group, settings.patch, sensors)
        with torch.no_grad():
            made = captum.FeatureAblation(forward).attribute(image, feature_mask=pieces[None])[0]
        sharers = torch.bincount(pieces.flatten(), weights=seen.flatten().double())
        return made / sharers.clamp(min=1).to(made.dtype)[pieces], None  # a piece's loss, shared out among its pixels
    layer = grad_cam_layer(system, score, image, classes, settings.layer)
    made = captum.LayerGradCam(forward, layer).attribute(x, relu_attributions=True).detach()
    return captum.LayerAttribution.interpolate(made, tuple(image.shape[-2:]), "bilinear")[0], None


def _pieces(image: Tensor, band_group: int, patch: int, sensors: Sequence[int] = ()) -> Tensor:
    """(bands, H, W) int64: ids from 0 of what is occluded together."""
    bands, height, width = image.shape[1:]
    within = torch.cat([torch.arange(count) for count in sensors or (bands,)])
    band = (within % band_group == 0).long().cumsum(0) - 1  # every sensor starts a new group
    row, column = torch.arange(height) // patch, torch.arange(width) // patch
    across = int(column[-1]) + 1
    return ((band[:, None, None] * (row[-1] + 1)) + row[:, None]) * across + column


def hold_choices(system: nn.Module, run: Callable[[nn.Module], object]) -> nn.Module:
    """A copy of a system whose routed layers always choose the experts that they chose in ``run``.

    The weights of the chosen follow the scores, as ever.
    """
    system = copy.deepcopy(system)
    layers = [module for module in system.modules() if isinstance(module, MoELayer)]
    made: dict[MoELayer, list[Pairs]] = {layer: [] for layer in layers}

    def keep(layer: MoELayer, _: object, result: tuple) -> None:
        routing = result[1]
        made[layer].append(Pairs(routing.item, routing.expert, routing.rank, routing.fixed_k))

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        run(system)
    for hook, layer in zip(hooks, layers, strict=True):
        hook.remove()
        if made[layer]:
            layer.selector = _Held(layer.selector, made[layer])
    return system


class _Held(nn.Module):
    """Gives the recorded pairs of each call in turn, over and over: a layer may run several times in a pass."""

    def __init__(self, inner: object, pairs: list[Pairs]) -> None:
        super().__init__()
        self.needs, self.couples_items = inner.needs, inner.couples_items
        self.pairs, self.calls = pairs, 0

    def forward(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Whatever the scores are."""
        self.calls += 1
        return self.pairs[(self.calls - 1) % len(self.pairs)]


def grad_cam_layer(system: nn.Module, score: Score, image: Tensor, classes: int, name: str | None) -> nn.Module:
    """The named module, or the last convolution that the score depends on and that does not itself give the classes."""
    modules = dict(system.named_modules())
    if name is not None:
        if name not in modules:
            raise ConfigError(f"there is no layer '{name}'", where="grad-cam", fix=f"use one of {', '.join(modules)}")
        return modules[name]
    ran: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda conv, _, out: ran.append((conv, out)))
        for module in modules.values()
        if isinstance(module, nn.Conv2d)
    ]
    total = score(system, image.clone().requires_grad_()).sum()
    for hook in hooks:
        hook.remove()
    slopes = torch.autograd.grad(total, [out for _, out in ran], allow_unused=True) if ran else ()
    used = [conv for (conv, _), slope in zip(ran, slopes, strict=True) if slope is not None and slope.any()]
    inner = [conv for conv in used if conv.out_channels != classes]
    if not inner:
        raise ConfigError("there is no convolution that the score depends on", where="grad-cam", fix="name --layer")
    return inner[-1]
