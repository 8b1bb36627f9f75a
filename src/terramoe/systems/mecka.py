"""MECKA: Collaboration Between Multiple Experts for Knowledge Adaptation on Multiple Remote Sensing Sources.

Ngo, Kim, Park, Cho, IEEE Transactions on Geoscience and Remote Sensing 60 (2022), doi:10.1109/TGRS.2022.3190476.

One extractor for all, one classifier (*head*) for each source, and no router: all heads answer with equal weight, each
for the classes that its source has labels of. On images of the target, each head learns from what the others say:

    x = extractor(tile);   probability of class k = mean over the heads that know k of head(x)_k

Shapes: N tiles (the routed items), S sources, E heads, K classes, W features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, Self

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe import All, ModuleBank, MoELayer, ZeroScorer
from terramoe.nets import MaskedGroupNorm, Patches, masked_average_pool, patches_of
from terramoe.nets.strong_view import strong_view
from terramoe.systems.base import Batch, Output, System, require_settings
from terramoe.systems.card import Card
from terramoe.tasks import IGNORE

GROUPS = 4  # of channels that are normalised together
AT_ONCE = 1 << 19  # pixels of tiles that go through the extractor together, which bounds its memory
LEAST = 1e-6  # probability of a class that no head gives any, so that its logarithm is finite


@dataclass(frozen=True)
class MECKAConfig:
    """Hyper-parameters; the sources name none, so the defaults are a completion.

    Attributes:
        bands, classes: given by the data.
        domains: given by the data: the sources, and last the target.
        patch: side of a tile in pixels, odd.
        widths: channels of the extractor's levels, each of half the resolution of the one before.
        head_width: hidden width of a head.
        coverage: a string for each source with "1" for a class that it has labels of and "0" for one that it lacks,
            such as ("11100", "00111"); () if every source has them all.
        head_of_source: the number of the head, from 0, that each source trains, -1 for a source that is left out;
            () gives each its own. (0, 0, 0) pools three sources.
        consistency: weight of what heads learn from each other on the target; 0 for sources only.
        confidence: the least probability at which the others teach.
        teach_extractor: whether what heads learn from each other moves the extractor too, or the heads alone.
    """

    bands: int
    classes: int
    domains: int
    patch: int = 223
    widths: tuple[int, ...] = (64, 128, 256, 512)
    head_width: int = 256
    coverage: tuple[str, ...] = ()
    head_of_source: tuple[int, ...] = ()
    consistency: float = 1.0
    confidence: float = 0.9
    teach_extractor: bool = False

    def __post_init__(self) -> None:
        sources = self.domains - 1
        rows = [row for row in self.coverage if isinstance(row, str) and set(row) <= {"0", "1"} and "1" in row]
        heads, sizes = self.head_of_source, (*self.widths, GROUPS)
        covered = len(self.coverage) == len(rows) == sources and {len(row) for row in rows} == {self.classes}
        dealt = len(heads) == sources and {*heads} - {-1} == {*range(max(heads, default=-1) + 1)} != set()
        checks = {
            "bands, classes and head_width must be at least 1": min(self.bands, self.classes, self.head_width) >= 1,
            "domains must be at least 2, one or more sources and the target": sources >= 1,
            f"widths must be multiples of {GROUPS}": min(sizes) == GROUPS and not any(w % GROUPS for w in sizes),
            "patch must be odd and at least 2 to the power of the levels": self.patch % 2 == 1
            and self.patch >= 2 ** len(self.widths),
            f"coverage must be () or {sources} strings of {self.classes} digits 0 or 1": not self.coverage or covered,
            f"head_of_source must be () or {sources} numbers, with no head left out": not heads or dealt,
            "consistency must be 0 or more, confidence in 0..1": self.consistency >= 0 and 0 <= self.confidence <= 1,
        }
        require_settings("MECKAConfig", checks)

    @property
    def heads(self) -> tuple[tuple[int, ...], ...]:
        """The sources, from 0, that each head is trained on."""
        sources = self.head_of_source or range(self.domains - 1)
        return tuple(tuple(s for s, head in enumerate(sources) if head == e) for e in range(max(sources) + 1))

    @property
    def known(self) -> tuple[tuple[bool, ...], ...]:
        """For each head, the classes that any of its sources has."""
        rows = self.coverage or ("1" * self.classes,) * (self.domains - 1)
        return tuple(tuple(any(rows[s][k] == "1" for s in head) for k in range(self.classes)) for head in self.heads)


class MECKA(System):
    """See the module's docstring. The labels of the target are never read."""

    Config = MECKAConfig
    card = Card(
        name="MECKA",
        title="Collaboration Between Multiple Experts for Knowledge Adaptation on Multiple Remote Sensing Sources",
        authors="Ngo, Kim, Park, Cho",
        year=2022,
        doi="10.1109/TGRS.2022.3190476",
        survey_section="3.4",
        survey_reference=103,
        task="scene classification, adapted from several sources to an unlabelled target",
        sensors=("optical",),
        provenance=("abstract",),
        completions=(
            "extractor: 3 x 3 convolution, ReLU, 2 x 2 average and group norm a level, then the mean over the tile; no "
            "statistics of the batch, so that tiles do not influence each other",
            "heads: two layers over all classes; a head's loss and vote are over those that its source has labels of",
            "the vote on a class is the mean over the heads that know it; then classes are scaled to sum to 1",
            "weak view: the tile as drawn; strong view: turned, with noise, other gains and offsets, and a square lost",
            "the others teach a head where their vote on a class reaches 0.9; first come steps on the sources, no ramp",
            "what heads teach each other moves the heads alone: taught as well, the extractor lost classes in trials",
        ),
        differences=("no code is released",),
        reported="no figure could be read: the abstract gives none",
    )
    conditioning = ()
    exempt = MappingProxyType(dict.fromkeys(("task_gradient", "auxiliary_gradient"), "heads answer alike, unrouted"))

    def __init__(self, config: MECKAConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(Level(*sizes) for sizes in pairwise((config.bands, *config.widths)))
        bank = ModuleBank(Head(config.widths[-1], config.head_width, known) for known in config.known)
        self.register_buffer("known", torch.tensor(config.known), persistent=False)  # (E, K)
        self.heads = MoELayer(ZeroScorer(bank.num_experts), bank, selector=All())

    def forward(self, batch: Batch) -> Output:
        """``image`` (B, bands, H, W), the tiles around ``wanted`` pixels -> log-probabilities (B, K, H, W)."""
        patches = patches_of(batch, self.config.patch)
        x = self.features(patches.values, patches.valid)
        votes, routing = self.heads(x, mask=patches.routed)
        share, voters = votes.chunk(2, dim=1)
        logits = (share / voters.clamp_min(LEAST)).clamp_min(LEAST).log()
        return Output(patches.to_image(logits), {"heads": routing}, {"heads": patches.layout()}, {"features": x})

    def features(self, values: Tensor, valid: Tensor) -> Tensor:
        """Tiles (N, bands, p, p), valid (N, p, p) -> (N, W)."""
        found, count = [], max(1, AT_ONCE // self.config.patch**2)
        for x, known in zip(values.split(count), valid.split(count), strict=True):
            for level in self.levels:
                x, known = level(x, known)
            found.append(x.sum((2, 3)) / known.sum((1, 2)).clamp_min(1)[:, None])
        return torch.cat(found)

    def views(self, x: Tensor) -> Tensor:
        """What each head says of features (N, W): logits (E, N, K), of classes that it does not vote on as well."""
        return torch.stack([head.logits(x) for head in self.heads.bank.experts])

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Each head on the labels of its sources, and on what the others say of the target.

        ``mask`` (B, H, W) int64, -1 = no label; ``domain`` (B, H, W) int64, the last number for the target.
        """
        patches, domain = self._tiles(batch)
        views = self.views(output.extras["features"])
        losses = {"task": self._supervised(views, domain, patches.of_batch(batch["mask"]))}
        if self.config.consistency and len(views) > 1:
            target = domain == self.config.domains - 1
            votes = votes_of(views[:, target].detach(), self.known)
            taught = pseudo_labels(votes, self.known, self.config.confidence)
            with torch.set_grad_enabled(self.config.teach_extractor):
                strong = self.features(*strong_view(patches.values[target], patches.valid[target]))
            mean = sum(map(_summed, self.views(strong), taught)) / target.sum().clamp_min(
                1
            )  # over those nobody is sure of, too
            losses["consistency"] = self.config.consistency * mean
        return losses

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The labels of the sources alone, before heads teach each other; nothing is frozen afterwards."""
        patches, domain = self._tiles(batch)
        views = self.views(self.features(patches.values, patches.valid))
        return {"task": self._supervised(views, domain, patches.of_batch(batch["mask"]))}

    def _tiles(self, batch: Batch) -> tuple[Patches, Tensor]:
        if "domain" not in batch:
            raise ConfigError("the batch has no 'domain'", where="MECKA", fix="train on a scene with domains")
        patches = patches_of(batch, self.config.patch)
        return patches, patches.of_batch(batch["domain"])

    def _supervised(self, views: Tensor, domain: Tensor, labels: Tensor) -> Tensor:
        """Sum over the heads of the mean cross-entropy over the labelled tiles of their sources."""
        total = views.new_zeros(())
        for view, known, sources in zip(views, self.known, self.config.heads, strict=True):
            own = torch.isin(domain, torch.tensor(sources, device=domain.device)) & known[labels.clamp_min(0)]
            own = torch.where(own, labels, IGNORE)
            total = total + _summed(view.masked_fill(~known, -torch.inf), own) / (own != IGNORE).sum().clamp_min(1)
        return total

    @classmethod
    def tiny(cls) -> Self:
        """3 bands, 4 classes, three sources with two or three of them, and a target."""
        coverage = ("1110", "0011", "1001")
        return cls(MECKAConfig(3, 4, 4, patch=5, widths=(8, 16), head_width=8, coverage=coverage, confidence=0.3))

    @classmethod
    def tiny_batch(cls, images: int, seed: int) -> dict[str, Tensor]:
        """Images of 3 bands and 9 x 8 pixels with 4 classes, a tenth of the pixels invalid, each of some domain."""
        generator = torch.Generator().manual_seed(seed)
        shape = (images, 9, 8)
        domain = torch.randint(0, 4, shape, generator=generator)
        label = torch.randint(0, 4, shape, generator=generator)
        known = torch.tensor([*cls.tiny().config.known, (False,) * 4])
        return {
            "image": torch.randn(images, 3, 9, 8, generator=generator),
            "valid": torch.rand(shape, generator=generator) > 0.1,
            "mask": torch.where(known[domain, label], label, IGNORE),
            "domain": domain,
        }

    @classmethod
    def dense_twin(cls, config: MECKAConfig, equal: Literal["compute", "parameters"] = "compute") -> MECKAConfig:
        """One head as wide as all of them, trained on the pooled sources; every head is in use, so both are one."""
        pooled = tuple(min(head, 0) for head in config.head_of_source) or (0,) * (config.domains - 1)
        return replace(config, head_of_source=pooled, head_width=config.head_width * len(config.heads))

    @classmethod
    def scaled(cls, config: MECKAConfig, experts: int, top_k: int) -> MECKAConfig:
        """So many heads, the sources dealt to them in turn; no more than there are sources, and all are used."""
        sources = config.domains - 1
        if not 1 <= experts <= sources or top_k != experts:
            raise ConfigError(
                f"{experts} heads of which {top_k} answer",
                where="MECKA",
                fix=f"use 1 to {sources} heads, as many as there are sources, and let all of them answer",
            )
        return replace(config, head_of_source=tuple(s % experts for s in range(sources)))

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The sources of each head."""
        return tuple("source " + " + ".join(str(s + 1) for s in head) for head in self.config.heads)


class Level(nn.Module):
    """3 x 3 convolution, ReLU, 2 x 2 average, group norm: (N, C, h, w) -> (N, W, h/2, w/2)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = MaskedGroupNorm(GROUPS, width)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, h, w) with 0 where ``valid`` (N, h, w) is False -> the halved map and its validity."""
        x, valid = masked_average_pool(nn.functional.relu(self.conv(x)), valid)
        return self.norm(x, valid), valid


class Head(nn.Module):
    """The classifier of a source: (N, W) -> (N, 2 K), its votes and, for the count of voters, whether it votes.

    Args:
        known: (K,) the classes that it votes on.
    """

    def __init__(self, width: int, hidden: int, known: tuple[bool, ...]) -> None:
        super().__init__()
        self.logits = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, len(known)))
        self.register_buffer("known", torch.tensor(known), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, W) -> (N, 2 K)."""
        known = self.known[None]
        return torch.cat([votes_of(self.logits(x)[None], known)[0], known.to(x.dtype).expand(len(x), -1)], dim=1)


def votes_of(views: Tensor, known: Tensor) -> Tensor:
    """Probabilities over the classes that a head votes on: logits (E, N, K), known (E, K) bool -> (E, N, K)."""
    return views.masked_fill(~known[:, None], -torch.inf).softmax(-1)


def pseudo_labels(votes: Tensor, known: Tensor, confidence: float) -> Tensor:
    """What the other heads teach each head: the class on which their vote is greatest, where it is great enough.

    Args:
        votes: (E, M, K) of each head, 0 for a class that it does not vote on.
        known: (E, K) bool, the classes that each head votes on.

    Returns:
        (E, M) int64, -1 where the others are not sure.
    """
    voters = known.to(votes.dtype)[:, None]
    others = (votes.sum(0) - votes) / (voters.sum(0) - voters).clamp_min(1)
    sure, label = others.max(-1)
    return torch.where(sure >= confidence, label, IGNORE)


def _summed(view: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(view, labels, ignore_index=IGNORE, reduction="sum")
