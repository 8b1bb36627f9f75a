"""MaMOL: Missing-aware Mixture-of-LoRAs for remote sensing classification with missing modalities.

Gao, Qu, Dong, 2025, arXiv 2511.11460.

One frozen transformer, shared by all sensors, reads each sensor's patch by itself. Beside the frozen MLP of its last
blocks stand low-rank adapters that know which sensors are there:

    x = x + MLP(z) + dynamic(z, code) + shared(z) + sum over sensors s of present_s * static_s(z),   z = norm(x)

``dynamic`` is routed, by the token and an embedding of the pattern of missing sensors. The class tokens of all sensors,
0 for those that are missing, go side by side into a linear head.

Shapes: N patches, S sensors, L tokens of one sensor (the class token first), D width, T = N * S * L items, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from terramoe.moe import MoELayer, RouteInput, Routing, TopK
from terramoe.moe.experts import LoRABank
from terramoe.moe.scorers import MLPScorer, Scores
from terramoe.nets import Patches, patches_of
from terramoe.nets.missing import MissingEmbedding
from terramoe.nets.vit import TransformerBlock
from terramoe.systems.base import Batch, Output, System, require_settings
from terramoe.systems.card import Card
from terramoe.tasks import IGNORE, pixel_cross_entropy

PARTS = ("dynamic", "shared", "static")


@dataclass(frozen=True)
class MaMOLConfig:
    """Hyper-parameters; the defaults are those of the released code's remote-sensing variant.

    Attributes:
        bands: of each sensor, in order. classes: both given by the data.
        patch: side of the patch around a pixel, odd; each pixel of it is a token.
        width, depth, heads, mlp_ratio: of the transformer.
        stem_width: channels between the two convolutions of a sensor's stem.
        adapted: how many blocks, the last ones, have adapters.
        rank: of a routed adapter. static_rank: of the shared and of the sensors' adapters.
        experts, top_k: routed adapters of a block, and how many of them a token uses.
        router_width: hidden width of a router. code_width: of the embedding of missing sensors that it reads.
        parts: adapters that are there, of ``PARTS``.
        shuffled_codes: a control: in training, each patch is told the missing sensors of another one of the batch.
    """

    bands: tuple[int, ...]
    classes: int
    patch: int = 15
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    stem_width: int = 256
    adapted: int = 6
    rank: int = 8
    static_rank: int = 8
    experts: int = 2
    top_k: int = 1
    router_width: int = 384
    code_width: int = 8
    parts: tuple[str, ...] = PARTS
    shuffled_codes: bool = False

    def __post_init__(self) -> None:
        checks = {
            "bands must name at least one sensor, each with a band, and classes be at least 1": len(self.bands) > 0
            and min(*self.bands, self.classes) >= 1,
            "patch must be odd": self.patch >= 1 and self.patch % 2 == 1,
            "width must be a multiple of heads": self.heads >= 1 and self.width % self.heads == 0,
            "adapted must be in 1..depth": 1 <= self.adapted <= self.depth,
            f"top_k must be in 1..{self.experts}": 1 <= self.top_k <= self.experts,
            f"parts must be some of {', '.join(PARTS)}": len(self.parts) > 0 and set(self.parts) <= set(PARTS),
        }
        require_settings("MaMOLConfig", checks)


class MaMOL(System):
    """See the module's docstring. Pretrain the body (``pretrain_steps``), else it is frozen at random."""

    Config = MaMOLConfig
    conditioning = ("image", "available")
    multi_sensor = True
    card = Card(
        name="MaMOL",
        title="MaMOL: Missing-aware Mixture-of-LoRAs",
        authors="Gao, Qu, Dong",
        year=2025,
        arxiv="2511.11460",
        survey_section="3.1.3",
        survey_reference=35,
        task="pixel classification with missing sensors",
        sensors=("hyperspectral", "LiDAR", "SAR"),
        provenance=("abstract", "code"),
        completions=(
            "the body: a small transformer that is trained here, on patches that have every sensor, before it is "
            "frozen; the code takes CLIP's ViT-B/16, whose weights are not ours to pass on",
            "the router's hidden layer has tanh; the scale of the adapters is 2 sqrt(rank)",
            "a missing sensor's tokens, and those of nodata, are neither routed nor attended to",
        ),
        differences=(
            "the code switches a sensor's static adapter by a learned projection of the code above 0.5, a random "
            "pattern at the start; ours is switched by the presence of the sensor itself",
            "the code starts the adapters' second matrix at random; ours at 0, so training starts at the frozen body",
            "the code sends the adapters' sum through GELU and a full D x D matrix; ours adds the sum",
            "the code fills missing sensors with ones, ours with zeros; both clear their features",
            "the code draws training and test pixels from one map without excluding one from the other",
            "the code's patches have 14 x 14 pixels; ours an odd number, so that a pixel is in the middle",
        ),
        reported="better than its rivals at 70 % of missing sensors; no table could be read, random training pixels",
    )

    def __init__(self, config: MaMOLConfig) -> None:
        super().__init__()
        self.config = config
        self.stems = nn.ModuleList(stem(bands, config.stem_width, config.width) for bands in config.bands)
        self.body = Body(config)
        self.adapters = nn.ModuleList(Adapters(config) for _ in range(config.adapted))
        self.head = nn.Linear(len(config.bands) * config.width, config.classes)
        self.set_pretraining(False)

    def set_pretraining(self, on: bool) -> None:
        """Train the body, with stems and head, or the adapters."""
        self.body.requires_grad_(on)
        self.adapters.requires_grad_(not on)

    def forward(self, batch: Batch) -> Output:
        """``image`` (B, bands, H, W), ``available`` (B, S, H, W) -> logits (B, K, H, W), a routing an adapted block."""
        patches = patches_of(batch, self.config.patch)
        features, routings = self._features(patches, list(self.adapters))
        layouts = {name: patches.layout(len(self.config.bands) * (1 + self.config.patch**2)) for name in routings}
        return Output(patches.to_image(self.head(features)), routings, layouts)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of ``mask`` (B, H, W) int64, -1 = no label."""
        return {"task": pixel_cross_entropy(output.prediction, batch["mask"])}

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy without adapters, of the patches that have every sensor."""
        patches = patches_of(batch, self.config.patch)
        logits = self.head(self._features(patches, [])[0])
        labels = torch.where(
            sensors_of(patches, len(self.config.bands)).all(1), patches.of_batch(batch["mask"]), IGNORE
        )
        return {"task": pixel_cross_entropy(logits, labels)}

    def _features(self, patches: Patches, adapters: list[Adapters]) -> tuple[Tensor, dict[str, Routing]]:
        """Class tokens (N, S * D), 0 for missing sensors, and the routing of each adapted block."""
        present = sensors_of(patches, len(self.config.bands))
        parts = torch.split(patches.values, self.config.bands, dim=1)
        maps = [stem(torch.where(present[:, s, None, None, None], parts[s], 0)) for s, stem in enumerate(self.stems)]
        x = torch.stack(maps, dim=1).flatten(3).mT  # (N, S, pixels, D)
        seen = (present & patches.routed[:, None])[..., None] & patches.valid.flatten(1)[:, None]
        codes = present
        if self.config.shuffled_codes and self.training:
            codes = present[torch.randperm(len(present), device=present.device)]
        x, routings = self.body(x.flatten(0, 1), seen.flatten(0, 1), codes, adapters)
        return torch.where(present[..., None], x[:, 0].view(*present.shape, -1), 0).flatten(1), routings

    @classmethod
    def tiny(cls) -> Self:
        """Sensors of 5 and 2 bands, 3 classes, width 16, one plain block and one with three routed adapters.

        As after some steps of training: while the second matrices are 0, as at the start, no router has a gradient.
        """
        system = cls(
            MaMOLConfig(
                bands=(5, 2), classes=3, patch=3, width=16, depth=2, heads=2, stem_width=8, adapted=1, rank=2,
                static_rank=2, experts=3, router_width=2, code_width=4,
            )
        )  # fmt: skip
        for module in system.adapters.modules():
            if isinstance(module, LoRABank):
                nn.init.normal_(module.b_ERO, std=0.1)
        return system

    @classmethod
    def tiny_batch(cls, images: int, seed: int) -> dict[str, Tensor]:
        """Images of 5 + 2 bands and 9 x 8 pixels with 3 classes; a tenth invalid, half of the rest lack a sensor."""
        generator = torch.Generator().manual_seed(seed)
        shape = (images, 9, 8)
        valid = torch.rand(shape, generator=generator) > 0.1
        lost = torch.randint(0, 4, shape, generator=generator)  # 0: the first sensor, 1: the second, else none
        return {
            "image": torch.randn(images, 7, 9, 8, generator=generator),
            "valid": valid,
            "available": torch.stack([lost != 0, lost != 1], dim=1),
            "mask": torch.randint(-1, 3, shape, generator=generator),
        }

    @classmethod
    def dense_twin(cls, config: MaMOLConfig, equal: Literal["compute", "parameters"] = "compute") -> MaMOLConfig:
        """One adapter as wide as those that a token uses, or as all of them."""
        ranks = config.experts if equal == "parameters" else config.top_k
        return replace(config, experts=1, top_k=1, rank=ranks * config.rank)

    @classmethod
    def scaled(cls, config: MaMOLConfig, experts: int, top_k: int) -> MaMOLConfig:
        """Another number of routed adapters."""
        return replace(config, experts=experts, top_k=top_k)

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The adapters by number."""
        return tuple(f"adapter {i + 1}" for i in range(self.config.experts))


def sensors_of(patches: Patches, sensors: int) -> Tensor:
    """(N, S) bool: the sensors that each patch has."""
    return patches.routed[:, None].repeat(1, sensors) if patches.present is None else patches.present


def stem(bands: int, hidden: int, width: int) -> nn.Sequential:
    """3 x 3, then 1 x 1 convolution, linear as in the source: (N, bands, p, p) -> (N, D, p, p)."""
    return nn.Sequential(nn.Conv2d(bands, hidden, 3, padding=1), nn.Conv2d(hidden, width, 1))


class Body(nn.Module):
    """The transformer that all sensors share; adapters stand beside the MLPs of its last blocks."""

    def __init__(self, config: MaMOLConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(1 + config.patch**2, config.width))  # first: the class token
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(
        self, x: Tensor, seen: Tensor, present: Tensor, adapters: list[Adapters]
    ) -> tuple[Tensor, dict[str, Routing]]:
        """Pixels of all sensors' patches -> tokens (N * S, L, D), the class token first, and a routing an adapter.

        x (N * S, L - 1, D); seen (N * S, L - 1) bool, False in nodata and in missing sensors; present (N, S) bool.
        """
        x = nn.functional.pad(x, (0, 0, 1, 0)) + self.positions
        seen = torch.cat([seen.any(1, keepdim=True), seen], dim=1)
        items = present.repeat_interleave(x[:, :, 0].numel() // len(present), dim=0)  # (T, S)
        routings, first = {}, len(self.blocks) - len(adapters)
        for number, block in enumerate(self.blocks):
            x = block.attend(x, seen)
            z = block.norm2(x)
            x = x + block.mlp(z)
            if number >= first:
                update, routing = adapters[number - first](z.flatten(0, 1), items, seen.flatten())
                x = x + update.view_as(x)
                if routing is not None:
                    routings[f"block{number + 1}"] = routing
        return self.norm(x), routings


class Adapters(nn.Module):
    """The adapters beside one MLP: routed by token and missing sensors, always on, and on where a sensor is there."""

    def __init__(self, config: MaMOLConfig) -> None:
        super().__init__()
        width, sensors = config.width, len(config.bands)
        self.dynamic = dynamic_adapters(config) if "dynamic" in config.parts else None
        self.shared = LoRABank(1, width, width, config.static_rank) if "shared" in config.parts else None
        self.static = LoRABank(sensors, width, width, config.static_rank) if "static" in config.parts else None

    def forward(self, x: Tensor, present: Tensor, mask: Tensor) -> tuple[Tensor, Routing | None]:
        """x (T, D), present (T, S) bool, mask (T,) bool -> what is added, (T, D), and the routing of ``dynamic``."""
        update, routing = torch.zeros_like(x), None
        if self.dynamic is not None:
            update, routing = self.dynamic(x, mask=mask, keys={"present": present})
        if self.shared is not None:
            update = update + self.shared.run(0, x)
        if self.static is not None:
            update = update + self.static.run_dense(x, present.T.to(x.dtype))
        return update, routing


def dynamic_adapters(config: MaMOLConfig) -> MoELayer:
    """Low-rank experts, weighted by their probability."""
    bank = LoRABank(config.experts, config.width, config.width, config.rank)
    return MoELayer(PatternScorer(config), bank, selector=TopK(config.top_k))


class PatternScorer(nn.Module):
    """Logits from the token beside an embedding of which sensors are missing, by one hidden layer."""

    def __init__(self, config: MaMOLConfig) -> None:
        super().__init__()
        self.code = MissingEmbedding(len(config.bands), config.code_width)
        self.mlp = MLPScorer(config.width + config.code_width, config.experts, hidden=config.router_width)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with the key "present" (T, S) bool -> logits (T, E)."""
        code = self.code(inp.key("present", "PatternScorer"))
        return self.mlp(replace(inp, x=torch.cat([inp.features(), code], dim=-1)))
