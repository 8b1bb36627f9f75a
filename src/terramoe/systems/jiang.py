"""Knowledge-Guided Adaptive Mixture of Experts for Precipitation Prediction.

Jiang et al., 2025, arXiv 2509.11459. Sixteen small networks forecast precipitation, each from one group of variables
that meteorology keeps together. They are trained two at a time, drawn at random, and asked to differ; then they are
frozen, and a router that sees all variables learns how much each of them counts for a sample.

    stage 1, two experts S a period:  y = sum_{i in S} softmax_S(g(x))_i f_i(x),   MSE + 0.1 max(cos(f_i, f_j), 0)
    stage 2, experts frozen:          y = sum_i softmax(g(x))_i f_i(x),            MSE + 0.001 H(softmax(g(x)))

Shapes: B rows, C columns, T targets, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe import All, ModuleBank, MoELayer, Pairs, RouteInput, Scores, weighing
from terramoe.moe.objectives import local_entropy
from terramoe.moe.selectors.pairs import pairs_from_choices
from terramoe.systems.base import Output, require_settings
from terramoe.systems.card import Card
from terramoe.systems.network_system import NetworkSystem

GROUPS = ("Momentum", "Temperature", "Moisture", "Mass", "Cloud", "Radiation")


class JiangPrecipitation(RegressorMixin, NetworkSystem):
    """See the module's docstring.

    A row is one cell: its variables, one after the other; of each variable the hours, oldest first; of each hour the
    neighbours, row by row: column = (variable x hours + hour) x neighbours + neighbour. y is the precipitation of the
    next hour, or anything else.

    Args:
        groups: how many columns belong to Momentum, Temperature, Moisture, Mass, Cloud and Radiation, which follow each
            other in this order. None deals all columns evenly; fewer than six columns are shared.
        knowledge: experts see the columns of their group alone (as a variant False: every expert sees all).
        experts: of the groups by turns in blocks: 16 are 3, 3, 3, 3, 2, 2.
        hidden: widths of an expert's layers.
        trained: experts that train at a time (as a variant as many as there are: all, and the router, in one stage).
        period: steps for which they do, the paper's epoch.
        router_share: of the steps, for stage 2.
        dissimilarity, entropy: weights of the two auxiliary losses.
        twin_of: (control) one network that sees all columns and has about as many parameters as this many experts.
        steps, batch, learning_rate, weight_decay, validation, gate, device, random_state: see ``NetworkSystem``. The
            step that is kept is one of stage 2.

    Attributes:
        chosen_: (periods, trained) the experts that each period of stage 1 trained.
    """

    task = "values"
    controls = ("dense", "uniform")
    loss_terms = ("task", "entropy", "dissimilarity")
    exempt: ClassVar[dict[str, str]] = {
        "wide": "all experts are used, so that the dense twin of equal compute has as many parameters too",
        "random": "all experts are used, so that experts drawn at random are the uniform control",
        "dissimilarity": "it is a property of the experts' weights, and moves them, not the router",
    }
    card = Card(
        name="Jiang et al.",
        title="Knowledge-Guided Adaptive Mixture of Experts for Precipitation Prediction",
        authors="Jiang et al.",
        year=2025,
        arxiv="2509.11459",
        survey_section="3.3",
        survey_reference=61,
        task="precipitation of the next hour",
        sensors=("radar", "satellite", "weather model"),
        provenance=("code", "abstract", "survey"),
        completions=(
            "the loss of stage 1 predicts, with the router restricted to the two experts; the released one does not",
            "similarity: cosine of the two experts' flattened weights where it is positive, weight 0.1; an input that "
            "one of them does not see has weight 0",
            "knowledge guidance is read as a mask: an expert sees the columns of one of the six groups, the router all",
            "entropy of the router 0.001 in stage 2; a column is scaled by its mean and spread on training rows",
            "2400 steps of 32 rows: 100 periods of 20 steps for the experts, 400 steps for the router, the released "
            "ratio of epochs; experts that no period draws stay as they were initialised",
        ),
        differences=(
            "the released stage 1 has no prediction in its loss and sets all gradients to zero before the step: no "
            "parameter moves, and the router weighs 16 random networks; here the drawn experts are trained",
            "the released input is the sum of 18 variables and the target its next value; here variables stay apart "
            "and the target is what is given as y",
            "the released scaling stretches each hour by its own extremes, of hours to come too; here training rows "
            "alone give it",
            "the released network maps a whole flattened field (100 000 inputs, 10 000 outputs); here a row is a cell "
            "with its neighbourhood",
            "the released experts all see the same input; here each sees the columns of its group",
        ),
        reported="hurricane Ian 2022, South Florida, hourly, split in time: significantly better than all baselines "
        "(abstract; MLP, LSTM and Transformer in the code; the figures were not available to us)",
    )  # fmt: skip

    def __init__(
        self,
        groups: tuple[int, ...] | None = None,
        knowledge: bool = True,
        experts: int = 16,
        hidden: tuple[int, ...] = (256, 128, 64),
        trained: int = 2,
        period: int = 20,
        router_share: float = 1 / 6,
        dissimilarity: float = 0.1,
        entropy: float = 1e-3,
        twin_of: int | None = None,
        steps: int = 2400,
        batch: int = 32,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        validation: float = 0.1,
        gate: str = "learned",
        device: str = "cpu",
        random_state: int | None = None,
    ) -> None:
        self.groups = groups
        self.knowledge = knowledge
        self.experts = experts
        self.hidden = hidden
        self.trained = trained
        self.period = period
        self.router_share = router_share
        self.dissimilarity = dissimilarity
        self.entropy = entropy
        self.twin_of = twin_of
        self.steps = steps
        self.batch = batch
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation = validation
        self.gate = gate
        self.device = device
        self.random_state = random_state

    def network(self, columns: int, targets: int) -> nn.Module:
        """See ``NetworkSystem``."""
        seen = self._columns_of_experts(columns)
        hidden = self.hidden
        if self.twin_of is not None:
            of_each = [len(c) for c in self._dealt(columns, self.twin_of)]
            hidden = twin_widths(columns, targets, hidden, of_each)
        return GroupMixture([GroupExpert(c, hidden, targets) for c in seen], columns)

    def loss(self, output: Output, target: Tensor, network: nn.Module) -> dict[str, Tensor]:
        """Squared error; in stage 1 the similarity of the experts that train, else the entropy of the router."""
        terms = {"task": nn.functional.mse_loss(output.prediction, target)}
        if network.training_now is not None:
            pairs = list(combinations([network.layer.bank.experts[e] for e in network.training_now], 2))
            alike = sum((weight_cosine(a, b).relu() for a, b in pairs), output.prediction.new_zeros(()))
            return terms | {"dissimilarity": self.dissimilarity * alike / max(len(pairs), 1)}
        return terms | {"entropy": self.entropy * local_entropy(output.routings["router"])}

    def before_step(self, network: nn.Module, step: int, random: np.random.RandomState) -> None:
        """Choose what trains: in stage 1 new experts each period, in stage 2 the router; without stages everything."""
        if step == 0:
            self.chosen_ = np.empty((0, self.trained), dtype=np.int64)
        if self.trained == self.experts:
            return
        if step < self._first_steps():
            if step % self.period == 0:
                drawn = np.sort(random.permutation(self.experts)[: self.trained])
                self.chosen_ = np.vstack([self.chosen_, drawn])
                network.train_some(tuple(drawn.tolist()))
        elif network.training_now is not None or step == 0:
            network.train_router(fixed=self.gate != "learned")

    def schedule(self, step: int) -> float:
        """0 in stage 2 of a control without a router, which has nothing left to train."""
        rests = self.gate != "learned" and self.trained < self.experts and step >= self._first_steps()
        return 0.0 if rests else 1.0

    def twin(self, name: str) -> dict[str, Any]:
        """One network that sees all columns, trained in one stage."""
        return {"experts": 1, "trained": 1, "knowledge": False, "twin_of": self.experts}

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The group and a number, or the number alone where every expert sees all."""
        if not self.knowledge:
            return tuple(f"expert {e + 1}" for e in range(self.experts))
        groups = self.expert_groups()
        return tuple(f"{GROUPS[g]} {groups[: e + 1].count(g)}" for e, g in enumerate(groups))

    def expert_groups(self) -> list[int]:
        """E indices into GROUPS: experts of a group stand together."""
        return _blocks(self.experts)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # of the few steps that scikit-learn's checks can wait for
        return tags

    @classmethod
    def tiny(cls) -> Self:
        """Six experts of width 8, 120 steps."""
        return cls(experts=6, hidden=(8,), steps=120, period=5, batch=32, learning_rate=1e-2, random_state=0)

    @classmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Twelve columns, two a group, of which the first two groups tell y."""
        generator = np.random.default_rng(seed)
        X = generator.normal(size=(rows, 12))
        return X, X[:, 0] + np.abs(X[:, 2]) + 0.1 * generator.normal(size=rows)

    # ----------------------------------------------------------------------------------------------------------------

    def _first_steps(self) -> int:
        """Steps of stage 1; one step at least is left for stage 2."""
        return min(round((1 - self.router_share) * self.steps), self.steps - 1)

    def _held_loss(self, network: nn.Module, x: Tensor, y: Tensor) -> float:
        # A pair is no forecast: until the router weighs all experts, there is nothing to keep.
        return super()._held_loss(network, x, y) if network.training_now is None else np.nan

    def _columns_of_experts(self, columns: int) -> list[np.ndarray]:
        return self._dealt(columns, self.experts) if self.knowledge else [np.arange(columns)] * self.experts

    def _dealt(self, columns: int, experts: int) -> list[np.ndarray]:
        """The columns that each of the experts sees."""
        if self.groups is None:
            parts = [p if len(p) else np.array([g % columns]) for g, p in enumerate(np.array_split(range(columns), 6))]
        else:
            if len(self.groups) != len(GROUPS) or min(self.groups) < 1 or sum(self.groups) != columns:
                raise ConfigError(
                    f"groups of {tuple(self.groups)} columns, X has {columns}",
                    where=type(self).__name__,
                    fix=f"give the number of columns of each of {', '.join(GROUPS)}",
                )
            parts = np.split(np.arange(columns), np.cumsum(self.groups)[:-1])
        return [parts[g] for g in _blocks(experts)]

    def _check_settings(self) -> None:
        super()._check_settings()
        rules = {
            f"with knowledge there must be an expert for each of {len(GROUPS)} groups": not self.knowledge
            or self.experts >= len(GROUPS),
            "trained must be in 1..experts": 1 <= self.trained <= self.experts,
            "period must be at least 1": self.period >= 1,
            "hidden must be widths of at least 1": len(self.hidden) >= 1 and min(self.hidden) >= 1,
            "router_share must be in 0..1": 0 <= self.router_share <= 1,
            "dissimilarity and entropy must be at least 0": min(self.dissimilarity, self.entropy) >= 0,
        }
        require_settings(type(self).__name__, rules)


class GroupMixture(nn.Module):
    """Experts on their columns, and a router on all.

    Attributes:
        training_now: the experts that stage 1 uses and trains now, or None: all are used.
    """

    def __init__(self, experts: Sequence[GroupExpert], columns: int) -> None:
        super().__init__()
        self.layer = MoELayer(
            RowScorer(columns, len(experts)),
            ModuleBank(experts),
            selector=All(),
            weigh=weighing.softmax_selected,
        )
        self.training_now: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Output:
        """(B, C) -> prediction (B, T) and the routing "router"."""
        y, routing = self.layer(x)
        return Output(y, {"router": routing})

    def train_some(self, experts: tuple[int, ...]) -> None:
        """Use and train some experts, with their rows of the router."""
        self.training_now = experts
        self.layer.selector, self.layer.weigh = Given(experts), weighing.softmax_selected
        self._freeze([e in experts for e in range(self.layer.num_experts)], rows=experts)

    def train_router(self, *, fixed: bool) -> None:
        """Use all experts and train the router alone; a fixed one has nothing to train, and all may stay as it is."""
        self.training_now, self.layer.selector = None, All()
        self.layer.weigh = weighing.raw if fixed else weighing.softmax_selected
        self._freeze([fixed] * self.layer.num_experts, rows=range(self.layer.num_experts))

    def _freeze(self, trains: list[bool], rows: Sequence[int]) -> None:
        for expert, on in zip(self.layer.bank.experts, trains, strict=True):
            expert.requires_grad_(on)
        if isinstance(self.layer.scorer, RowScorer):
            for number, row in enumerate(self.layer.scorer.rows):
                row.requires_grad_(number in rows)


class GroupExpert(nn.Module):
    """A multilayer perceptron (ReLU) of some columns."""

    def __init__(self, columns: np.ndarray, hidden: Sequence[int], targets: int) -> None:
        super().__init__()
        self.register_buffer("columns", torch.as_tensor(columns), persistent=False)
        widths = (len(columns), *hidden, targets)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(n, C) -> (n, T)."""
        x = x[:, self.columns]
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class RowScorer(nn.Module):
    """A linear router with a parameter for each expert, so that the rows of experts that rest can rest too.

    In one matrix the optimiser's momentum and weight decay would move rows that get no gradient.
    """

    def __init__(self, columns: int, experts: int) -> None:
        super().__init__()
        whole = nn.Linear(columns, experts)
        rows = torch.cat([whole.weight, whole.bias[:, None]], dim=1).detach()
        self.rows = nn.ParameterList(nn.Parameter(row.clone()) for row in rows)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, C) -> logits (T, E)."""
        x, rows = inp.features(), torch.stack(list(self.rows))
        with torch.autocast(x.device.type, enabled=False):
            return Scores(nn.functional.linear(x, rows[:, :-1], rows[:, -1]))


@dataclass(frozen=True)
class Given:
    """Every item uses the same given experts."""

    experts: tuple[int, ...]
    needs = "order"
    couples_items = False

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E), of which only the length is used -> pairs."""
        chosen = torch.tensor(self.experts, device=choice.device)
        return pairs_from_choices(chosen.expand(len(choice), -1), inp.mask)


