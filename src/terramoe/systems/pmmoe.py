"""PMMoE: a pertinent multi-gate mixture of experts that inverts prestack seismic gathers for three logs at once.

Li et al., IEEE Transactions on Geoscience and Remote Sensing (2022), reference 78 of the survey. One shared expert sees
the gather and all initial models; the expert of a log sees the gather and only its own initial model; the gate of each
log weighs exactly these two, at each time sample.

    shared, own_k = convolutions of what they see;   mixed_k(t) = g_k(t) shared(t) + (1 - g_k(t)) own_k(t)
    log_k = initial_k + tower_k(mixed_k)

A row is the gather, angle by angle (A * T), then the initial models of P velocity, S velocity and density (3 * T); y is
the three logs (3 * T). Shapes: n rows, A angles, T time samples, F features. Items are (row, time), time faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import ConfigError, DataError
from terramoe.moe import All, Bank, LinearScorer, MoELayer, RouteInput, Scores, TopK
from terramoe.systems.base import Output
from terramoe.systems.card import Card
from terramoe.systems.network_system import NetworkSystem

LOGS = ("vp", "vs", "density")
SHAPED = "its rows are series of fixed layout (angles + 3 equal parts) and its targets three logs of the same length"
NEED_SERIES = (  # checks of scikit-learn that fit tables of their own
    "check_dict_unchanged", "check_dont_overwrite_parameters", "check_dtype_object", "check_estimators_dtypes",
    "check_estimators_fit_returns_self", "check_estimators_nan_inf", "check_estimators_overwrite_params",
    "check_estimators_pickle", "check_f_contiguous_array_estimator", "check_fit2d_1feature", "check_fit2d_1sample",
    "check_fit2d_predict1d", "check_fit_check_is_fitted", "check_fit_idempotent", "check_fit_score_takes_y",
    "check_methods_sample_order_invariance", "check_methods_subset_invariance", "check_n_features_in",
    "check_n_features_in_after_fitting", "check_pipeline_consistency", "check_positive_only_tag_during_fit",
    "check_readonly_memmap_input", "check_regressor_data_not_an_array", "check_regressor_multioutput",
    "check_regressors_int", "check_regressors_no_decision_function", "check_regressors_train",
)  # fmt: skip


class PMMoE(RegressorMixin, NetworkSystem):
    """See the module's docstring.

    Args:
        angles: A, traces of a gather; T follows from the number of columns.
        views: "pertinent" (above); "all", four experts that see everything, weighed by every log (the classic
            multi-gate mixture); "shared", one network for all logs, the dense twin.
        channels, features, layers, kernel: of an expert, whose layers are convolutions of odd ``kernel`` samples.
        tower: samples of a tower's convolution, odd.
        steps, batch, learning_rate, weight_decay, validation, gate, device, random_state: see ``NetworkSystem``.
    """

    card = Card(
        name="PMMoE",
        title="Pertinent Multigate Mixture-of-Experts-Based Prestack Three-Parameter Seismic Inversion",
        authors="Li et al.",
        year=2022,
        survey_section="3.6",
        survey_reference=78,
        task="regression of logs from prestack seismic gathers",
        sensors=("seismic angle gathers", "initial models"),
        provenance=("survey",),
        completions=(
            "title and year are not checked against the publisher",
            "what is known: one shared expert that sees all, three own experts that see the gather and their own "
            "initial model, and gates that each weigh exactly these two",
            "experts: 4 convolutions of 9 samples and 23 channels with batch normalisation and ReLU, 8 features",
            "gate: a convolution of 9 samples of what the own expert sees, softmax at each time sample",
            "tower: a convolution of 5 samples; its result is added to the initial model",
            "loss: sum over the logs of the squared error over the log's variance, without learned weights; Adam 3e-3",
            "scaling: one mean and deviation for the whole gather and for each log, so that amplitudes with angle and "
            "trends with time stay",
            "dense: one network of twice the channels and features, which costs and holds what four experts do; as "
            "all four run for every row there is no other wide twin",
            "random: one of the two experts at each time sample, as with both there would be nothing to draw",
        ),
        differences=(),
        reported="figures could not be read",
    )
    task = "values"
    controls = ("dense", "uniform", "random")
    exempt: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(NEED_SERIES, SHAPED),
        "wide": "all experts run for every row, so that the dense twin of equal compute has their parameters too",
    }

    def __init__(
        self,
        angles: int = 4,
        views: Literal["pertinent", "all", "shared"] = "pertinent",
        channels: int = 23,
        features: int = 8,
        layers: int = 4,
        kernel: int = 9,
        tower: int = 5,
        steps: int = 1000,
        batch: int = 16,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        validation: float = 0.1,
        gate: str = "learned",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.angles, self.views = angles, views
        self.channels, self.features, self.layers = channels, features, layers
        self.kernel, self.tower = kernel, tower
        self.steps, self.batch, self.learning_rate, self.weight_decay = steps, batch, learning_rate, weight_decay
        self.validation, self.gate, self.device, self.random_state = validation, gate, device, random_state

    def network(self, columns: int, targets: int) -> nn.Module:
        """See ``NetworkSystem``. DataError where rows and logs do not belong together."""
        samples = columns // (self.angles + 3)
        if targets != 3 * samples:
            raise DataError(
                f"{targets} targets for {samples} time samples",
                where="PMMoE",
                fix=f"give three logs of {samples} samples: {3 * samples} targets",
            )
        network = PMMoENetwork(self)
        model, log = self.x_scaler_, self.y_scaler_  # initial models must be added in the scale of the logs
        network.stretch.copy_(torch.as_tensor(model.scale_[1:] / log.scale_))
        network.shift.copy_(torch.as_tensor((model.mean_[1:] - log.mean_) / log.scale_))
        return network

    def loss(self, output: Output, target: Tensor, network: nn.Module) -> dict[str, Tensor]:
        """Sum over the three logs of the mean squared error, scaled."""
        error = (output.prediction - target).view(len(target), 3, -1)
        return {"task": error.square().mean((0, 2)).sum()}

    def scalers(self) -> tuple[BaseEstimator, BaseEstimator]:
        """One scale for the gather and one for each log."""
        for holds, name, fix in (
            (self.angles >= 1, "angles", "use 1 or more"),
            (self.views in ("pertinent", "all", "shared"), "views", "use pertinent, all or shared"),
            (min(self.channels, self.features, self.layers) >= 1, "channels, features or layers", "use 1 or more"),
            (self.kernel % 2 == 1 and self.tower % 2 == 1, "kernel or tower", "use an odd number of samples"),
        ):
            if not holds:
                raise ConfigError(f"{name} cannot be", where="PMMoE", fix=fix)
        return SeriesScaler((self.angles, 1, 1, 1)), SeriesScaler((1, 1, 1))

    def twin(self, name: str) -> dict[str, Any]:
        """One network whose doubled width makes four times the weights, as the four experts have."""
        wide = {"channels": 2 * self.channels, "features": 2 * self.features}
        return {"views": "shared", "gate": "uniform", **wide}

    def expert_names(self, layer: str) -> tuple[str, ...]:
        """What each expert sees."""
        if self.views == "pertinent":
            return "shared: gather, all models", f"own: gather, {layer} model"
        return tuple(f"expert {i + 1}" for i in range(4)) if self.views == "all" else ("one network",)

    @classmethod
    def tiny(cls) -> Self:
        """Two angles and a few channels."""
        return cls(angles=2, channels=4, features=3, layers=2, kernel=3, tower=3, steps=60, batch=8, random_state=0)

    @classmethod
    def tiny_table(cls, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """12 time samples: logs that step, their smoothed versions, and what changes of theirs two angles see."""
        generator = np.random.default_rng(seed)
        logs = np.repeat(generator.standard_normal((rows, 3, 4)), 3, axis=2) + np.array([3, 1.5, 2])[:, None]
        change = np.diff(logs, axis=2, prepend=logs[:, :, :1])
        gather = np.einsum("ak,nkt->nat", np.array([[0.5, 0.0, 0.5], [0.6, -0.3, 0.4]]), change)
        padded = np.pad(logs, ((0, 0), (0, 0), (2, 2)), mode="edge")
        smooth = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=2).mean(-1)
        gather = gather + 0.02 * generator.standard_normal(gather.shape)
        return np.concatenate([gather, smooth], axis=1).reshape(rows, -1), logs.reshape(rows, -1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        tags.target_tags.single_output = False
        return tags


class PMMoENetwork(nn.Module):
    """Experts over whole series, a gate and a tower for each log."""

    def __init__(self, settings: PMMoE) -> None:
        super().__init__()
        angles, views = settings.angles, settings.views
        gather, models = tuple(range(angles)), tuple(range(angles, angles + 3))
        self.angles, everything = angles, gather + models
        own = [(*gather, model) for model in models]
        self.seen = {"pertinent": [everything, *own], "all": [everything] * 4, "shared": [everything]}[views]
        self.used = [(0, 1 + k) if views == "pertinent" else tuple(range(len(self.seen))) for k in range(3)]
        self.gate_sees = own if views == "pertinent" else [everything] * 3
        self.kernel = settings.kernel
        self.experts = nn.ModuleList(_expert(len(channels), settings) for channels in self.seen)
        self.gates = nn.ModuleDict(
            {
                log: MoELayer(
                    WindowScorer(len(seen) * settings.kernel, len(used)),
                    Portions(len(used), settings.features),
                    selector=TopK(max(1, len(used) // 2)) if settings.gate == "random" else All(),
                    executor="dense",
                )
                for log, seen, used in zip(LOGS, self.gate_sees, self.used, strict=True)
            }
        )
        width = settings.tower
        self.towers = nn.ModuleList(nn.Conv1d(settings.features, 1, width, padding=width // 2) for _ in LOGS)
        self.register_buffer("stretch", torch.ones(3))
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: Tensor) -> Output:
        """(B, (A + 3) * T) scaled -> logs (B, 3 * T) scaled, and the routing of each log."""
        x = x.view(len(x), self.angles + 3, -1)
        features = torch.stack([expert(x[:, seen]) for expert, seen in zip(self.experts, self.seen, strict=True)], 1)
        features = features.permute(0, 3, 1, 2)  # (B, T, E, F)
        windows = F.pad(x, (self.kernel // 2,) * 2).unfold(2, self.kernel, 1).transpose(1, 2)  # (B, T, A + 3, kernel)
        initial = x[:, self.angles :] * self.stretch[:, None] + self.shift[:, None]
        logs, routings = [], {}
        for k, (name, gate) in enumerate(self.gates.items()):
            view = windows[:, :, self.gate_sees[k]].flatten(2).flatten(0, 1)
            mixed, routings[name] = gate(features[:, :, self.used[k]].flatten(2).flatten(0, 1), keys={"view": view})
            mixed = mixed.view(len(x), x.shape[2], -1).transpose(1, 2)
            logs.append(initial[:, k] + self.towers[k](mixed)[:, 0])
        return Output(torch.cat(logs, dim=1), routings)


def _expert(channels: int, settings: PMMoE) -> nn.Sequential:
    """Series (B, channels, T) -> features (B, F, T)."""
    widths = [channels, *[settings.channels] * (settings.layers - 1), settings.features]
    parts = []
    for before, after in pairwise(widths):
        convolution = nn.Conv1d(before, after, settings.kernel, padding=settings.kernel // 2, bias=False)
        parts += [convolution, nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*parts)


class WindowScorer(nn.Module):
    """Logits from the window of samples around an item, the key "view": a convolution, as every item has its window."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.linear = LinearScorer(width, experts, bias=True)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with key "view" (items, channels * kernel) -> logits (items, E)."""
        return self.linear(RouteInput(inp.key("view", "WindowScorer"), inp.mask))


