"""MEG: experts on the vectors of two networks that hear what ship it is, how far away, and how deep the receiver lies.

Qian et al., Remote Sensing 17(17), 2961 (2025). A recording becomes a spectrogram. One network of convolutions makes a
vector for the class of ship, another one vector for its range and one for the depth. Each vector has its own pool:

    y = sum of p_i (W_i v + b_i) over the 3 largest of 5,   p = softmax(G v + g), not renormalised

Each pool serves one task, so no expert is shared; ``shared=True`` is the multi-gate mixture that the name suggests
(MMoE, 2018, doi:10.1145/3219819.3220007): one pool of hidden layers, a gate and a linear head for each task.

Shapes: B recordings, F = n_fft / 2 + 1 frequencies, T moments, D embedding, K classes, V values.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe import LinearScorer, ModuleBank, MoELayer, Routing, TopK
from terramoe.nets.sound_trunks import ClassTrunk, PlaceTrunk, Spectrogram
from terramoe.systems.base import Output
from terramoe.systems.card import Card
from terramoe.systems.network_system import CHUNK, NetworkSystem
from terramoe.tasks.class_and_values import ClassAndValueScaler
from terramoe.tasks.uncertainty_weights import UncertaintyWeights, least_weighted_loss

WARM = 20 / 150  # share of the steps in which the learning rate rises


class MEG(RegressorMixin, NetworkSystem):
    """See the module's docstring.

    X is (n, samples), a recording a row; y is (n, 1 + V), the class as any number, then the values, in the paper the
    range and the depth. y (n,) is the class alone, or with ``recognise=False`` one value.

    Args:
        n_fft, hop: samples of a window (Hann's) and from one to the next.
        width: channels of the trunks. embedding: D. bottleneck: of the attention over time.
        experts, top_k: of each pool, and how many a recording uses.
        shared: one pool for all tasks. wide: control, one expert with a hidden layer in the place of a pool and its
            gate, of equal parameters.
        recognise: whether y begins with a class.
        balance: weight of the penalty on uneven use of the experts, which the paper does not have.
        steps: the paper's 150 epochs of 2800 recordings. On a CPU use a width of 64 or less.
        batch, learning_rate, weight_decay, validation, gate, device, random_state: see ``NetworkSystem``.

    Attributes:
        classes_: (K,) values of the class, ascending; empty if there is none.
    """

    card = Card(
        name="MEG",
        title="Multi-Task Mixture-of-Experts Model for Underwater Target Localization and Recognition",
        authors="Qian et al.",
        year=2025,
        doi="10.3390/rs17172961",
        survey_section="3.2",
        survey_reference=116,
        task="class, range and depth of a source of sound",
        sensors=("hydrophone",),
        provenance=("paper", "code"),
        completions=(
            "magnitudes: natural logarithm of magnitude + 1e-5, Hann's window, silence beyond the recording",
            "the step that is kept is the best on a tenth of the training recordings; AdamW in the place of Adam",
            "shared=True: five layers of width 192 with ReLU and a linear head for each task",
        ),
        differences=(
            "the tasks share no expert: each has its own five and its own gate, so it is no multi-gate mixture in the "
            "usual sense; shared=True is one",
            "losses of range and depth: means over the batch as in the paper; the code sums them, which at a batch of "
            "64 makes them 64 times the class's",
            "the code adds 0.01 times a balance loss, the paper has none: off; where it is switched on, the entropy "
            "has the sign that evens the use out, while the code's pulls towards few experts, against its other term",
            "the code keeps the epoch of the best test accuracy, and its learning rate falls without the paper's rise: "
            "held-out rows choose here, and the rate rises first",
            "one task alone has no learned weight, as in the code",
        ),
        reported="DS3500 (ShipsEar over simulated channels, 36 positions), 5 folds over neighbouring segments of the "
        "same recordings: accuracy 95.93 %, 0.2011 km, 20.61 m; without experts 96.07 %, 0.2565 km, 27.68 m",
    )
    task = "class and values"
    exempt: ClassVar[dict[str, str]] = {
        "check_regressors_no_decision_function": "one of the columns is a class, which has probabilities",
    }
    loss_terms: ClassVar[tuple[str, ...]] = ("task", "balance")

    def __init__(
        self,
        *,
        n_fft: int = 1024,
        hop: int = 160,
        width: int = 512,
        embedding: int = 192,
        bottleneck: int = 128,
        experts: int = 5,
        top_k: int = 3,
        shared: bool = False,
        wide: bool = False,
        recognise: bool = True,
        balance: float = 0.0,
        steps: int = 6600,
        batch: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 5e-4,
        validation: float = 0.1,
        gate: str = "learned",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_fft, self.hop = n_fft, hop
        self.width, self.embedding, self.bottleneck = width, embedding, bottleneck
        self.experts, self.top_k, self.shared, self.wide = experts, top_k, shared, wide
        self.recognise, self.balance = recognise, balance
        self.steps, self.batch, self.learning_rate, self.weight_decay = steps, batch, learning_rate, weight_decay
        self.validation, self.gate, self.device, self.random_state = validation, gate, device, random_state

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> Self:
        """See ``NetworkSystem``; ``residual_std_`` of a class is NaN."""
        super().fit(X, y, groups)
        if self.recognise:
            self.residual_std_ = np.nan if self.flat_ else np.r_[np.nan, self.residual_std_[1:]]
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(n, K) probability of each of ``classes_``. ConfigError if y had no class."""
        X = self._read(X)
        if not self.recognise:
            raise ConfigError("there is no class", where="MEG.predict_proba", fix="fit with recognise=True")
        network, x = deepcopy(self.network_).double(), self._rows(X).double()  # so that company does not matter at all
        with torch.no_grad():
            logits = torch.cat([network(x[i : i + CHUNK]).prediction for i in range(0, len(x), CHUNK)])
        return torch.softmax(logits[:, : len(self.classes_)], dim=1).cpu().numpy()

    def score(self, X: np.ndarray, y: np.ndarray) -> float:
        """Mean over the columns of y: the share of right classes, and the coefficient of determination of a value."""
        y = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        found = self.predict(X).reshape(y.shape)
        marks = [np.mean(found[:, 0] == y[:, 0])] if self.recognise else []
        return float(np.mean(marks + [r2_score(y[:, i], found[:, i]) for i in range(len(marks), y.shape[1])]))

    def network(self, columns: int, targets: int) -> nn.Module:
        """See ``NetworkSystem``. The prediction is (B, K + V): logits, then scaled values."""
        outputs = {name: len(self.classes_) if name == "class" else 1 for name in self._tasks(targets)}
        heads = Heads(self.embedding, self.experts, self.top_k, outputs, shared=self.shared)
        if self.wide:
            size = sum(parameter.numel() for parameter in heads.parameters()) - sum(outputs.values())
            hidden = round(size / sum(self.embedding + 1 + out for out in outputs.values()))
            heads = Heads(self.embedding, 1, 1, outputs, hidden=max(1, hidden))
        return Network(self, heads, outputs)

    def loss(self, output: Output, target: Tensor, network: nn.Module) -> dict[str, Tensor]:
        """Cross-entropy of the class and squared errors of the values, weighed by what the network learned.

        Held-out rows are judged with the best weights for them, so that looks can be compared.
        """
        prediction, count, first = output.prediction, len(self.classes_), int(self.recognise)
        losses = (prediction[:, count:] - target[:, first:]).square().mean(0)
        if self.recognise:
            wrong = nn.functional.cross_entropy(prediction[:, :count], target[:, 0].long())
            losses = torch.cat([wrong[None], losses])
        if len(losses) == 1:
            terms = {"task": losses[0]}
        else:
            terms = {"task": network.weights(losses) if network.training else least_weighted_loss(losses)}
        if self.balance > 0:
            terms["balance"] = self.balance * sum(unevenness(routing) for routing in output.routings.values())
        return terms

    def point(self, prediction: Tensor) -> Tensor:
        """(B, K + V) -> (B, 1 + V): number of the class, then the values, scaled."""
        if not self.recognise:
            return prediction
        count = len(self.classes_)
        return torch.cat([prediction[:, :count].argmax(1, keepdim=True).float(), prediction[:, count:]], dim=1)

    def scalers(self) -> tuple[BaseEstimator, BaseEstimator]:
        """Recordings stay as they are; a class becomes its number, a value is divided by its largest size."""
        return StandardScaler(with_mean=False, with_std=False), ClassAndValueScaler(
            self.classes_ if self.recognise else None
        )

    def schedule(self, step: int) -> float:
        """A linear rise, then half a cosine down to 0."""
        warm = max(1, round(WARM * self.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, self.steps - warm)))

    def before_fit(self, y: np.ndarray) -> None:
        """Finds the classes among all rows, so that their number does not hang on which are held out."""
        self.classes_ = np.unique(y[:, 0]) if self.recognise else np.empty(0)

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """The experts by number."""
        return tuple(f"expert {i + 1}" for i in range(1 if self.wide else self.experts))

    def twin(self, name: str) -> dict[str, Any]:
        """One linear map for each task, the paper's MCL ("dense"), or a network of equal parameters ("wide")."""
        return {"experts": 1, "top_k": 1} if name == "dense" else {"wide": True}

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # of the few steps that scikit-learn's checks can wait for
        return tags

    @classmethod
    def tiny(cls) -> Self:
        """Windows of 8 samples, width 8, three experts of which two are used, 60 steps, with the balance penalty."""
        return cls(
            n_fft=8, hop=4, width=8, embedding=8, bottleneck=4, experts=3, top_k=2, balance=0.01, steps=60, batch=32,
            learning_rate=1e-2, random_state=0,
        )  # fmt: skip

    @classmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Waves of 32 samples in noise. The class is their pitch, the range their loudness, the depth their mean."""
        random = np.random.default_rng(seed)
        kind, distance, depth = (
            random.integers(0, 3, rows),
            random.uniform(1, 10, rows),
            random.uniform(100, 1000, rows),
        )
        phase = random.uniform(0, 2 * np.pi, (rows, 1))
        wave = np.sin(2 * np.pi * np.array([0.25, 0.35, 0.45])[kind, None] * np.arange(32) + phase)
        X = wave * np.exp(-distance / 3)[:, None] + 0.02 * random.standard_normal((rows, 32)) + depth[:, None] / 1000
        return X, np.column_stack([kind, distance, depth])

    # ----------------------------------------------------------------------------------------------------------------

    def _tasks(self, targets: int) -> tuple[str, ...]:
        values = targets - int(self.recognise)
        names = ("range", "depth") if values == 2 else tuple(f"value{i}" for i in range(values))
        return ("class", *names) if self.recognise else names

    def _held_out(self, rows: int, groups: np.ndarray | None, random: np.random.RandomState) -> np.ndarray:
        held = super()._held_out(rows, groups, random)
        if (~held).sum() < 2:
            raise ValueError("MEG has 1 sample to train on, and normalises over the batch: give at least 2")
        return held

    def _check_settings(self) -> None:
        super()._check_settings()
        for holds, name, fix in (
            (self.n_fft >= 2, "n_fft", "use 2 or more"),
            (self.hop >= 1, "hop", "use 1 or more"),
            (self.width >= 1, "width", "use 1 or more"),
            (self.embedding >= 1, "embedding", "use 1 or more"),
            (self.bottleneck >= 1, "bottleneck", "use 1 or more"),
            (self.experts >= 1, "experts", "use 1 or more"),
            (1 <= self.top_k <= self.experts, "top_k", f"use 1 to {self.experts}"),
            (self.batch >= 2, "batch", "use 2 or more: it is normalised over"),
            (self.balance >= 0, "balance", "use 0 or more"),
        ):
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", where="MEG", fix=fix)


def unevenness(routing: Routing) -> Tensor:
    """sum_i (q_i - 1/E)^2 + 0.1 (ln E - H(q)), q the mean probability of each expert: 0 if all are used alike.

    The released code adds 0.1 H(q) instead, which pulls towards few experts, against the first term.
    """
    q = routing.probs.mean(0).clamp_min(torch.finfo(routing.probs.dtype).tiny)  # the entropy's slope at 0 is infinite
    return (q - 1 / len(q)).square().sum() + 0.1 * (np.log(len(q)) - torch.special.entr(q).sum())


class Network(nn.Module):
    """Recordings (B, samples) -> an ``Output`` with prediction (B, K + V)."""

    def __init__(self, settings: MEG, heads: nn.Module, tasks: dict[str, int]) -> None:
        super().__init__()
        self.tasks, self.spectrogram = tuple(tasks), Spectrogram(settings.n_fft, settings.hop)
        frequencies, width, embedding = settings.n_fft // 2 + 1, settings.width, settings.embedding
        places = [name for name in tasks if name != "class"]
        self.what = ClassTrunk(frequencies, width, embedding) if "class" in tasks else None
        self.where = PlaceTrunk(frequencies, width, settings.bottleneck, embedding, places) if places else None
        self.heads, self.weights = heads, UncertaintyWeights(len(tasks)) if len(tasks) > 1 else None

    def forward(self, x: Tensor) -> Output:
        """See the class."""
        sound = self.spectrogram(x)
        vectors = {} if self.what is None else {"class": self.what(sound)}
        vectors |= {} if self.where is None else self.where(sound)
        answers = {name: self.heads(name, vectors[name]) for name in self.tasks}
        return Output(
            torch.cat([answer for answer, _ in answers.values()], dim=1), {name: r for name, (_, r) in answers.items()}
        )


class Heads(nn.Module):
    """Vectors (B, D) of each task -> answers (B, out), by a pool of experts for each or one for all.

    Experts are single linear maps, with ``hidden`` networks of one hidden layer; in a shared pool hidden layers, with a
    linear map for each task behind them.
    """

    def __init__(
        self, dim: int, experts: int, top_k: int, outputs: dict[str, int], *, shared: bool = False, hidden: int = 0
    ) -> None:
        super().__init__()
        if shared:
            pool = ModuleBank(nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for _ in range(experts))
            pools = dict.fromkeys(outputs, pool)
            last = {name: nn.Linear(dim, out) for name, out in outputs.items()}
        else:
            pools = {
                name: ModuleBank(expert(dim, out, hidden) for _ in range(experts)) for name, out in outputs.items()
            }
            last = {name: nn.Identity() for name in outputs}
        self.last = nn.ModuleDict(last)
        self.layers = nn.ModuleDict(
            {
                name: MoELayer(LinearScorer(dim, experts, bias=True), pool, selector=TopK(top_k))
                for name, pool in pools.items()
            }
        )

    def forward(self, task: str, x: Tensor) -> tuple[Tensor, Routing]:
        """(B, D) -> (B, out) and the routing."""
        y, routing = self.layers[task](x)
        return self.last[task](y), routing


def expert(dim: int, out: int, hidden: int) -> nn.Module:
    """A linear map, or with ``hidden`` above 0 two with a ReLU between."""
    if hidden == 0:
        return nn.Linear(dim, out)
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out))