def weight_cosine(a: GroupExpert, b: GroupExpert) -> Tensor:
    """Cosine of all weights and offsets of two experts as vectors; weights of columns not seen are 0."""
    common = [torch.isin(x.columns, y.columns) for x, y in ((a, b), (b, a))]
    dot = (a.layers[0].weight[:, common[0]] * b.layers[0].weight[:, common[1]]).sum()
    dot = dot + sum((p * q).sum() for p, q in zip(list(a.parameters())[1:], list(b.parameters())[1:], strict=True))
    square = [sum(p.square().sum() for p in expert.parameters()) for expert in (a, b)]
    return dot / (square[0] * square[1]).sqrt().clamp_min(torch.finfo(dot.dtype).tiny)


def twin_widths(columns: int, targets: int, hidden: Sequence[int], of_each: Sequence[int]) -> tuple[int, ...]:
    """Widths, in proportion to ``hidden``, of the largest network that has no more parameters than several experts.

    ``of_each`` says how many columns each of these sees; their rows of the router count too.
    """

    def parameters(inputs: int, widths: Sequence[int]) -> int:
        return sum((a + 1) * b for a, b in pairwise((inputs, *widths, targets)))

    most = sum(parameters(inputs, hidden) + columns + 1 for inputs in of_each) - (columns + 1)
    widths = tuple(1 for _ in hidden)
    for first in range(1, hidden[0] * len(of_each) * 2):
        wider = tuple(max(1, round(width * first / hidden[0])) for width in hidden)
        if parameters(columns, wider) > most:
            break
        widths = wider
    return widths


def _blocks(experts: int) -> list[int]:
    """E group indices, even and in order: 16 experts are 3, 3, 3, 3, 2, 2."""
    return [g for g, part in enumerate(np.array_split(range(experts), len(GROUPS))) for _ in part]
