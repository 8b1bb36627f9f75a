"""Loyola: twelve small networks, each for a box of conditions, retrieve the column of ozone from ultraviolet light.

Using neural network ensembles for the operational retrieval of ozone total columns, 2004, DOI
10.1109/IGARSS.2004.1368589. The conditions are cut into overlapping boxes: two kinds of aerosol x three bands of
latitude x two classes of view. A network is trained alone on what lies in its box; a gate that is fixed beforehand
mixes the networks whose boxes hold a sample by how far inside it lies. Along each axis, with centre c, half width h and
overlap o of a box,

    m(u) = clip((h + o - |u - c|) / (2 o), 0, 1)

the weight of a box is the product over the axes, divided by the sum over the boxes.

Shapes: n rows, E boxes, B batch of each network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import RegressorMixin
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.mixtures.fixed_gates import draw_experts
from terramoe.moe import MoELayer, Routing, StackedFFN, TopK, ZeroScorer, weighing
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers import Scores
from terramoe.moe.scorers.boxes import Axis, BoxScorer, check_axis
from terramoe.moe.selectors import Support
from terramoe.systems.base import Output
from terramoe.systems.card import Card
from terramoe.systems.network_system import LOOKS, NetworkSystem

COLUMNS = (*(f"N-value {i + 1}" for i in range(9)), "sun", "view", "azimuth", "albedo", "latitude", "aerosol")
OZONE_AXES: tuple[Axis, ...] = (
    (14, (0.0, 1.0), 0.5, 0.0),  # kinds of aerosol
    (13, (15.0, 45.0, 75.0), 15.0, 7.5),  # latitude, degrees from the equator
    (10, (12.5, 37.5), 12.5, 5.0),  # zenith angle of the view, degrees
)
OZONE_BOXES = tuple(
    ", ".join(names)
    for names in product(("maritime", "rural"), ("low", "middle", "high latitude"), ("normal view", "polar view"))
)
GATES = ("soft", "hard", "uniform", "random")


class LoyolaOzone(RegressorMixin, NetworkSystem):
    """See the module's docstring. X (n, columns), for ozone in the order of COLUMNS; y (n,), for ozone in DU.

    Args:
        axes: along which the boxes lie, each (column, centres, half width, overlap), in the unit of X; overlap 0: the
            nearest centre, for kinds. Beyond the outermost centres the outermost boxes go on. () makes one box of all.
        hidden: tanh nodes of each network.
        gate: "soft"; "hard", the same networks, but only the box that holds the sample best answers; as controls
            "uniform" (every network sees all rows, and all answer alike) and "random" (each sees its share of the
            rows, drawn by a hash of the row, and answers for such).
        steps, batch, learning_rate, weight_decay: of AdamW for each network: all take as many steps with as many rows,
            however large their boxes. The learning rate falls to 0 as a cosine.
        validation: share of the rows, or of the groups, held out; each network keeps its best step on those of its
            box.

    Attributes:
        best_step_: (E,) the step that each network kept. Others: see ``NetworkSystem``.
    """

    card: ClassVar[Card] = Card(
        name="Loyola",
        title="Using neural network ensembles for the operational retrieval of ozone total columns",
        authors="Loyola",
        year=2004,
        doi="10.1109/IGARSS.2004.1368589",
        survey_section="3.6",
        survey_reference=90,
        task="regression of table rows: total column of ozone",
        sensors=("ultraviolet spectrometer",),
        provenance=("abstract", "survey"),
        completions=(
            "networks: one hidden layer of 20 tanh nodes, standardised rows and target",
            "boxes: latitude from the equator in bands of 30 degrees with overlaps of 7.5, view up to and beyond 25 "
            "degrees with overlaps of 5, kinds of aerosol without; the outermost boxes go on for ever",
            "gate: a trapezoid along each axis, their product, normalised",
            "training: AdamW, 6000 steps with 64 rows for each network, cosine decay, best step on held-out rows of "
            "the box; the original could simulate as many samples for a box as it liked",
            "a box without training rows is trained on all rows",
        ),
        differences=(),
        reported="no figures could be read; operational for GOME on ERS-2, near-real-time included",
    )
    task = "values"
    gates: ClassVar[tuple[str, ...]] = GATES
    exempt: ClassVar[dict[str, str]] = {
        "router": "the gate is fixed beforehand and learns nothing",
    }

    def __init__(
        self,
        axes: Sequence[Axis] = OZONE_AXES,
        *,
        hidden: int = 20,
        gate: str = "soft",
        steps: int = 6000,
        batch: int = 64,
        learning_rate: float = 5e-3,
        weight_decay: float = 0.0,
        validation: float = 0.1,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.axes = axes
        self.hidden = hidden
        self.gate = gate
        self.steps = steps
        self.batch = batch
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation = validation
        self.device = device
        self.random_state = random_state

    def network(self, columns: int, targets: int) -> nn.Module:
        """The bank under its gate; boxes in the unit of the scaled rows."""
        mean, scale = self.x_scaler_.mean_, self.x_scaler_.scale_
        axes = []
        for column, centres, half, overlap in self.axes:
            if not 0 <= column < columns:
                raise ConfigError(f"axis of column {column}", where="LoyolaOzone", fix=f"X has {columns} columns")
            inside = tuple((c - mean[column]) / scale[column] for c in centres)
            axes.append((column, inside, half / scale[column], overlap / scale[column]))
        return BoxNetworks(axes, columns, self.hidden, targets, self.gate)

    def loss(self, output: Output, target: Tensor, network: nn.Module) -> dict[str, Tensor]:
        """Mean squared error of the mixture; in training each network has its own (``_train``)."""
        return {"task": ((output.prediction - target) ** 2).mean()}

    def schedule(self, step: int) -> float:
        """Half a cosine, from 1 to 0."""
        return 0.5 * (1 + float(np.cos(np.pi * step / self.steps)))

    def twin(self, name: str) -> dict[str, Any]:
        """One network on all rows: of the size of one ("dense") or of all together ("wide")."""
        boxes = int(np.prod([len(axis[1]) for axis in self.axes]))
        return {"axes": (), "hidden": self.hidden * (boxes if name == "wide" else 1)}

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The boxes: in words for those of ozone, else by their centres."""
        if tuple(self.axes) == OZONE_AXES:
            return OZONE_BOXES
        centres = product(*(axis[1] for axis in self.axes))
        return tuple("box " + " x ".join(f"{c:g}" for c in box) if box else "all rows" for box in centres)

    @classmethod
    def tiny(cls) -> LoyolaOzone:
        """Two boxes along the first column, networks of six nodes, 100 steps."""
        return cls(((0, (-1.0, 1.0), 1.0, 0.5),), hidden=6, steps=100, batch=32, learning_rate=0.02, random_state=0)

    @classmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Three columns; the slope of the second turns round where the first passes 0."""
        random = np.random.default_rng(seed)
        X = random.uniform(-2, 2, (rows, 3))
        return X, X[:, 1] * np.tanh(2 * X[:, 0]) + 0.1 * random.normal(size=rows)

    # ----------------------------------------------------------------------------------------------------------------

    def _train(self, x: Tensor, y: Tensor, held: np.ndarray, random: np.random.RandomState) -> None:
        network = self.network_.train()
        bank = network.layer.bank
        inside = network.members(x).cpu().numpy()
        rows_of, judged = _rows_of(inside & ~held[:, None], ~held), torch.from_numpy(inside[held]).to(x.device)
        counts = np.array([len(rows) for rows in rows_of])[:, None]
        table = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(rows) for rows in rows_of], batch_first=True)
        optimiser = torch.optim.AdamW(bank.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        best, trace, losses = BestSteps(bank), [], []
        look = max(1, self.steps // LOOKS)
        for step in range(self.steps):
            drawn = torch.from_numpy((random.random_sample((len(counts), self.batch)) * counts).astype(np.int64))
            rows = table.gather(1, drawn).to(x.device)  # (E, B), each network's own
            optimiser.param_groups[0]["lr"] = self.learning_rate * self.schedule(step)
            each = ((bank.run_padded(x[rows]) - y[rows]) ** 2).mean(dim=(1, 2))
            optimiser.zero_grad()
            each.sum().backward()  # no parameter is shared: each network learns as if alone
            optimiser.step()
            losses.append(float(each.detach().mean()))
            if (step + 1) % look == 0 or step + 1 == self.steps:
                found = best.look(step + 1, x[held], y[held], judged)
                trace.append((step + 1, float(np.mean(losses)), found))
                losses = []
        best.restore()
        self.trace_, self.best_step_ = np.array(trace), best.step.cpu().numpy()
        network.eval()

    def _build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network(self.n_features_in_, self.targets_).to(self.device)

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.hidden < 1:
            raise ConfigError(f"hidden is {self.hidden!r}", where="LoyolaOzone", fix="use 1 or more")
        for axis in self.axes:
            check_axis(axis)


class BoxNetworks(nn.Module):
    """A bank of equal networks under a gate that learns nothing."""

    def __init__(self, axes: Sequence[Axis], columns: int, hidden: int, targets: int, gate: str) -> None:
        super().__init__()
        boxes = int(np.prod([len(axis[1]) for axis in axes]))
        bank = StackedFFN(boxes, columns, hidden, targets, activation="tanh")
        scorers = {"uniform": ZeroScorer, "random": RowHashScorer}
        scorer = scorers[gate](boxes) if gate in scorers else BoxScorer(axes)
        hard = {"selector": TopK(1), "weigh": weighing.renormalised} if gate == "hard" else {"selector": Support()}
        self.layer = MoELayer(scorer, bank, **hard)

    def forward(self, x: Tensor) -> Output:
        """Scaled rows (n, columns) -> (n, targets), and the routing "boxes"."""
        y, routing = self.layer(x)
        return Output(y, {"boxes": routing})

    @torch.no_grad()
    def members(self, x: Tensor) -> Tensor:
        """(n, E) bool: the boxes that hold each row, whether or not they may answer for it."""
        routing: Routing = self.layer.route(RouteInput(x))
        return routing.probs > 0


class BestSteps:
    """The parameters that each network of a bank had at its own best step.

    Attributes:
        step: (E,) that step; the last one for a network without rows to be judged by.
    """

    def __init__(self, bank: StackedFFN) -> None:
        self.bank = bank
        self.kept = [parameter.detach().clone() for parameter in bank.parameters()]
        self.loss = self.kept[0].new_full((bank.num_experts,), torch.inf)
        self.step = torch.zeros_like(self.loss, dtype=torch.int64)

    @torch.no_grad()
    def look(self, step: int, x: Tensor, y: Tensor, inside: Tensor) -> float:
        """Judge by rows x (n, D) and y (n, targets), each network by those of its box (n, E); the mean over networks.

        NaN if no network has a row.
        """
        judged = inside.sum(dim=0)
        error = ((self.bank.run_all(x) - y) ** 2).mean(dim=-1).T if len(x) else inside.to(x.dtype)
        loss = (error * inside).sum(dim=0) / judged.clamp_min(1)
        better = (loss < self.loss) | (judged == 0)
        self.loss, self.step[better] = torch.where(better, loss, self.loss), step
        for mine, parameter in zip(self.kept, self.bank.parameters(), strict=True):
            mine[better] = parameter[better]
        return float(loss[judged > 0].mean())

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept parameters back."""
        for mine, parameter in zip(self.kept, self.bank.parameters(), strict=True):
            parameter.copy_(mine)


class RowHashScorer(nn.Module):
    """The whole weight to one expert, drawn by a hash of the row: the same in any company."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, inp: RouteInput) -> Scores:
        """(T, columns) -> (T, E)."""
        drawn = torch.from_numpy(draw_experts(inp.x.detach().double().cpu().numpy(), self.experts, seed=0))
        chosen = nn.functional.one_hot(drawn, self.experts).to(inp.x.device, inp.x.dtype)
        return Scores(chosen.log())


def _rows_of(inside: np.ndarray, train: np.ndarray) -> list[np.ndarray]:
    """Per box its rows (n, E) bool; all training rows for a box that has none."""
    return [np.flatnonzero(mine if mine.any() else train) for mine in inside.T]
