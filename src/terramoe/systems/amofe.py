"""AMoFE: a mixture of experts for attributes of fused hyperspectral and multispectral patches.

He et al., as Mixture-of-Experts in Remote Sensing: A Survey (2026), arXiv 2604.03342, describes it in a sentence. The
paper could not be read: the wiring is the survey's, all inside is ours.

The two sensors' pixels read each other by cross-attention. What they became is fused, and three experts each look at
one subspace of it: spectral (channels against each other), spatial (neighbourhoods), edge (fixed edge filters). A soft
router weighs all three by what the patch is like and by how busy its texture is.

Shapes: N patches of p x p pixels, W model width, S width of a subspace, K classes. Channels last inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from terramoe.moe import ModuleBank, MoELayer, RouteInput, Routing, TopK, objectives
from terramoe.moe.scorers import MLPScorer
from terramoe.nets import patches_of
from terramoe.nets.cross_attention import BidirectionalCrossAttention
from terramoe.nets.sensors import split_sensors
from terramoe.nets.texture import edge_responses, texture_statistics
from terramoe.systems.base import Batch, Output, System, require_settings
from terramoe.systems.card import Card
from terramoe.tasks import pixel_cross_entropy

STATISTICS = 3  # of one sensor's texture


@dataclass(frozen=True)
class AMoFEConfig:
    """Hyper-parameters. The survey gives none: all defaults are completions.

    Attributes:
        bands, classes: given by the data; bands of the hyperspectral and of the multispectral image.
        patch: side of a patch, odd.
        width: channels of both sensors and of what is fused.
        heads: of the cross-attention.
        subspace: channels of each expert's subspace.
        experts: "spectral", "spatial" or "edge" each; a kind may come twice.
        top_k: experts per patch; all of them in the paper, whose router is soft.
        plain_hidden: hidden channels of one plain convolutional network in the experts' place, for the dense twin.
        texture: whether the router sees texture statistics beside the pooled features.
        router_hidden: hidden width of the router.
        decorrelation: weight of the penalty on experts that contribute the same; 0 switches it off.
    """

    bands: tuple[int, ...]
    classes: int
    patch: int = 11
    width: int = 64
    heads: int = 4
    subspace: int = 64
    experts: tuple[str, ...] = ("spectral", "spatial", "edge")
    top_k: int = 3
    plain_hidden: int | None = None
    texture: bool = True
    router_hidden: int = 32
    decorrelation: float = 0.01

    def __post_init__(self) -> None:
        checks = {
            "bands must be two numbers of at least 1": len(self.bands) == 2 and min(self.bands) >= 1,
            "classes and subspace must be at least 1": min(self.classes, self.subspace) >= 1,
            "router_hidden must be at least 1": self.router_hidden >= 1,
            "patch must be odd and at least 3": self.patch % 2 == 1 and self.patch >= 3,
            "width must be a multiple of heads": min(self.width, self.heads) >= 1 and self.width % self.heads == 0,
            f"experts must be some of {', '.join(EXPERTS)}": bool(self.experts) and set(self.experts) <= set(EXPERTS),
            f"top_k must be in 1..{self.num_experts}": 1 <= self.top_k <= self.num_experts,
            "plain_hidden must be at least 1, or null": self.plain_hidden is None or self.plain_hidden >= 1,
            "decorrelation must be 0 or more": self.decorrelation >= 0,
        }
        require_settings("AMoFEConfig", checks)

    @property
    def num_experts(self) -> int:
        """Experts of the routed layer."""
        return len(self.experts) if self.plain_hidden is None else 1


class AMoFE(System):
    """See the module's docstring."""

    Config = AMoFEConfig
    card = Card(
        name="AMoFE",
        title="AMoFE, fusion classification of hyperspectral and multispectral images (title not read)",
        authors="He et al.",
        year=2025,
        survey_section="3.4",
        survey_reference=49,
        task="pixel classification",
        sensors=("hyperspectral", "multispectral"),
        provenance=("survey",),
        completions=(
            "the paper was not found, nor its title and year: 2025 is a guess, the wiring is the survey's sentence "
            "(arXiv 2604.03342)",
            "modality-guided complementary module: linear map of each sensor, pre-norm cross-attention in both "
            "directions over the pixels of a patch, then one linear map of both",
            "subspaces: one linear map for each expert",
            "spectral expert: channel attention from the mean over the patch; spatial: depth-wise 3 x 3 and dilated "
            "3 x 3; edge: fixed Sobel and Laplace filters, 0 at the border of the data",
            "router: two layers on the mean fused pixel and on spread, gradient energy and entropy of each sensor",
            "decorrelation: mean squared correlation of what the experts contribute, weights included, times 0.01",
            "a missing sensor sees nothing and is read by nobody; statistics of no batch",
        ),
        differences=("no code is released",),
        reported="no figure could be read: the survey gives none",
    )
    conditioning = ("image", "available")
    multi_sensor = True

    def __init__(self, config: AMoFEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.enter = nn.ModuleList(nn.Linear(bands, width) for bands in config.bands)
        self.place = nn.Parameter(0.02 * torch.randn(config.patch**2, width))
        self.attention = BidirectionalCrossAttention(width, config.heads)
        self.fuse = nn.Linear(2 * width, width)
        self.attributes = attribute_layer(config)
        self.leave = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU())
        self.classify = nn.Linear(width, config.classes)

    def forward(self, batch: Batch) -> Output:
        """``image`` (B, bands, H, W), ``valid`` (B, H, W), ``available`` (B, 2, H, W) -> logits (B, K, H, W).

        Extras: ``contributions`` (E, N, p, p, W), what each expert adds.
        """
        patches = patches_of(batch, self.config.patch)
        sensors = split_sensors(patches, self.config.bands)
        valid = patches.valid[..., None]
        fused = torch.where(valid, self._fused(sensors), 0.0)
        context = [texture_statistics(values, seen) for values, seen in sensors] if self.config.texture else []
        mixed, routing, contributions = self._mixture(fused, valid, torch.cat([_mean(fused, valid), *context], dim=1))
        y = torch.where(valid, mixed, 0.0)
        centre = self.config.patch // 2
        logits = self.classify(self.leave(torch.cat([y[:, centre, centre], _mean(y, valid)], dim=1)))
        extras = {"contributions": contributions}
        return Output(patches.to_image(logits), {"attributes": routing}, {"attributes": patches.layout()}, extras)

    def _fused(self, sensors: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What both sensors say of each pixel after reading each other: (N, p, p, W)."""
        side = self.config.patch
        tokens = [
            enter(values.flatten(2).transpose(1, 2)) + self.place
            for enter, (values, _) in zip(self.enter, sensors, strict=True)
        ]
        a, b = self.attention(*tokens, *(seen.flatten(1) for _, seen in sensors))
        return self.fuse(torch.cat([a, b], dim=-1)).unflatten(1, (side, side))

    def _mixture(self, fused: Tensor, valid: Tensor, context: Tensor) -> tuple[Tensor, Routing, Tensor]:
        """Every expert on every patch: the sum (N, p, p, W), the routing, and what each contributes."""
        layer, centre = self.attributes, self.config.patch // 2
        routing = layer.route(RouteInput(context, mask=valid[:, centre, centre, 0]))
        outputs = layer.bank.run_all(torch.cat([fused, valid.to(fused.dtype)], dim=-1))
        parts = outputs * routing.dense().T[..., None, None, None]
        return parts.sum(0), routing, parts

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, and the penalty on experts that contribute the same. ``mask`` (B, H, W) int64, -1 = none."""
        losses = {"task": pixel_cross_entropy(output.prediction, batch["mask"])}
        if self.config.decorrelation > 0 and self.config.num_experts > 1:
            alike = objectives.output_correlation(output.extras["contributions"])
            losses["decorrelation"] = self.config.decorrelation * alike
        return losses

    @classmethod
    def tiny(cls) -> Self:
        """6 bands and 2, 3 classes, patches of 5 x 5, width 8."""
        return cls(AMoFEConfig(bands=(6, 2), classes=3, patch=5, width=8, heads=2, subspace=8, router_hidden=8))

    @classmethod
    def tiny_batch(cls, images: int, seed: int) -> dict[str, Tensor]:
        """Images of 8 bands and 9 x 8 pixels with 3 classes; some have no data, some one sensor only."""
        generator = torch.Generator().manual_seed(seed)
        shape = (images, 9, 8)
        available = torch.rand(images, 2, 9, 8, generator=generator) > 0.2
        return {
            "image": torch.randn(images, 8, 9, 8, generator=generator),
            "valid": torch.rand(shape, generator=generator) > 0.1,
            "mask": torch.randint(-1, 3, shape, generator=generator),
            "available": available | ~available.any(1, keepdim=True),
        }

    @classmethod
    def dense_twin(cls, config: AMoFEConfig, equal: Literal["compute", "parameters"] = "compute") -> AMoFEConfig:
        """One plain convolutional network, as large as what a patch uses and the router, or as all experts.

        A soft router uses all experts, so both twins are nearly the same.
        """
        system = cls(replace(config, plain_hidden=None))
        bank = system.attributes.bank
        size = sum(bank.expert_parameters(e) for e in range(bank.num_experts))
        if equal == "compute":
            router = sum(p.numel() for p in system.attributes.scorer.parameters())
            size = size * config.top_k / bank.num_experts + router
        hidden = round((size - config.width) / (10 * config.width + 1))
        return replace(config, plain_hidden=max(1, hidden), top_k=1)

    @classmethod
    def scaled(cls, config: AMoFEConfig, experts: int, top_k: int) -> AMoFEConfig:
        """The kinds of experts repeat. Fewer choices than experts make the soft router a sparse one."""
        kinds = tuple(config.experts[i % len(config.experts)] for i in range(experts))
        return replace(config, experts=kinds, top_k=top_k, plain_hidden=None)

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The attribute that each expert is for."""
        return self.config.experts if self.config.plain_hidden is None else ("plain",)


def _mean(x: Tensor, valid: Tensor) -> Tensor:
    """x (N, p, p, W), 0 where invalid, valid (N, p, p, 1) -> (N, W)."""
    return x.sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)


def attribute_layer(config: AMoFEConfig) -> MoELayer:
    """The attribute experts behind a soft router. They take (N, p, p, W + 1): the last channel says what is valid."""
    width = config.width
    if config.plain_hidden is None:
        bank = ModuleBank(EXPERTS[kind](width, config.subspace) for kind in config.experts)
    else:
        bank = ModuleBank([PlainExpert(width, config.plain_hidden)])
    seen = width + 2 * STATISTICS * config.texture
    scorer = MLPScorer(seen, config.num_experts, hidden=config.router_hidden)
    return MoELayer(scorer, bank, selector=TopK(config.top_k))


class SpectralExpert(nn.Module):
    """Pixel by pixel, channels scaled by attention from their mean over the patch."""

    def __init__(self, width: int, subspace: int) -> None:
        super().__init__()
        hidden = max(1, subspace // 4)
        self.enter = nn.Linear(width, subspace)
        self.attend = nn.Sequential(nn.Linear(subspace, hidden), nn.ReLU(), nn.Linear(hidden, subspace), nn.Sigmoid())
        self.leave = nn.Linear(subspace, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, p, p, W + 1) -> (n, p, p, W)."""
        x, valid = x[..., :-1], x[..., -1:]
        x = nn.functional.gelu(self.enter(x)) * valid
        return self.leave(x * self.attend(_mean(x, valid))[:, None, None])


class SpatialExpert(nn.Module):
    """Depth-wise 3 x 3 convolution, then a dilated one: what the neighbourhood looks like, channel by channel."""

    def __init__(self, width: int, subspace: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, subspace)
        self.near = nn.Conv2d(subspace, subspace, 3, padding=1, groups=subspace)
        self.far = nn.Conv2d(subspace, subspace, 3, padding=2, dilation=2, groups=subspace)
        self.leave = nn.Linear(subspace, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, p, p, W + 1) -> (n, p, p, W)."""
        x, valid = x[..., :-1], x[..., -1:]
        maps, keep = (self.enter(x) * valid).movedim(-1, 1), valid.movedim(-1, 1)
        maps = nn.functional.gelu(self.near(maps)) * keep
        return self.leave(nn.functional.gelu(self.far(maps)).movedim(1, -1))


class EdgeExpert(nn.Module):
    """Fixed edge filters on every channel, then a mixture of their responses."""

    def __init__(self, width: int, subspace: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, subspace)
        self.mix = nn.Linear(3 * subspace, subspace)
        self.leave = nn.Linear(subspace, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, p, p, W + 1) -> (n, p, p, W)."""
        x, valid = x[..., :-1], x[..., -1] > 0
        edges = edge_responses(self.enter(x).movedim(-1, 1), valid).movedim(1, -1)
        return self.leave(nn.functional.gelu(self.mix(edges)))


class PlainExpert(nn.Module):
    """3 x 3 convolution and linear map: what the dense twin has in the experts' place."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, hidden, 3, padding=1)
        self.leave = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, p, p, W + 1) -> (n, p, p, W)."""
        return self.leave(nn.functional.gelu(self.convolution(x[..., :-1].movedim(-1, 1))).movedim(1, -1))


EXPERTS: dict[str, type[nn.Module]] = {"spectral": SpectralExpert, "spatial": SpatialExpert, "edge": EdgeExpert}
