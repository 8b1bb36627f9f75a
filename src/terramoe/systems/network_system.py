"""Table systems that are networks: scaling, the training loop and storage, written once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe import Routing
from terramoe.systems.base import Output
from terramoe.systems.controls import fix_routing
from terramoe.systems.table_system import TableSystem

GATES = ("learned", "uniform", "random")
CHUNK = 1024  # rows that are predicted at a time
LOOKS = 20  # how often the held-out rows are looked at


class NetworkSystem(TableSystem):
    """A table system whose model is a torch module that is trained by gradient descent.

    A subclass defines ``network`` and ``loss``, and has these settings: ``steps`` (of the optimiser), ``batch``,
    ``learning_rate``, ``weight_decay``, ``validation`` (share of the rows, or of the groups, that chooses the step to
    keep; 0 keeps the last), ``gate`` ("learned"; as controls "uniform" and "random"), ``device`` and ``random_state``.

    Attributes:
        network_: the trained module, in evaluation mode.
        trace_: (looks, 3) step, mean loss of training since the look before, and mean loss on the held-out rows.
        best_step_: the step that was kept.
        residual_std_: of the errors on the held-out rows (on the training rows if none are), one for each target.
    """

    loss_terms: ClassVar[tuple[str, ...]] = ("task",)
    gates: ClassVar[tuple[str, ...]] = GATES

    @abstractmethod
    def network(self, columns: int, targets: int) -> nn.Module:
        """A module that maps scaled rows (B, columns) float32 to an ``Output`` whose prediction ``loss`` reads."""

    @abstractmethod
    def loss(self, output: Output, target: Tensor, network: nn.Module) -> dict[str, Tensor]:
        """Output and scaled targets (B, targets) -> scalars by name, to be summed; "task" judges held-out rows."""

    def point(self, prediction: Tensor) -> Tensor:
        """The network's prediction -> (B, targets), scaled."""
        return prediction

    def scalers(self) -> tuple[BaseEstimator, BaseEstimator]:
        """Unfitted scikit-learn transformers of X and of y (n, targets); fitted on training rows alone."""
        return StandardScaler(), StandardScaler()

    def schedule(self, step: int) -> float:
        """Factor of the learning rate at a step from 0."""
        return 1.0

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> Self:
        """Train on X (n, columns) and y (n,) or (n, targets).

        Raises:
            ConfigError: a setting that cannot be. ValueError: NaN, or X and y of different length.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self.flat_ = y.ndim == 1
        y = y.reshape(len(y), -1).astype(np.float64)
        self.before_fit(y)
        random = check_random_state(self.random_state)
        held = self._held_out(len(X), groups, random)
        x_scaler, y_scaler = self.scalers()
        self.x_scaler_, self.y_scaler_ = x_scaler.fit(X[~held]), y_scaler.fit(y[~held])
        self.targets_ = y.shape[1]
        self.network_ = self._build(random.randint(2**31 - 1))
        self._train(self._rows(X), self._tensor(self.y_scaler_.transform(y)), held, random)
        judged = held if held.any() else ~held
        error = self._point(X[judged]) - y[judged]
        self.residual_std_ = np.sqrt(np.mean(error**2, axis=0)) if not self.flat_ else float(np.sqrt(np.mean(error**2)))
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) or (n, targets), as y was."""
        found = self._point(self._read(X))
        return found[:, 0] if self.flat_ else found

    def routing(self, X: np.ndarray) -> dict[str, Routing]:
        """The record of each routed layer for all rows."""
        return dict(self.output(X).routings)

    @torch.no_grad()
    def output(self, X: np.ndarray) -> Output:
        """What the network returns for all rows at once."""
        return self.network_(self._rows(self._read(X)))

    def control(self, name: str) -> Self:
        """See ``TableSystem``."""
        from sklearn.base import clone

        if name != "routed" and name not in self.controls:
            raise ConfigError(
                f"{self.card.name} has no control '{name}'", where="controls", fix=f"use {', '.join(self.controls)}"
            )
        if name in ("uniform", "random"):
            return clone(self).set_params(gate=name)
        return clone(self).set_params(**({} if name == "routed" else self.twin(name)))

    def twin(self, name: str) -> dict[str, Any]:
        """Settings of the dense twin of equal compute ("dense") or of equal parameters ("wide")."""
        raise ConfigError(f"{self.card.name} has no {name} twin", where="controls", fix="leave it out")

    # ----------------------------------------------------------------------------------------------------------------

    def _train(self, x: Tensor, y: Tensor, held: np.ndarray, random: np.random.RandomState) -> None:
        network, mine = self.network_.train(), np.flatnonzero(~held)
        optimiser = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad], self.learning_rate, weight_decay=self.weight_decay
        )
        look = max(1, self.steps // LOOKS)
        order, trace, losses, best = np.empty(0, dtype=np.int64), [], [], (np.inf, self.steps, None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.randint(2**31 - 1))
            for step in range(self.steps):
                if len(order) < min(self.batch, len(mine)):
                    order = np.concatenate([order, random.permutation(mine)])
                rows, order = order[: self.batch], order[self.batch :]
                for group in optimiser.param_groups:
                    group["lr"] = self.learning_rate * self.schedule(step)
                self.before_step(network, step, random)
                terms = self.loss(network(x[rows]), y[rows], network)
                optimiser.zero_grad()
                sum(terms.values()).backward()
                optimiser.step()
                losses.append(float(terms["task"].detach()))
                if (step + 1) % look == 0 or step + 1 == self.steps:
                    judged = self._held_loss(network, x[held], y[held]) if held.any() else np.nan
                    trace.append((step + 1, float(np.mean(losses)), judged))
                    losses = []
                    if judged < best[0]:
                        best = (judged, step + 1, {k: v.detach().clone() for k, v in network.state_dict().items()})
        if best[2] is not None:
            network.load_state_dict(best[2])
        self.trace_, self.best_step_ = np.array(trace), best[1]
        network.eval()

    def before_fit(self, y: np.ndarray) -> None:
        """Called with the checked targets (n, targets) before any row is held out, to learn what they are."""

    def before_step(self, network: nn.Module, step: int, random: np.random.RandomState) -> None:
        """Called before each step, for systems whose phases train different parts."""

    @torch.no_grad()
    def _held_loss(self, network: nn.Module, x: Tensor, y: Tensor) -> float:
        network.eval()
        found = float(self.loss(network(x), y, network)["task"])
        network.train()
        return found

    def _held_out(self, rows: int, groups: np.ndarray | None, random: np.random.RandomState) -> np.ndarray:
        """(n,) bool."""
        names = np.arange(rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
        kinds = names.max() + 1
        count = round(self.validation * kinds)
        chosen = random.permutation(kinds)[: min(count, kinds - 1)]
        return np.isin(names, chosen)

    def _build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network(self.n_features_in_, self.targets_)
        if self.gate != "learned":
            fix_routing(network, self.gate)
        return network.to(self.device)

    def _read(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self, "network_")
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _rows(self, X: np.ndarray) -> Tensor:
        return self._tensor(self.x_scaler_.transform(X))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def _point(self, X: np.ndarray) -> np.ndarray:
        """Read rows (n, columns) -> (n, targets) in the unit of y."""
        x = self._rows(X)
        found = [self.point(self.network_(x[i : i + CHUNK]).prediction) for i in range(0, len(x), CHUNK)]
        return self.y_scaler_.inverse_transform(torch.cat(found).double().cpu().numpy())

    def _check_settings(self) -> None:
        for holds, name, fix in (
            (self.steps >= 1, "steps", "use 1 or more"),
            (self.batch >= 1, "batch", "use 1 or more"),
            (self.learning_rate > 0, "learning_rate", "use a number above 0"),
            (self.weight_decay >= 0, "weight_decay", "use 0 or more"),
            (0 <= self.validation < 1, "validation", "use a share of 0 or more, below 1"),
            (self.gate in self.gates, "gate", f"use one of {', '.join(self.gates)}"),
            (_is_there(self.device), "device", "use cpu, or a device that this machine has, such as cuda"),
        ):
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", where=type(self).__name__, fix=fix)

    def __getstate__(self) -> dict[str, Any]:
        """The network as arrays, so that it can be stored without pickle."""
        state = dict(super().__getstate__())
        network = state.pop("network_", None)
        if network is not None:
            state["weights_"] = {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        weights = state.pop("weights_", None)
        super().__setstate__(state)
        if weights is not None:
            self.device = self.device if _is_there(self.device) else "cpu"  # trained on a machine that had more
            self.network_ = self._build(0)
            self.network_.load_state_dict({name: torch.as_tensor(np.array(value)) for name, value in weights.items()})
            self.network_.eval()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        if tags.regressor_tags is not None:  # None below a RegressorMixin, which sets its own
            tags.regressor_tags.poor_score = True  # of the few steps that scikit-learn's checks can wait for
        return tags


def _is_there(device: str) -> bool:
    """Whether this machine has such a device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # torch asserts that it was built with CUDA
        return False
    return True
