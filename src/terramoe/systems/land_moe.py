"""Land-MoE: adapters beside a frozen vision transformer, for land cover under sensors that were not trained on.

Chen, Yan, Zhu, Chen, Liu, Zhang, arXiv 2505.14088 (2025).

After every block of the frozen body, with F its tokens:

    T  = sum_e g_e A_e B_e            MoLTE: a table of tokens, mixed of low-rank experts of different ranks,
                                      by a gate that looks at the image as a whole
    F' = F + s MLP(softmax(F T^t / sqrt(D)) V(T))
    F''= F' + c (filter(F') - F')     FAF: a gain per radial band of frequencies, shared by all layers

Shapes: B images (the routed items), N tokens of an image, D width, m tokens of a table, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe import LinearScorer, MoELayer, Routing, TopK, WindowGrid
from terramoe.moe.experts.tokens import TokenBank
from terramoe.moe.objectives import importance_cv2
from terramoe.nets.backbones import frozen_backbone
from terramoe.nets.masked_reconstruction import PixelDecoder, masked_reconstruction_loss
from terramoe.nets.spectral_filter import RadialFilter
from terramoe.nets.token_head import TokenHead, cells_with_data
from terramoe.nets.vit import MLP, Tokens, ViT, read_valid, tokens_to_map
from terramoe.systems.base import Batch, Output, System, require_settings
from terramoe.systems.card import Card
from terramoe.tasks import pixel_cross_entropy


@dataclass(frozen=True)
class LandMoEConfig:
    """Hyper-parameters; the body's are ViT-L's, as in the paper's kin.

    Attributes:
        bands, classes: given by the data.
        backbone: "vit", our own, which is to be pretrained, or a name that ``nets.backbones.frozen_backbone`` knows.
        dim, depth, heads, cell: of the body: width D, blocks, attention heads, side of a token in pixels. For a named
            backbone they must be its own (it needs no heads).
        tokens: m, in the table of each layer.
        ranks: of the token experts of each layer.
        top_k: experts per image.
        refine_width: hidden width of the MLP that all layers share.
        filter_bands, filter_groups: radial bands of frequencies, and groups of channels with gains of their own.
        frequency_filter: use FAF.
        balance: weight of the balance loss.
        hidden_share: of the tokens, in the pretraining of the body.
        tune: "adapter" trains adapters and head beside the frozen body; "head" and "full" have no adapters: they
            train the head alone, or everything.
    """

    bands: int
    classes: int
    backbone: str = "vit"
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    cell: int = 16
    tokens: int = 100
    ranks: tuple[int, ...] = (4, 8, 16, 32)
    top_k: int = 2
    refine_width: int = 256
    filter_bands: int = 8
    filter_groups: int = 8
    frequency_filter: bool = True
    balance: float = 0.01
    hidden_share: float = 0.6
    tune: Literal["adapter", "head", "full"] = "adapter"

    def __post_init__(self) -> None:
        checks = {
            "bands and classes must be at least 1": min(self.bands, self.classes) >= 1,
            "ranks must be at least 1": len(self.ranks) > 0 and min(self.ranks) >= 1,
            f"top_k must be in 1..{len(self.ranks)}": 1 <= self.top_k <= len(self.ranks),
            "balance must be 0 or more": self.balance >= 0,
            "hidden_share must be between 0 and 1": 0 < self.hidden_share < 1,
            "tune must be adapter, head or full": self.tune in ("adapter", "head", "full"),
            "a named backbone stays frozen: tune must not be full": self.tune != "full" or self.backbone == "vit",
        }
        require_settings("LandMoEConfig", checks)


class LandMoE(System):
    """See the module's docstring. Images of any size; pretrain the body by ``TrainSettings.pretrain_steps``."""

    Config = LandMoEConfig
    card = Card(
        name="Land-MoE",
        title="Generalizable Multispectral Land Cover Classification via Frequency-Aware Mixture of Low-Rank Token "
        "Experts",
        authors="Chen, Yan, Zhu, Chen, Liu, Zhang",
        year=2025,
        arxiv="2505.14088",
        survey_section="3.1.1",
        survey_reference=10,
        task="pixel classification",
        sensors=("multispectral",),
        provenance=("abstract", "survey"),
        completions=(
            "no code is public; the adapters follow Rein (arXiv 2312.04265) where the abstract is silent",
            "gate: a linear map of the mean token, softmax, the best 2 of 4 experts; ranks 4, 8, 16, 32; 100 tokens",
            "the tables are mixed before they are attended to; the MLP behind is shared by all layers",
            "filter: one gain in (0, 2) for each of 8 radial bands and 8 groups of channels; a strength per layer",
            "balance loss: squared coefficient of variation of the gates' sums over the batch, weight 0.01",
            "a light linear head in place of Mask2Former and its losses, which are out of scope",
            "body: a small vision transformer pretrained on the training crops by masked reconstruction, then frozen, "
            "in place of a foundation model",
            "nodata: invalid tokens are attended to by nobody and left out of gate and filter",
        ),
        differences=(
            "the code of its successor SpectralMoE leaves the gate's values out when it combines one expert, so that "
            "only the balance loss trains its router; ours weighs tables by their probability",
            "its attention uses the diagonal of the attention map alone; ours uses the whole map",
        ),
        reported="abstract: large margin over others from sensor to sensor and place to place, no figure; "
        "its successor SpectralMoE reports 66.19 % mean IoU from sensor to sensor, with DINOv3",
    )

    def __init__(self, config: LandMoEConfig) -> None:
        super().__init__()
        self.config = config
        if config.backbone == "vit":
            self.body = ViT(config.bands, config.dim, config.depth, config.heads, config.cell)
            self.decoder = PixelDecoder(self.body)
        else:
            self.body, self.decoder = frozen_backbone(config.backbone, config.bands), None
        adapts = config.tune == "adapter"
        self.adapters = nn.ModuleList(TokenMixture(config) for _ in range(config.depth if adapts else 0))
        self.refine = MLP(config.dim, config.refine_width) if adapts else None
        filters = adapts and config.frequency_filter
        self.filter = RadialFilter(config.dim, config.filter_bands, config.filter_groups) if filters else None
        self.head = TokenHead(config.dim, config.classes, config.cell)
        self.set_pretraining(False)

    def set_pretraining(self, on: bool) -> None:
        """Pretraining trains the body and its decoder; adapting trains all else, and the body only if tune is full."""
        self.requires_grad_(not on)
        self.body.requires_grad_(self.decoder is not None and (on or self.config.tune == "full"))
        if self.decoder is not None:
            self.decoder.requires_grad_(on)
        self.train(self.training)

    def forward(self, batch: Batch) -> Output:
        """``image`` (B, bands, H, W), ``valid`` (B, H, W) -> logits (B, K, H, W) and one routing a block."""
        image, valid = read_valid(batch["image"], batch.get("valid"), self.config.bands)
        size = (image.shape[-2], image.shape[-1])
        seen = cells_with_data(valid, self.config.cell)  # (B, h, w)
        routings: dict[str, Routing] = {}
        after = {i: partial(self._adapt, i, seen, routings) for i in range(len(self.adapters))}
        features = self.body(image, valid, after=after)
        features = features.to_map() if isinstance(features, Tokens) else features
        grid = (seen.shape[1], seen.shape[2])
        whole = WindowGrid(len(image), *grid, grid, self.config.cell, size)
        logits = self.head(features.flatten(2).mT, grid, size)
        return Output(logits, routings, dict.fromkeys(routings, whole))

    def _adapt(self, block: int, seen: Tensor, routings: dict[str, Routing], x: Tensor) -> Tensor:
        """What stands after a block: its tokens (B, P + N, D), the first P without a place, -> refined and filtered."""
        adapter, places = self.adapters[block], seen[0].numel()
        read, routings[f"block {block}"] = adapter(x, seen.flatten(1))
        x = x + adapter.scale * self.refine(read)
        if self.filter is None:
            return x
        first, x = x.split([x.shape[1] - places, places], dim=1)
        filtered = self.filter(tokens_to_map(x, (seen.shape[1], seen.shape[2])), seen).flatten(2).mT
        return torch.cat([first, x + adapter.filter_strength * (filtered - x)], dim=1)

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over labelled pixels, and the gates' balance where there are adapters."""
        losses = {"task": pixel_cross_entropy(output.prediction, batch["mask"])}
        if output.routings:
            unbalance = [importance_cv2(routing) for routing in output.routings.values()]
            losses["balance"] = self.config.balance * torch.stack(unbalance).mean()
        return losses

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Masked reconstruction by the body alone; ConfigError for a named backbone, which is trained already."""
        if self.decoder is None:
            raise ConfigError(
                f"'{self.config.backbone}' is trained already", where="Land-MoE", fix="use --train.pretrain_steps 0"
            )
        image, valid = batch["image"], batch.get("valid")
        share = self.config.hidden_share
        return {"reconstruction": masked_reconstruction_loss(self.body, self.decoder, image, valid, share)}

    @classmethod
    def tiny(cls) -> Self:
        """4 bands, 3 classes, two blocks of width 16, four experts of ranks 1 to 4."""
        return cls(
            LandMoEConfig(
                bands=4,
                classes=3,
                dim=16,
                depth=2,
                heads=2,
                cell=3,
                tokens=6,
                ranks=(1, 2, 3, 4),
                refine_width=8,
                filter_bands=3,
                filter_groups=2,
            )
        )

    @classmethod
    def tiny_batch(cls, images: int, seed: int) -> dict[str, Tensor]:
        """Images of 4 bands and 14 x 11 pixels, each of its own colour, 3 classes, a tenth of the pixels invalid."""
        generator = torch.Generator().manual_seed(seed)
        shape = (images, 14, 11)
        colour = 2 * torch.randn(images, 4, 1, 1, generator=generator)
        return {
            "image": colour + torch.randn(images, 4, 14, 11, generator=generator),
            "valid": torch.rand(shape, generator=generator) > 0.1,
            "mask": torch.randint(-1, 3, shape, generator=generator),
        }

    @classmethod
    def dense_twin(cls, config: LandMoEConfig, equal: Literal["compute", "parameters"] = "compute") -> LandMoEConfig:
        """k tables whose ranks sum to the mean active rank, or to the rank of all experts.

        Mixed with fixed weights they are a single table of that rank: the twin is Rein.
        """
        total = sum(config.ranks)
        rank = total if equal == "parameters" else round(config.top_k * total / len(config.ranks))
        small, larger = divmod(max(rank, config.top_k), config.top_k)
        return replace(config, ranks=tuple(small + (i >= config.top_k - larger) for i in range(config.top_k)))

    @classmethod
    def scaled(cls, config: LandMoEConfig, experts: int, top_k: int) -> LandMoEConfig:
        """The ranks of the experts repeat."""
        ranks = tuple(config.ranks[i % len(config.ranks)] for i in range(experts))
        return replace(config, ranks=ranks, top_k=top_k)

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The rank of each expert."""
        return tuple(f"rank {rank}" for rank in self.config.ranks)


