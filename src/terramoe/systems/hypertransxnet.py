"""HyperTransXNet: local and global mixing, then experts for whole patches, for hyperspectral pixel classification.

Dai, Li, Li, Xue, Huang, Yang, Remote Sensing 17(14), 2361 (2025), doi:10.3390/rs17142361.

A patch around a pixel passes blocks that halve its side and double its channels. Each block mixes a depthwise
convolution made for the patch with attention over its pixels, which reads the map through a mask between Fourier
transforms; then one of four convolution experts, chosen for the patch as a whole, adds to what came in:

    x = x + MoE(enhance(norm(project(dynamic(x) + attention(filter(x))))));   x = norm(halve(x))

Shapes: N patches (the routed items), C channels of a block, h x w its map, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from types import MappingProxyType
from typing import Literal, Self

import torch
from torch import Tensor, nn

from terramoe.moe import LinearScorer, ModuleBank, MoELayer, RouteInput, Routing, TopK, weighing
from terramoe.moe.layer import Weigh
from terramoe.moe.objectives import switch_balance
from terramoe.nets import MaskedGroupNorm, masked_mean, patches_of
from terramoe.nets.dynamic_conv import DynamicDepthwiseConv
from terramoe.nets.spectral_filter import AXES, BandMaskFilter
from terramoe.nets.vit import Attention
from terramoe.systems.base import Batch, Output, System, require_settings
from terramoe.systems.card import Card
from terramoe.tasks import pixel_cross_entropy

GROUPS = 4  # of channels that are normalised together, where they divide
SQUEEZE = 8  # channels over hidden channels of the token enhancer
WEIGHINGS: Mapping[str, Weigh] = MappingProxyType(
    {"raw": weighing.raw, "renormalised": weighing.renormalised, "ones": weighing.ones}
)


@dataclass(frozen=True)
class HyperTransXNetConfig:
    """Hyper-parameters; the defaults are the released code's where a completion or difference does not say otherwise.

    Attributes:
        bands, classes: given by the data.
        patch: side of a patch in pixels, odd.
        reduced: channels that the bands are reduced to.
        width: channels of the first block; each block doubles them.
        blocks: how many.
        experts, top_k: of each block.
        multiplier: hidden channels of an expert over its channels.
        weigh: combine weight of a chosen expert: "raw" (its probability), "renormalised" (to a sum of 1; for top_k
            2 and more), or "ones" (1; with top_k 1 that is what the released code computes: no router learns).
        balance: weight of the balance loss; 0 for none.
        heads: of the attention.
        kernels: that the dynamic convolution mixes.
        frequency: axes of the map along which a mask is learned, one after the other, of "channels", "height" and
            "width"; () for none, which is what the released code computes.
    """

    bands: int
    classes: int
    patch: int = 15
    reduced: int = 30
    width: int = 64
    blocks: int = 4
    experts: int = 4
    top_k: int = 1
    multiplier: int = 1
    weigh: str = "raw"
    balance: float = 0.01
    heads: int = 8
    kernels: int = 4
    frequency: tuple[str, ...] = ("channels",)

    def __post_init__(self) -> None:
        sizes = (self.bands, self.classes, self.reduced, self.blocks, self.multiplier, self.kernels)
        checks = {
            "bands, classes, reduced, blocks, multiplier and kernels must be at least 1": min(sizes) >= 1,
            "patch must be odd and at least 3": self.patch >= 3 and self.patch % 2 == 1,
            "width must be a multiple of heads": self.heads >= 1 and self.width >= 1 and self.width % self.heads == 0,
            f"top_k must be in 1..{self.experts}": 1 <= self.top_k <= self.experts,
            f"weigh must be one of {', '.join(WEIGHINGS)}": self.weigh in WEIGHINGS,
            "weigh 'renormalised' is the constant 1 for top_k 1: use 'raw', or 'ones' if it is meant": self.weigh
            != "renormalised"
            or self.top_k > 1,
            "balance must be 0 or more": self.balance >= 0,
            f"frequency must hold axes of {', '.join(AXES)}": set(self.frequency) <= set(AXES),
        }
        require_settings("HyperTransXNetConfig", checks)


class HyperTransXNet(System):
    """See the module's docstring. A pixel's prediction depends on the patch around it alone."""

    Config = HyperTransXNetConfig
    card = Card(
        name="HyperTransXNet",
        title="HyperTransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token Mixer for "
        "Hyperspectral Image Classification",
        authors="Dai, Li, Li, Xue, Huang, Yang",
        year=2025,
        doi="10.3390/rs17142361",
        survey_section="3.1.3",
        survey_reference=17,
        task="pixel classification",
        sensors=("hyperspectral",),
        provenance=("abstract", "code"),
        completions=(
            "frequency-domain attention: a complex mask along the channels, identity at first, before attention",
            "token enhancer, which the code lacks: 3 x 3 depthwise, norm, squeeze to 1/8, back, residual, as TransXNet",
            "dynamic convolution: four kernels mixed by the patch's averages on a 3 x 3 grid, as TransXNet",
            "balance loss: of the Switch Transformer, 0.01 times the mean over blocks",
            "local and global branch both see all channels and are summed, as in the code; TransXNet halves them",
            "nodata: norms, averages and attention over valid pixels only",
        ),
        differences=(
            "the code renormalises its top-1 weight to 1, so that no router learns; ours keeps the probability",
            "the code follows the Fourier transform by its inverse, the identity; ours learns a mask between them",
            "the code computes every expert for every patch and drops three of four; ours computes those chosen",
            "the code predicts a dynamic kernel's nine values from the patch's mean; ours mixes learned kernels",
            "the code's batch norm lets patches influence each other; ours is group norm over a patch",
            "the code trains on 30 to 50 % of the pixels, drawn at random; the demos keep blocks apart",
        ),
        reported="no figure could be read: the abstract claims superiority on Indian Pines, Houston 2013 and LongKou",
    )

    def __init__(self, config: HyperTransXNetConfig) -> None:
        super().__init__()
        self.config = config
        self.reduce = nn.Conv2d(config.bands, config.reduced, 1)
        self.reduce_norm = _norm(config.reduced)
        self.stem = nn.Conv2d(config.reduced, config.width, 3, padding=1)
        widths = [config.width * 2**i for i in range(config.blocks + 1)]
        self.units = nn.ModuleList(HybridUnit(config, width) for width in widths[:-1])
        self.halvings = nn.ModuleList(Halving(width) for width in widths[:-1])
        self.classify = nn.Linear(widths[-1], config.classes)

    def forward(self, batch: Batch) -> Output:
        """``image`` (B, bands, H, W), ``valid``, ``wanted`` (B, H, W) -> logits (B, K, H, W), one routing a block."""
        image = batch["image"]
        if "valid" in batch:
            image = torch.where(batch["valid"][:, None], image, 0.0)
        # Pixel by pixel, hence the same before patches are cut, and a patch's area cheaper.
        patches = patches_of({**batch, "image": self.reduce(image)}, self.config.patch)
        valid = patches.valid
        x = nn.functional.gelu(self.reduce_norm(patches.values, valid))
        x = _clear(self.stem(x), valid)
        routings = {}
        for number, (unit, halve) in enumerate(zip(self.units, self.halvings, strict=True), start=1):
            x, routings[f"block{number}"] = unit(x, valid, patches.routed)
            x, valid = halve(x, valid)
        logits = self.classify(masked_mean(x, valid))
        layouts = dict.fromkeys(routings, patches.layout())
        return Output(patches.to_image(logits), routings, layouts)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on ``mask`` (B, H, W), -1 = no label, and the balance of the experts of each block."""
        losses = {"task": pixel_cross_entropy(output.prediction, batch["mask"])}
        if self.config.balance:
            uneven = torch.stack([switch_balance(routing) for routing in output.routings.values()])
            losses["balance"] = self.config.balance * uneven.mean()
        return losses

    @classmethod
    def tiny(cls) -> Self:
        """6 bands, 3 classes, patches of 5 pixels, two blocks of width 8 and 16, four experts."""
        return cls(HyperTransXNetConfig(6, 3, patch=5, reduced=6, width=8, blocks=2, heads=2, kernels=2))

    @classmethod
    def tiny_batch(cls, images: int, seed: int) -> dict[str, Tensor]:
        """Images of 6 bands and 9 x 8 pixels with 3 classes, a tenth of the pixels invalid."""
        generator = torch.Generator().manual_seed(seed)
        shape = (images, 9, 8)
        return {
            "image": torch.randn(images, 6, 9, 8, generator=generator),
            "valid": torch.rand(shape, generator=generator) > 0.1,
            "mask": torch.randint(-1, 3, shape, generator=generator),
        }

    @classmethod
    def dense_twin(
        cls, config: HyperTransXNetConfig, equal: Literal["compute", "parameters"] = "compute"
    ) -> HyperTransXNetConfig:
        """As many of the same experts as an item uses, or fewer and wider experts with the parameters of all."""
        if equal == "compute":
            return replace(config, experts=config.top_k)
        total = config.experts * config.multiplier  # an expert's parameters go with its hidden width
        count = max(n for n in range(1, config.top_k + 1) if total % n == 0)
        return replace(config, experts=count, top_k=count, multiplier=total // count, weigh="raw")

    @classmethod
    def scaled(cls, config: HyperTransXNetConfig, experts: int, top_k: int) -> HyperTransXNetConfig:
        """More or fewer of the same experts."""
        return replace(config, experts=experts, top_k=top_k)

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """Numbers: the experts of a block are alike but for what they learn."""
        return tuple(f"convolution {i + 1}" for i in range(self.config.experts))


class HybridUnit(nn.Module):
    """The paper's hybrid spatial-spectral module, token enhancer and experts: (N, C, h, w) -> the same shape."""

    def __init__(self, config: HyperTransXNetConfig, width: int) -> None:
        super().__init__()
        self.local = DynamicDepthwiseConv(width, config.kernels)
        self.enter = nn.Conv2d(width, width, 1)
        self.filters = nn.ModuleList(BandMaskFilter(width, axis) for axis in config.frequency)
        self.token_norm = nn.LayerNorm(width)
        self.attention = Attention(width, config.heads)
        self.project = nn.Conv2d(width, width, 1)
        self.norm = _norm(width)
        self.enhance = TokenEnhancer(width)
        bank = ModuleBank(ConvExpert(width, config.multiplier) for _ in range(config.experts))
        scorer = LinearScorer(width, config.experts, bias=True)
        self.moe = MoELayer(scorer, bank, selector=TopK(config.top_k), weigh=WEIGHINGS[config.weigh])

    def forward(self, x: Tensor, valid: Tensor, routed: Tensor) -> tuple[Tensor, Routing]:
        """x (N, C, h, w), valid (N, h, w) bool, routed (N,) bool -> the same shape, and the routing of the patches."""
        mixed = self.project(self.local(x, valid) + self._global(x, valid))
        mixed = self.enhance(nn.functional.gelu(self.norm(mixed, valid)), valid)
        routing = self.moe.route(RouteInput(masked_mean(mixed, valid), routed))
        added, _ = self.moe(mixed.permute(0, 2, 3, 1), routing)
        return _clear(x + added.permute(0, 3, 1, 2), valid), routing

    def _global(self, x: Tensor, valid: Tensor) -> Tensor:
        y = self.enter(x)
        for learned_mask in self.filters:
            y = learned_mask(y, valid)
        tokens = self.attention(self.token_norm(y.flatten(2).mT), valid.flatten(1))
        return tokens.mT.unflatten(2, x.shape[2:])


class TokenEnhancer(nn.Module):
    """Spatial-spectral token enhancer: ``x + expand(GELU(squeeze(GELU(norm(depthwise(x))))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // SQUEEZE)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = _norm(width)
        self.squeeze, self.expand = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (N, C, h, w), 0 where invalid, valid (N, h, w) bool -> the same."""
        y = nn.functional.gelu(self.norm(self.depthwise(x), valid))
        return _clear(x + self.expand(nn.functional.gelu(self.squeeze(y))), valid)


class ConvExpert(nn.Module):
    """3 x 3 depthwise convolution, GELU, 1 x 1 convolution over whole maps: (n, h, w, C) -> the same shape."""

    def __init__(self, width: int, multiplier: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, multiplier * width, 3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(multiplier * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, h, w, C) -> (n, h, w, C)."""
        y = self.pointwise(nn.functional.gelu(self.depthwise(x.permute(0, 3, 1, 2))))
        return y.permute(0, 2, 3, 1)


class Halving(nn.Module):
    """3 x 3 convolution of stride 2 that doubles the channels, norm, GELU; a cell is valid if it sees a valid one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm = _norm(2 * width)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, h, w), valid (N, h, w) bool -> (N, 2 C, h / 2, w / 2), rounded up, and its validity."""
        valid = nn.functional.max_pool2d(valid[:, None].to(x.dtype), 3, 2, 1)[:, 0] > 0
        return nn.functional.gelu(self.norm(self.conv(x), valid)), valid


def _norm(channels: int) -> MaskedGroupNorm:
    return MaskedGroupNorm(gcd(GROUPS, channels), channels)


def _clear(x: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid[:, None], x, 0)
