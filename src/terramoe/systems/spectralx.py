"""SpectralX: a frozen vision transformer for optical images learns to read spectral images of any bands.

Zhang, Li, Zhang, Han, Tao, Liang, ISPRS J. 239, 774-792 (2026), arXiv 2508.01731.

    HyperT       image -> spatial tokens (one for each patch of the body) and spectral tokens, side by side
    AoMoA        beside the MLP of some blocks: each half of the tokens has a router of its own over one bank of
                 adapters, which are mixed in log space
    Are-adapter  queries pick low-level features, which the last tokens read

Three trainings: the body, by masked reconstruction of red, green and blue; stage 1, HyperT and AoMoA beside the frozen
body, by masked reconstruction of all bands (both in ``pretrain_loss``); stage 2, segmentation.

Shapes: B images, N spatial and M spectral tokens of an image, T = B (N + M) routed items, D width of the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from terramoe.moe import LinearScorer, MoELayer, NoisyScorer, Routing, StackedFFN, TopK, WindowGrid, weighing
from terramoe.moe.executors.log_space import log_space
from terramoe.moe.objectives import importance_cv2, load_cv2
from terramoe.moe.organisation import TaskGates
from terramoe.nets.hyper_tokeniser import COLOURS, HyperTokeniser, HyperTokens, SpatialHalf, colour_bands, merge_halves
from terramoe.nets.masked_reconstruction import PixelDecoder, choose_hidden, masked_reconstruction_loss
from terramoe.nets.refining_adapter import RefiningAdapter
from terramoe.nets.token_head import TokenHead, cells_with_data, pixels_of_cells
from terramoe.nets.vit import ViT, read_valid
from terramoe.systems.base import Batch, Output, System, require_settings
from terramoe.systems.card import Card
from terramoe.tasks import pixel_cross_entropy

ATTRIBUTES = ("spatial", "spectral")


@dataclass(frozen=True)
class SpectralXConfig:
    """Hyper-parameters; the defaults are the released code's.

    Attributes:
        bands, classes, wavelengths: given by the data.
        dim, depth, heads, cell: of the body: width D, blocks, attention heads, side of a token in pixels (even).
        adapted: blocks with an AoMoA.
        tokeniser_dim, queries_side, spectral_queries: of HyperT: width, side of the grid of spatial queries (fitted to
            the image), spectral tokens M.
        experts, top_k: adapters of a bank, and how many a token uses.
        bottleneck, expert_width: width in which the adapters work, and hidden width of each.
        noise_floor: smallest standard deviation of the routers' noise.
        refine_queries: of the Are-adapter.
        balance: weight of the balance loss.
        hidden_share: of the patches, in masked reconstruction.
        tune: what stage 2 trains. "adapter": all but the body. "head" and "full" have no AoMoA: they train the head
            alone, or everything.
    """

    bands: int
    classes: int
    wavelengths: tuple[float, ...] = ()
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    cell: int = 16
    adapted: tuple[int, ...] = (5, 11, 17, 23)
    tokeniser_dim: int = 512
    queries_side: int = 14
    spectral_queries: int = 196
    experts: int = 4
    top_k: int = 2
    bottleneck: int = 256
    expert_width: int = 32
    noise_floor: float = 0.1
    refine_queries: int = 16
    balance: float = 0.01
    hidden_share: float = 0.75
    tune: Literal["adapter", "head", "full"] = "adapter"

    def __post_init__(self) -> None:
        checks = {
            "bands and classes must be at least 1": min(self.bands, self.classes) >= 1,
            f"wavelengths must be () or {self.bands}": len(self.wavelengths) in (0, self.bands),
            f"adapted must name blocks 0..{self.depth - 1}, each once": len(self.adapted) > 0
            and list(self.adapted) == sorted(set(self.adapted) & set(range(self.depth))),
            f"top_k must be in 1..{self.experts}": 1 <= self.top_k <= self.experts,
            "noise_floor and balance must be 0 or more": min(self.noise_floor, self.balance) >= 0,
            "hidden_share must be between 0 and 1": 0 < self.hidden_share < 1,
            "tune must be adapter, head or full": self.tune in ("adapter", "head", "full"),
        }
        require_settings("SpectralXConfig", checks)


class SpectralX(System):
    """See the module's docstring. Images of any size; ``TrainSettings.pretrain_steps`` trains body and stage 1."""

    Config = SpectralXConfig
    card = Card(
        name="SpectralX",
        title="SpectralX: Parameter-efficient Domain Generalization for Spectral Remote Sensing Foundation Models",
        authors="Zhang, Li, Zhang, Han, Tao, Liang",
        year=2026,
        arxiv="2508.01731",
        survey_section="3.4.3",
        survey_reference=151,
        task="pixel classification",
        sensors=("multispectral", "hyperspectral"),
        provenance=("paper", "code"),
        completions=(
            "body: a small vision transformer pretrained on red, green and blue of the training crops and then frozen, "
            "in place of a foundation model; body and stage 1 are trained in the same steps, without mixing gradients",
            "HyperT: spectral tokens read one token per band, made of its mean and spread over the image; the spatial "
            "block attends to all tokens in place of windows; positions count pixels, not metres",
            "one AoMoA beside the MLP of an adapted block, in place of one beside each of its two linear layers; none "
            "at the patch projection and the decoder",
            "Are-adapter: 16 queries; the choice of a place passes its gradient through the softmax",
            "heads read each spatial token plus the mean of the spectral ones, or the last spectral router would not "
            "learn; a light linear head on the adapted blocks in place of UPerNet; no auxiliary heads",
            "balance loss over both routers together, weight 0.01; an adapter's scale starts at 0.1",
            "nodata: invalid tokens are attended to by nobody, not routed, and left out of the band statistics",
        ),
        differences=(
            "the code comments its balance loss out; ours is in the loss",
            "the code sets gates below 1e-4 to zero in place; ours keep their weight and gradient",
            "the code's mixture in log space takes exponentials as they are; ours is relative to the largest",
            "the code starts routers at zero, so that all tokens first tie for the same experts; ours start small",
            "the code makes a list of modality shifts that is not registered; ours is trained and saved",
            "the code makes HyperT's parameters without gradients; ours train in both stages",
        ),
        reported="no figure could be read; WHU-OHS, DFC2020 and MTS12 from region to region",
    )

    def __init__(self, config: SpectralXConfig) -> None:
        super().__init__()
        self.config = config
        dim, cell = config.dim, config.cell
        self.body = ViT(len(COLOURS), dim, config.depth, config.heads, cell)
        self.decoder = PixelDecoder(self.body)
        sizes = (config.tokeniser_dim, dim, config.heads, cell, config.queries_side, config.spectral_queries)
        self.tokeniser = HyperTokeniser(config.bands, config.wavelengths, *sizes)
        self.shift = nn.Parameter(0.02 * torch.randn(len(ATTRIBUTES), dim))
        self.rebuild = TokenHead(dim, config.bands, cell)
        adapts = config.tune == "adapter"
        self.adapters = nn.ModuleDict({str(i): MixtureOfAdapters(config) for i in config.adapted if adapts})
        self.refine = RefiningAdapter(dim, config.tokeniser_dim, config.refine_queries) if adapts else None
        self.head = TokenHead(len(config.adapted) * dim, config.classes, cell)
        self.set_pretraining(False)

    def set_pretraining(self, on: bool) -> None:
        """Pretraining trains all but head and Are-adapter; stage 2 what ``tune`` says."""
        self.requires_grad_(on or self.config.tune != "head")
        self.body.requires_grad_(on or self.config.tune == "full")
        self.decoder.requires_grad_(on)
        self.rebuild.requires_grad_(on)
        self.head.requires_grad_(not on)
        if self.refine is not None:
            self.refine.requires_grad_(not on)
        self.train(self.training)

    def forward(self, batch: Batch) -> Output:
        """``image`` (B, bands, H, W), ``valid`` (B, H, W) -> logits (B, K, H, W) and one routing an adapted block."""
        image, valid = read_valid(batch["image"], batch.get("valid"), self.config.bands)
        size = (image.shape[-2], image.shape[-1])
        tokens = self.tokeniser(image, valid)
        levels, last, routings = self._encode(tokens)
        if self.refine is not None:
            levels[-1] = self.refine(last, tokens.valid, tokens.low, tokens.low_valid)
        cells = WindowGrid(len(image), *tokens.grid, (1, 1), self.config.cell, size)
        layout = SpatialHalf(len(image), tokens.spatial.shape[1], cells)
        logits = self.head(torch.cat(levels, dim=-1), tokens.grid, size)
        return Output(logits, routings, dict.fromkeys(routings, layout))

    def _encode(self, tokens: HyperTokens) -> tuple[list[Tensor], Tensor, dict[str, Routing]]:
        """Tokens through body and adapters -> what is read after each adapted block and at last, and the routings."""
        count = tokens.spatial.shape[1]
        x = torch.cat([tokens.spatial + self.shift[0], tokens.spectral + self.shift[1]], dim=1)  # (B, N + M, D)
        has_data = tokens.valid.any(1, keepdim=True).expand(-1, tokens.spectral.shape[1])
        keys = torch.cat([tokens.valid, has_data], dim=1)
        levels, routings = [], {}
        for number, block in enumerate(self.body.blocks):
            x = block.attend(x, keys)
            added = 0
            if str(number) in self.adapters:
                added, routings[f"block {number}"] = self.adapters[str(number)](block.norm2(x), keys, count)
            x = block.feed_forward(x) + added
            if number in self.config.adapted:
                levels.append(merge_halves(x, count))
        return levels, merge_halves(self.body.norm(x), count), routings

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Stage 2: cross-entropy over labelled pixels, and the routers' balance where there are adapters."""
        losses = {"task": pixel_cross_entropy(output.prediction, batch["mask"])}
        return losses | self._balance(output.routings.values())

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The body reconstructs hidden colours; HyperT and AoMoA reconstruct all bands through the body as it is."""
        config = self.config
        image, valid = read_valid(batch["image"], batch.get("valid"), config.bands)
        colours = image[:, colour_bands(config.wavelengths, config.bands)]
        body = masked_reconstruction_loss(self.body, self.decoder, colours, valid, config.hidden_share)
        self.body.requires_grad_(False)  # what follows is built on the body, it must not move it
        spectral, routings = self._reconstruct(image, valid)
        self.body.requires_grad_(True)
        return {"body": body, "reconstruction": spectral} | self._balance(routings.values())

    def _reconstruct(self, image: Tensor, valid: Tensor) -> tuple[Tensor, dict[str, Routing]]:
        """Stage 1: mean absolute error over the valid pixels of patches that were hidden, as nodata is."""
        cell, size = self.config.cell, (image.shape[-2], image.shape[-1])
        seen = cells_with_data(valid, cell)
        hidden = choose_hidden(seen.flatten(1), self.config.hidden_share).view_as(seen)
        hidden = pixels_of_cells(hidden, cell, size) & valid
        shown = valid & ~hidden
        tokens = self.tokeniser(image, shown)
        _, last, routings = self._encode(tokens)
        error = (self.rebuild(last, tokens.grid, size) - image).abs() * hidden[:, None]
        return error.sum() / (hidden.sum() * self.config.bands).clamp_min(1), routings

    def _balance(self, routings: Sequence[Routing]) -> dict[str, Tensor]:
        """Balance of weights, and with noise of the expected load, of both routers of a block together."""
        found = [importance_cv2(r) + (0 if r.noise_std is None else load_cv2(r)) for r in routings]
        return {"balance": self.config.balance * torch.stack(found).mean()} if found else {}

    @classmethod
    def tiny(cls) -> Self:
        """5 bands, of which one has no wavelength, 3 classes, two blocks of width 16, four adapters."""
        colours = (480.0, 560.0, 660.0, 830.0, 0.0)
        body = {"dim": 16, "depth": 2, "heads": 2, "cell": 4, "adapted": (0, 1)}
        tokens = {"tokeniser_dim": 12, "queries_side": 3, "spectral_queries": 4, "refine_queries": 3}
        return cls(SpectralXConfig(5, 3, colours, bottleneck=8, expert_width=6, **body, **tokens))

    @classmethod
    def tiny_batch(cls, images: int, seed: int) -> dict[str, Tensor]:
        """Images of 5 bands and 14 x 11 pixels with 3 classes, a tenth of the pixels invalid."""
        generator = torch.Generator().manual_seed(seed)
        shape = (images, 14, 11)
        return {
            "image": torch.randn(images, 5, 14, 11, generator=generator),
            "valid": torch.rand(shape, generator=generator) > 0.1,
            "mask": torch.randint(-1, 3, shape, generator=generator),
        }

    @classmethod
    def dense_twin(
        cls, config: SpectralXConfig, equal: Literal["compute", "parameters"] = "compute"
    ) -> SpectralXConfig:
        """k adapters, all used, of the same width; with equal parameters E / k times as wide."""
        width = config.expert_width
        if equal == "parameters":
            width = round(width * config.experts / config.top_k)
        return replace(config, experts=config.top_k, expert_width=width)

    @classmethod
    def scaled(cls, config: SpectralXConfig, experts: int, top_k: int) -> SpectralXConfig:
        """Another number of adapters of the same width."""
        return replace(config, experts=experts, top_k=top_k)

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """Adapters have numbers only."""
        return tuple(f"adapter {i + 1}" for i in range(self.config.experts))


class MixtureOfAdapters(nn.Module):
    """AoMoA: one bank of adapters in a bottleneck, a noisy router for each attribute, mixed in log space."""

    def __init__(self, config: SpectralXConfig) -> None:
        super().__init__()
        dim, narrow, experts = config.dim, config.bottleneck, config.experts
        self.enter = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, narrow), nn.LayerNorm(narrow))
        routers = {
            name: NoisyScorer(LinearScorer(narrow, experts), narrow, experts, floor=config.noise_floor)
            for name in ATTRIBUTES
        }
        self.mixture = MoELayer(
            TaskGates(routers),
            StackedFFN(experts, narrow, config.expert_width),
            selector=TopK(config.top_k),
            # a single choice keeps its probability, or no gradient would reach the router
            weigh=weighing.softmax_selected if config.top_k > 1 else weighing.raw,
            executor=log_space,
        )
        self.leave = nn.Linear(narrow, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor, keys: Tensor, spatial: int) -> tuple[Tensor, Routing]:
        """x (B, N + M, D), the first ``spatial`` = N of each image spatial, keys (B, N + M) bool -> the same shape."""
        attribute = (torch.arange(x.shape[1], device=x.device) >= spatial).long().repeat(x.shape[0])
        items = self.enter(x).flatten(0, 1)
        y, routing = self.mixture(items, mask=keys.flatten(), keys={"task": attribute})
        return self.scale * self.leave(y.view(*x.shape[:2], -1)), routing
