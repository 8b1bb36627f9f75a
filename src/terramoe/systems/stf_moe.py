"""Dynamic gating-enhanced deep learning model with multi-source remote sensing synergy for optimizing wheat yield
estimation (STF-MoE).

Li et al., Frontiers in Plant Science 16, 1640806 (2025), known here by its abstract and a survey. A Transformer reads
the season as a whole, a Bi-LSTM from step to step; what both found at each step is put side by side, and a noisy gate
gives each season to the best two of five experts of different build.

    s = [Transformer(x), BiLSTM(x)];  y = head(sum over the best two of softmax(g(ends of s))_e f_e(s))

Shapes: B rows, L steps, C inputs a step, D channels of both branches, E experts, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import ConfigError
from terramoe.moe import LinearScorer, ModuleBank, MoELayer, NoisyScorer, RouteInput, Scores, TopK, weighing
from terramoe.moe.objectives import importance_cv2
from terramoe.systems.base import Output, require_settings
from terramoe.systems.card import Card
from terramoe.systems.network_system import NetworkSystem

BRANCHES = ("transformer", "lstm")


class STFMoE(RegressorMixin, NetworkSystem):
    """See the module's docstring.

    A row is a season: the features of the first step, those of the second and so on; then what does not change, such as
    the height of the ground, which both branches read at every step. Several targets share experts and gate.

    Args:
        features: of a step. static: last columns that do not change. The steps are what is left.
        branches: "transformer", "lstm" or both.
        experts: the kind of each: "mlp", "residual", "convolution", "attention", "recurrent".
        top_k: experts that a row uses.
        width: of the Transformer, of each direction of the Bi-LSTM, and of an expert. heads, layers: of the
            Transformer; its feed-forward networks are twice as wide.
        balance: weight of the squared coefficient of variation of the experts' importance.
        steps, batch, learning_rate, weight_decay, validation, gate, device, random_state: see ``NetworkSystem``.
    """

    task = "values"
    loss_terms = ("task", "balance")
    exempt: ClassVar[dict[str, str]] = {
        "check_methods_subset_invariance": "predictions are of single precision: alike to 1e-6, not to 1e-7"
    }
    card = Card(
        name="STF-MoE",
        title="Dynamic gating-enhanced deep learning model with multi-source remote sensing synergy for optimizing "
        "wheat yield estimation",
        authors="Li et al.",
        year=2025,
        doi="10.3389/fpls.2025.1640806",
        survey_section="3.3",
        survey_reference=74,
        task="crop yield",
        sensors=("multispectral time series", "weather"),
        provenance=("abstract", "survey"),
        completions=(
            "Transformer of width 64, two layers, four heads, sine positions; Bi-LSTM of 64 a direction",
            "gate: linear in the Transformer's mean and last step and the two ends of the Bi-LSTM; best two of five, "
            "softmax over these, noise in training; squared CV of the importance, 0.01",
            "the five experts: perceptron, residual perceptron, convolution over the steps, self-attention, and a "
            "recurrent one behind a narrow linear map; each gives 64 channels, of which a linear head makes the yield",
            "static values are read at every step; Huber loss, AdamW 0.001, weight decay 0.0001",
            "2000 steps of 64 rows instead of 200 epochs; the step with the least held-out loss is kept",
        ),
        differences=("no code was released",),
        reported="winter wheat of six Chinese provinces, latest year held out: R2 0.827, RMSE 547.7 kg/ha",
    )  # fmt: skip

    def __init__(
        self,
        features: int = 1,
        static: int = 0,
        branches: tuple[str, ...] = BRANCHES,
        experts: tuple[str, ...] = ("mlp", "residual", "convolution", "attention", "recurrent"),
        top_k: int = 2,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        balance: float = 1e-2,
        steps: int = 2000,
        batch: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        validation: float = 0.1,
        gate: str = "learned",
        device: str = "cpu",
        random_state: int | None = None,
    ) -> None:
        self.features = features
        self.static = static
        self.branches = branches
        self.experts = experts
        self.top_k = top_k
        self.width = width
        self.heads = heads
        self.layers = layers
        self.balance = balance
        self.steps = steps
        self.batch = batch
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation = validation
        self.gate = gate
        self.device = device
        self.random_state = random_state

    def network(self, columns: int, targets: int) -> nn.Module:
        """See ``NetworkSystem``. ConfigError if the columns are no whole number of steps."""
        dynamic = columns - self.static
        if dynamic < 1 or dynamic % self.features:
            raise ConfigError(
                f"{columns} columns, {self.static} of them static, are no steps of {self.features} features",
                where=type(self).__name__,
                fix="set features and static as the columns of X are",
            )
        return SeasonMixture(self, dynamic // self.features, targets)

    def loss(self, output: Output, target: Tensor, network: nn.Module) -> dict[str, Tensor]:
        """Huber's loss on scaled values, and the balance of the experts' weights."""
        balance = self.balance * importance_cv2(output.routings["experts"])
        return {"task": F.huber_loss(output.prediction, target), "balance": balance}

    def twin(self, name: str) -> dict[str, Any]:
        """Perceptrons, all of them used: as many as a row uses, or as there are."""
        used = {"dense": self.top_k, "wide": len(self.experts)}[name]
        return {"experts": ("mlp",) * used, "top_k": used, "gate": "uniform"}

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The kind, with a number where there are several of it."""
        several = {kind for kind in self.experts if self.experts.count(kind) > 1}
        return tuple(
            f"{kind} {self.experts[: e + 1].count(kind)}" if kind in several else kind
            for e, kind in enumerate(self.experts)
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # of the few steps that scikit-learn's checks can wait for
        return tags

    @classmethod
    def tiny(cls) -> Self:
        """Width 8, one layer, 60 steps."""
        return cls(width=8, heads=2, layers=1, steps=60, batch=32, learning_rate=1e-2, random_state=0)

    @classmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Six steps of one feature; y is the sum of the first three or, where the last is high, their spread."""
        generator = np.random.default_rng(seed)
        X = generator.normal(size=(rows, 6))
        y = np.where(X[:, 5] > 0, np.ptp(X[:, :3], axis=1), X[:, :3].sum(axis=1))
        return X, y + 0.1 * generator.normal(size=rows)

    def _check_settings(self) -> None:
        super()._check_settings()
        rules = {
            "features must be at least 1, static at least 0": self.features >= 1 and self.static >= 0,
            f"branches must be one or both of {', '.join(BRANCHES)}": len(self.branches) >= 1
            and len(set(self.branches)) == len(self.branches)
            and set(self.branches) <= set(BRANCHES),
            f"experts must be some of {', '.join(EXPERTS)}": len(self.experts) >= 1
            and set(self.experts) <= set(EXPERTS),
            f"top_k must be in 1..{len(self.experts)}": 1 <= self.top_k <= len(self.experts),
            "width must be an even multiple of heads": min(self.heads, self.layers) >= 1
            and self.width >= 2
            and self.width % 2 == 0
            and self.width % self.heads == 0,
            "balance must be at least 0": self.balance >= 0,
        }
        require_settings(type(self).__name__, rules)


class SeasonMixture(nn.Module):
    """The two branches, the experts and the head."""

    def __init__(self, settings: STFMoE, steps: int, targets: int) -> None:
        super().__init__()
        self.features, self.static, width = settings.features, settings.static, settings.width
        inputs, experts = self.features + self.static, len(settings.experts)
        self.transformer = self.lstm = None
        if "transformer" in settings.branches:
            self.transformer = SeasonTransformer(inputs, steps, width, settings.heads, settings.layers)
        if "lstm" in settings.branches:
            self.lstm = nn.LSTM(inputs, width, batch_first=True, bidirectional=True)
        ends = Ends(width if self.transformer is not None else 0, width if self.lstm is not None else 0)
        gate = NoisyScorer(LinearScorer(ends.width, experts, bias=True), ends.width, experts)
        self.layer = MoELayer(
            ReadScorer(ends, gate),
            ModuleBank(EXPERTS[kind](ends, width, settings.heads) for kind in settings.experts),
            selector=TopK(settings.top_k),
            weigh=weighing.softmax_selected if settings.top_k > 1 else weighing.raw,
        )
        self.head = nn.Linear(width, targets)

    def forward(self, x: Tensor) -> Output:
        """Rows (B, L * features + static) -> prediction (B, T) and the routing "experts"."""
        dynamic, static = x.split([x.shape[1] - self.static, self.static], dim=1)
        season = dynamic.reshape(len(x), -1, self.features)
        season = torch.cat([season, static[:, None].expand(-1, season.shape[1], -1)], dim=-1)  # (B, L, C)
        parts = [] if self.transformer is None else [self.transformer(season)]
        parts += [] if self.lstm is None else [self.lstm(season)[0]]
        y, routing = self.layer(torch.cat(parts, dim=-1))
        return Output(self.head(y), {"experts": routing})


class SeasonTransformer(nn.Module):
    """Self-attention over the steps, with positions as sines of their number."""

    def __init__(self, inputs: int, steps: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        angle = torch.arange(steps)[:, None] * torch.exp(-math.log(1e4) * torch.arange(0, width, 2) / width)
        self.register_buffer("positions", torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1), persistent=False)

    def forward(self, season: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, width)."""
        return self.encoder(self.embed(season) + self.positions)


class Ends(nn.Module):
    """What a season comes to: the Transformer's mean and last step, and the last step of each direction of the LSTM."""

    def __init__(self, transformer: int, lstm: int) -> None:
        super().__init__()
        self.transformer, self.lstm = transformer, lstm
        self.channels, self.width = transformer + 2 * lstm, 2 * transformer + 2 * lstm

    def forward(self, states: Tensor) -> Tensor:
        """(B, L, channels) -> (B, width)."""
        whole, forth, back = states.split([self.transformer, self.lstm, self.lstm], dim=-1)
        return torch.cat([whole.mean(1), whole[:, -1], forth[:, -1], back[:, 0]], dim=-1)


class ReadScorer(nn.Module):
    """A scorer that sees the ends of an item instead of the item."""

    def __init__(self, read: nn.Module, scorer: nn.Module) -> None:
        super().__init__()
        self.read, self.scorer = read, scorer

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, L, D) -> logits (T, E)."""
        return self.scorer(replace(inp, x=self.read(inp.x)))


class Perceptron(nn.Module):
    """Two layers on the ends; with ``residual`` the second adds to the first."""

    def __init__(self, ends: Ends, width: int, *, residual: bool = False) -> None:
        super().__init__()
        self.ends, self.residual = ends, residual
        self.first, self.second = nn.Linear(ends.width, width), nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(n, L, D) -> (n, width)."""
        hidden = self.first(self.ends(states))
        found = self.second(F.gelu(hidden))
        return hidden + found if self.residual else found


