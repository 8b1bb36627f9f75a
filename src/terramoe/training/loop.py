"""The training loop. Killed at any moment and started again, it ends with the same bits as if it had never stopped.

Three things make that true: the batch and the noise of a step depend on (seed, epoch, step) alone, the learning rate
is a function of the step, and the state file is replaced in one atomic step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError, ModelFileError
from terramoe.storage import load_state, save_state
from terramoe.systems import System, plain_config
from terramoe.training.crops import batch_seed
from terramoe.training.settings import TrainSettings
from terramoe.training.state import gather_state, restore_state

OnStep = Callable[[int, float], None]  # (steps done, loss)


@dataclass(frozen=True)
class History:
    """What a training did: mean loss per epoch, by name, and the wall-clock seconds of this process."""

    losses: tuple[dict[str, float], ...]
    seconds: float


class Draws(Protocol):
    """Gives the batches of a training."""

    def draw(self, epoch: int, step: int, rank: int = 0) -> dict[str, Tensor]:
        """The batch of this epoch, step and process: always the same."""


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Polynomial decay from the first step of a phase to 0 after its last."""
    done, steps = step, settings.pretrain_steps
    if step >= settings.pretrain_steps:
        done, steps = step - settings.pretrain_steps, settings.steps
    return settings.learning_rate * (1 - done / steps) ** settings.power


def fit(
    system: System,
    draws: Draws,
    settings: TrainSettings,
    *,
    state_path: Path | None = None,
    fingerprint: str = "",
    on_step: OnStep | None = None,
) -> History:
    """Train ``system`` in place.

    Args:
        system: the network, initialised with ``settings.seed``.
        draws: the training data.
        settings: see ``TrainSettings``.
        state_path: where the state is saved; if the file exists, training goes on from it.
        fingerprint: identifies the data; a state saved under another one is refused.
        on_step: called after each step, for progress displays.

    Raises:
        ModelFileError: the state file is damaged or belongs to another run.
        ConfigError: the loss is no longer finite.
    """
    from lightning_fabric import Fabric  # takes two seconds to import: only those who train pay

    started = time.perf_counter()
    fabric = Fabric(accelerator=settings.accelerator, devices=1, precision=settings.precision)
    optimizer = torch.optim.Adam(system.parameters(), lr=settings.learning_rate)
    model, optimizer = fabric.setup(_TrainingStep(system), optimizer)

    identity = {"settings": asdict(settings), "system": plain_config(system), "data": fingerprint}
    done, records = 0, []
    if state_path is not None and state_path.exists():
        done, records = _resume(state_path, system, optimizer, identity)

    system.train()
    for number in range(done, settings.all_steps):
        pretraining = number < settings.pretrain_steps
        if number in (done, settings.pretrain_steps):
            system.set_pretraining(pretraining)
        epoch, step = divmod(number, settings.steps_per_epoch)
        batch = fabric.to_device(draws.draw(epoch, step, fabric.global_rank))
        torch.manual_seed(batch_seed(settings.seed, epoch, step, fabric.global_rank, 1))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, settings)
        losses = model(batch, pretraining)
        total = _finite_sum(losses, number)
        fabric.backward(total)
        fabric.clip_gradients(model, optimizer, max_norm=settings.clip)
        optimizer.step()
        optimizer.zero_grad()

        if step == 0:
            records.append({})
        _add(records[-1], losses)
        if on_step is not None:
            on_step(number + 1, total.item())
        last = number + 1 == settings.all_steps
        if state_path is not None and (last or (number + 1) % settings.save_every == 0):
            meta = {"identity": identity, "steps": number + 1, "records": records}
            save_state(state_path, gather_state(system, optimizer), meta)
    return History(_means(records, settings), time.perf_counter() - started)


class _TrainingStep(nn.Module):
    """Forward and loss as one module: Fabric looks into what a module returns and refuses frozen records."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: dict[str, Tensor], pretraining: bool) -> dict[str, Tensor]:
        return self.system.pretrain_loss(batch) if pretraining else self.system.loss(self.system(batch), batch)


def _resume(
    path: Path, system: nn.Module, optimizer: torch.optim.Optimizer, identity: dict
) -> tuple[int, list[dict[str, float]]]:
    tensors, meta = load_state(path)
    if meta["identity"] != identity:
        changed = [key for key, value in identity.items() if meta["identity"].get(key) != value]
        raise ModelFileError(
            f"the saved state was made with other {' and '.join(changed)}",
            where=path,
            fix="use the settings of that run, or another output folder",
        )
    restore_state(system, optimizer, tensors)
    return meta["steps"], meta["records"]


def _finite_sum(losses: dict[str, Tensor], number: int) -> Tensor:
    total = sum(losses.values())
    if not math.isfinite(total.item()):
        raise ConfigError(
            f"the loss became {total.item()}", where=f"training step {number}", fix="lower the learning rate"
        )
    return total


def _add(record: dict[str, float], losses: dict[str, Tensor]) -> None:
    for name, value in losses.items():
        record[name] = record.get(name, 0.0) + value.item()


def _means(records: list[dict[str, float]], settings: TrainSettings) -> tuple[dict[str, float], ...]:
    """Mean loss per epoch; the last epoch may be shorter."""
    steps = settings.all_steps
    sizes = [min(settings.steps_per_epoch, steps - i * settings.steps_per_epoch) for i in range(len(records))]
    return tuple({name: total / n for name, total in record.items()} for record, n in zip(records, sizes, strict=True))
