"""CPLP-DMoEs: candidate pseudo-labels pruning and dual mixture of experts, for hyperspectral images and LiDAR.

Kong, Yu, Cheng, Chen, Wang, IEEE Transactions on Geoscience and Remote Sensing (2025), doi:10.1109/TGRS.2025.3543498.

A patch is classified in four steps: several heads mix the spectral bands, each with soft weights of its own (dense
mixture of bands); a small convolutional network per sensor makes one vector of it; a gate chooses two of six ways to
fuse the two vectors (*routed*); a linear layer gives the classes. Patches without label keep a set of candidate
classes, from which the unlikely and those that similar patches contradict are pruned.

Shapes: N patches of p x p pixels, W model width, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from terramoe.moe import LinearScorer, ModuleBank, MoELayer, NoisyScorer, TopK, objectives, weighing
from terramoe.nets import MaskedGroupNorm, patches_of
from terramoe.nets.fusion_operators import FUSIONS, PairScorer, fusion_bank
from terramoe.nets.sensors import split_sensors
from terramoe.systems.base import Batch, Output, System, require_settings
from terramoe.systems.card import Card
from terramoe.tasks import IGNORE, pixel_cross_entropy
from terramoe.tasks.partial_labels import partial_label_loss, pruned_candidates

NORM_GROUPS = 4


@dataclass(frozen=True)
class CPLPDMoEsConfig:
    """Hyper-parameters. The abstract gives none: all defaults are completions.

    Attributes:
        bands: of the hyperspectral image and of the LiDAR raster. classes: both given by the data.
        patch: side of a patch, odd.
        width: channels of both sensors' networks.
        heads: of the mixture of bands.
        depth: 3 x 3 convolutions per sensor.
        fusions: the experts, names of ``FUSIONS``; a name may come twice.
        top_k: experts per patch.
        dense_hidden: hidden width of one two-layer network in the place of all fusions, for the dense twin; or None.
        entropy_weight: of both entropies of the gate.
        pseudo: what patches without label learn from: "candidates", "hard" (their likeliest class) or "none".
        pseudo_weight: of that loss, for a patch that the network is sure of.
        neighbours: similar patches that are asked about a candidate.
    """

    bands: tuple[int, ...]
    classes: int
    patch: int = 11
    width: int = 64
    heads: int = 4
    depth: int = 2
    fusions: tuple[str, ...] = tuple(FUSIONS)
    top_k: int = 2
    dense_hidden: int | None = None
    entropy_weight: float = 0.01
    pseudo: Literal["candidates", "hard", "none"] = "candidates"
    pseudo_weight: float = 0.5
    neighbours: int = 5

    def __post_init__(self) -> None:
        checks = {
            "bands must be two numbers of at least 1": len(self.bands) == 2 and min(self.bands) >= 1,
            "classes, heads, depth and neighbours must be at least 1": min(
                self.classes, self.heads, self.depth, self.neighbours
            )
            >= 1,
            "patch must be odd": self.patch % 2 == 1 and self.patch >= 1,
            f"width must be a multiple of heads and of {NORM_GROUPS}": self.width >= 1
            and self.width % math.lcm(max(self.heads, 1), NORM_GROUPS) == 0,
            f"fusions must be some of {', '.join(FUSIONS)}": bool(self.fusions) and set(self.fusions) <= set(FUSIONS),
            f"top_k must be in 1..{self.experts}": 1 <= self.top_k <= self.experts,
            "dense_hidden must be at least 1, or null": self.dense_hidden is None or self.dense_hidden >= 1,
            "pseudo must be candidates, hard or none": self.pseudo in ("candidates", "hard", "none"),
            "weights must be 0 or more": min(self.entropy_weight, self.pseudo_weight) >= 0,
        }
        require_settings("CPLPDMoEsConfig", checks)

    @property
    def experts(self) -> int:
        """Number of experts of the routed layer."""
        return len(self.fusions) if self.dense_hidden is None else 1


class CPLPDMoEs(System):
    """See the module's docstring."""

    Config = CPLPDMoEsConfig
    card = Card(
        name="CPLP-DMoEs",
        title="Joint Classification of Hyperspectral Images and LiDAR Data Based on Candidate Pseudo Labels Pruning "
        "and Dual Mixture of Experts",
        authors="Kong, Yu, Cheng, Chen, Wang",
        year=2025,
        doi="10.1109/TGRS.2025.3543498",
        survey_section="3.4",
        survey_reference=66,
        task="pixel classification, semi-supervised",
        sensors=("hyperspectral", "LiDAR"),
        provenance=("abstract",),
        completions=(
            "mixture of bands: 4 heads, each with softmax weights over the bands from the patch's mean spectrum, and a "
            "linear map of each weighted band",
            "networks: 3 x 3 convolutions with group norm (statistics of no batch), read at the centre and as a mean",
            "fusion strategies: concatenation, sum, product, gated sum, cross-attention, low-rank bilinear; two of six",
            "gate: linear on both sensors' vectors, with learned noise in training; weights by softmax of the two",
            "entropy balance: even use over the batch and a sure choice for each patch, both times 0.01",
            "candidates: classes likelier than chance (within the sample) that the five most similar patches of the "
            "batch also hold for likelier than chance (between samples); none left: no loss",
            "weight of a patch without label: 0.5 times how far its probability is above chance; it grows as the "
            "network learns, in the place of a ramp over epochs",
            "a missing sensor: its bands are 0, and its vector a learned constant",
        ),
        differences=("no code is released",),
        reported="Houston 2013, MUUFL and Augsburg; the abstract gives no figure",
    )
    conditioning = ("image", "available")
    multi_sensor = True

    def __init__(self, config: CPLPDMoEsConfig) -> None:
        super().__init__()
        self.config = config
        hsi, lidar = config.bands
        self.mix_bands = BandMixture(hsi, config.width, config.heads)
        self.lift = nn.Conv2d(lidar, config.width, 1)
        self.hsi = SensorNetwork(config.width, config.depth)
        self.lidar = SensorNetwork(config.width, config.depth)
        self.fusion = fusion_layer(config)
        self.classify = nn.Linear(config.width, config.classes)

    def forward(self, batch: Batch) -> Output:
        """``image`` (B, bands, H, W), ``valid`` (B, H, W), ``available`` (B, 2, H, W) -> logits (B, K, H, W).

        Extras, of the patches: ``band_weights`` (N, heads, bands), ``logits`` (N, K), ``fused`` (N, W), and the
        ``pixel`` (N,) that each is around.
        """
        patches = patches_of(batch, self.config.patch)
        (hsi, hsi_seen), (lidar, lidar_seen) = split_sensors(patches, self.config.bands)
        mixed, band_weights = self.mix_bands(hsi, hsi_seen)
        a = self.hsi(mixed, hsi_seen)
        b = self.lidar(self.lift(lidar), lidar_seen)
        fused, routing = self.fusion(torch.stack([a, b], dim=1), mask=patches.routed)
        logits = self.classify(fused)
        extras = {"band_weights": band_weights, "logits": logits, "fused": fused, "pixel": patches.pixel}
        return Output(patches.to_image(logits), {"fusion": routing}, {"fusion": patches.layout()}, extras)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of labelled patches, entropies of the gate, and what patches without label give.

        ``mask`` (B, H, W) int64, -1 = no label.
        """
        config, routing = self.config, output.routings["fusion"]
        losses = {
            "task": pixel_cross_entropy(output.prediction, batch["mask"]),
            "balance": config.entropy_weight * objectives.global_entropy_hinge(routing),
            "certainty": config.entropy_weight * objectives.local_entropy(routing),
        }
        if config.pseudo != "none":
            losses["pseudo"] = config.pseudo_weight * self._pseudo(output, batch["mask"])
        return losses

    def _pseudo(self, output: Output, mask: Tensor) -> Tensor:
        logits, known = output.extras["logits"], output.routings["fusion"].valid()
        labels = mask.flatten()[output.extras["pixel"]]
        if self.config.pseudo == "hard":
            candidates = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).bool()
        else:
            candidates = pruned_candidates(logits, output.extras["fused"], labels, known, self.config.neighbours)
        return partial_label_loss(logits, candidates, known & (labels == IGNORE))

    @classmethod
    def tiny(cls) -> Self:
        """6 bands and 1, 3 classes, patches of 5 x 5, width 8."""
        return cls(CPLPDMoEsConfig(bands=(6, 1), classes=3, patch=5, width=8, heads=2, depth=1))

    @classmethod
    def tiny_batch(cls, images: int, seed: int) -> dict[str, Tensor]:
        """Images of 7 bands and 9 x 8 pixels with 3 classes; some have no data, some no label, some one sensor."""
        generator = torch.Generator().manual_seed(seed)
        shape = (images, 9, 8)
        available = torch.rand(images, 2, 9, 8, generator=generator) > 0.2
        return {
            "image": torch.randn(images, 7, 9, 8, generator=generator),
            "valid": torch.rand(shape, generator=generator) > 0.1,
            "mask": torch.randint(-1, 3, shape, generator=generator),
            "available": available | ~available.any(1, keepdim=True),
        }

    @classmethod
    def dense_twin(
        cls, config: CPLPDMoEsConfig, equal: Literal["compute", "parameters"] = "compute"
    ) -> CPLPDMoEsConfig:
        """One two-layer network on both vectors, as large as the mean choice of fusions, or as all of them.

        The average of linear fusions would again be linear: a weaker opponent for as many parameters.
        """
        bank = fusion_bank(config.width, names=config.fusions)
        size = sum(bank.expert_parameters(e) for e in range(bank.num_experts))
        if equal == "compute":
            gate = 2 * config.width * bank.num_experts
            size = size * config.top_k / bank.num_experts + 2 * gate  # its noise is learned, too
        hidden = round((size - config.width) / (3 * config.width + 1))
        return replace(config, dense_hidden=max(1, hidden), top_k=1)

    @classmethod
    def scaled(cls, config: CPLPDMoEsConfig, experts: int, top_k: int) -> CPLPDMoEsConfig:
        """The fusions repeat."""
        names = tuple(config.fusions[i % len(config.fusions)] for i in range(experts))
        return replace(config, fusions=names, top_k=top_k, dense_hidden=None)

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The fusions' names."""
        return self.config.fusions if self.config.dense_hidden is None else ("two-layer network",)