class TokenMixture(nn.Module):
    """MoLTE: what the tokens of an image read in a table that is mixed for the image.

    Attributes:
        scale: s of the refinement, learned from 0.001 on. filter_strength: c of the filter, from 1 on.
    """

    def __init__(self, config: LandMoEConfig) -> None:
        super().__init__()
        bank = TokenBank(len(config.ranks), config.tokens, config.dim, config.ranks)
        self.table = MoELayer(LinearScorer(config.dim, len(config.ranks)), bank, selector=TopK(config.top_k))
        self.value = nn.Linear(config.dim, config.dim)
        self.scale = nn.Parameter(torch.tensor(0.001))
        self.filter_strength = nn.Parameter(torch.tensor(1.0)) if config.frequency_filter else None

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Routing]:
        """x (B, P + N, D), valid (B, N) bool -> what they read, of the shape of x, and the routing of the B images."""
        keep = valid[..., None]
        pooled = torch.where(keep, x[:, -valid.shape[1] :], 0).sum(1) / keep.sum(1).clamp_min(1)
        table, routing = self.table(pooled, mask=valid.any(1))  # (B, m, D)
        attention = torch.softmax(x @ table.mT / table.shape[-1] ** 0.5, dim=-1)  # (B, P + N, m), all of it
        return attention @ self.value(table), routing
