"""Loads published weights into a body of ours: every tensor or none."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from terramoe.errors import ModelFileError


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a state dict saved by ``torch.save``, on the CPU; nothing in the file is executed.

    ModelFileError where the file is missing, damaged, or holds something else.
    """
    fix = "give the folder of the published weights, as downloaded"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelFileError("there is no weight file", where=path, fix=fix) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ModelFileError(
            f"not a file of tensors: {type(error).__name__} {str(error)[:80]}", where=path, fix=fix
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelFileError("the file holds more than named tensors", where=path, fix=fix)
    return dict(state)


def load_all(module: nn.Module, tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Copy tensors into the module, name by name.

    ModelFileError, with the module as it was, where one is missing, extra, of another shape or not finite.
    """
    own = module.state_dict()
    wrong = [f"'{name}' is missing" for name in own if name not in tensors]
    wrong += [f"'{name}' is not part of the model" for name in tensors if name not in own]
    wrong += [
        f"'{name}' is {tuple(value.shape)}, not {tuple(own[name].shape)}"
        for name, value in tensors.items()
        if name in own and value.shape != own[name].shape
    ]
    wrong += [f"'{name}' holds values that are not finite" for name, v in tensors.items() if not v.isfinite().all()]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelFileError(f"tensor {wrong[0]}{more}", where=where, fix="use the weights of this very architecture")
    module.load_state_dict(dict(tensors))