class Portions(Bank):
    """Experts that have run over whole series already: an item (E * F) holds what each gave, expert e hands it out."""

    def __init__(self, experts: int, features: int) -> None:
        super().__init__()
        self.num_experts, self.features = experts, features

    def run(self, expert: int, x: Tensor) -> Tensor:
        """(n, E * F) -> (n, F)."""
        return x[:, expert * self.features : (expert + 1) * self.features]


class SeriesScaler(TransformerMixin, BaseEstimator):
    """Standardises groups of neighbouring columns, each group with one mean and one standard deviation.

    Args:
        parts: how many series of equal length each group has, such as (4, 1, 1, 1).

    Attributes:
        mean_, scale_: (groups,); scale 1 where a group is constant.
    """

    def __init__(self, parts: Sequence[int] = (1,)) -> None:
        self.parts = parts

    def fit(self, X: np.ndarray, y: None = None) -> Self:
        """(n, columns); DataError unless the columns are as many series of equal length, of 2 samples or more."""
        series = sum(self.parts)
        if X.shape[1] % series or X.shape[1] < 2 * series:
            raise DataError(
                f"{X.shape[1]} columns are no {series} series of equal length",
                where="PMMoE",
                fix=f"give a multiple of {series} columns, 2 samples or more for each, or correct the setting angles",
            )
        groups = np.split(X, np.cumsum(self.parts)[:-1] * (X.shape[1] // series), axis=1)
        self.mean_ = np.array([group.mean() for group in groups])
        spread = np.array([group.std() for group in groups])
        self.scale_ = np.where(spread > 0, spread, 1.0)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """(n, columns) -> the same shape."""
        return (X - self._spread(self.mean_, X)) / self._spread(self.scale_, X)

    def inverse_transform(self, X: np.ndarray) -> np.ndarray:
        """(n, columns) scaled -> the same shape."""
        return X * self._spread(self.scale_, X) + self._spread(self.mean_, X)

    def _spread(self, values: np.ndarray, X: np.ndarray) -> np.ndarray:
        return np.repeat(values, np.array(self.parts) * (X.shape[1] // sum(self.parts)))
