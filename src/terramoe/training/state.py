"""The state of a training as tensors and plain values, so that it can be saved without pickle."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from terramoe.errors import ModelFileError


def gather_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors that the next step depends on: weights, buffers and the optimiser's moments."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    return tensors


def restore_state(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put gathered tensors back; ModelFileError if they belong to another network."""
    weights, moments = {}, {}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        if part == "model":
            weights[rest] = value
        else:
            number, _, name = rest.partition(".")
            moments.setdefault(int(number), {})[name] = value
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelFileError(
            "the saved state belongs to another network", where=str(error).splitlines()[0], fix="start a new run"
        ) from error
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