class Convolution(nn.Module):
    """A filter over three steps, the mean over all steps, a linear map."""

    def __init__(self, ends: Ends, width: int) -> None:
        super().__init__()
        self.filter = nn.Conv1d(ends.channels, width // 2, 3, padding=1)
        self.out = nn.Linear(width // 2, width)

    def forward(self, states: Tensor) -> Tensor:
        """(n, L, D) -> (n, width)."""
        return self.out(F.gelu(self.filter(states.transpose(1, 2))).mean(-1))


class Attention(nn.Module):
    """Steps that read each other, and their mean."""

    def __init__(self, ends: Ends, width: int, heads: int) -> None:
        super().__init__()
        self.enter = nn.Linear(ends.channels, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, states: Tensor) -> Tensor:
        """(n, L, D) -> (n, width)."""
        x = self.enter(states)
        return (x + self.attention(x, x, x, need_weights=False)[0]).mean(1)


class Recurrent(nn.Module):
    """A gated recurrent unit behind a narrow linear map: of low rank."""

    def __init__(self, ends: Ends, width: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(ends.channels, width // 2)
        self.unit = nn.GRU(width // 2, width // 2, batch_first=True)
        self.out = nn.Linear(width // 2, width)

    def forward(self, states: Tensor) -> Tensor:
        """(n, L, D) -> (n, width)."""
        return self.out(self.unit(self.narrow(states))[0][:, -1])


EXPERTS: dict[str, Callable[[Ends, int, int], nn.Module]] = {
    "mlp": lambda ends, width, heads: Perceptron(ends, width),
    "residual": lambda ends, width, heads: Perceptron(ends, width, residual=True),
    "convolution": lambda ends, width, heads: Convolution(ends, width),
    "attention": lambda ends, width, heads: Attention(ends, width, heads),
    "recurrent": lambda ends, width, heads: Recurrent(ends, width),
}