class BandMixture(nn.Module):
    """Several heads that each mix all bands: the experts are linear maps of one band, all in use, with soft weights.

    ``head h = sum over bands of softmax_b(gate_h(mean spectrum)) * band * map_hb``, times the number of bands, so that
    equal weights are a plain 1 x 1 convolution.

    Args:
        bands: C. width: W, a multiple of ``heads``.
    """

    def __init__(self, bands: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.gate = nn.Linear(bands, heads * bands)
        self.maps = nn.Parameter(torch.empty(heads, width // heads, bands).uniform_(-1, 1) / math.sqrt(bands))

    def forward(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, p, p), 0 where not seen, seen (N, p, p) -> (N, W, p, p) and the weights (N, heads, C)."""
        spectrum = x.sum((2, 3)) / seen.sum((1, 2))[:, None].clamp_min(1)
        weights = torch.softmax(self.gate(spectrum).unflatten(1, (self.heads, -1)), dim=-1)
        kernel = (weights[:, :, None] * x.shape[1] * self.maps).flatten(1, 2)  # (N, W, C)
        return (kernel @ x.flatten(2)).unflatten(2, x.shape[2:]), weights


class SensorNetwork(nn.Module):
    """One sensor's maps (N, W, p, p) -> a vector (N, W): norm, ReLU, 3 x 3 convolutions; centre and mean are read."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(MaskedGroupNorm(NORM_GROUPS, width) for _ in range(depth + 1))
        self.leave = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (N, W, p, p), seen (N, p, p) -> (N, W); a constant where nothing is seen."""
        x = nn.functional.relu(self.norms[0](x, seen))
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            x = nn.functional.relu(norm(convolution(x), seen))
        centre = x.shape[-1] // 2
        mean = x.sum((2, 3)) / seen.sum((1, 2))[:, None].clamp_min(1)
        return self.leave(torch.cat([x[:, :, centre, centre], mean], dim=1))


class TwoLayerFusion(nn.Module):
    """Pairs (T, 2, D) -> (T, D): what the dense twin has in the place of the fusions."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, pair: Tensor) -> Tensor:
        return self.layers(pair.flatten(1))


def fusion_layer(config: CPLPDMoEsConfig) -> MoELayer:
    """The mixture of fusion strategies behind a noisy gate that sees both sensors."""
    width, experts = config.width, config.experts
    if config.dense_hidden is None:
        bank = fusion_bank(width, names=config.fusions)
    else:
        bank = ModuleBank([TwoLayerFusion(width, config.dense_hidden)])
    gate = NoisyScorer(LinearScorer(2 * width, experts), 2 * width, experts)
    # Weights of a single choice that sum to 1 are 1: the gate would learn nothing.
    weigh = weighing.raw if config.top_k == 1 else weighing.softmax_selected
    return MoELayer(PairScorer(gate), bank, selector=TopK(config.top_k), weigh=weigh)
