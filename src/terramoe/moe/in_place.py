"""Routed layers that stand in a model which calls them with x alone: how keys get in and routings get out.

Both go through hooks inside a ``with`` block, so that no module stores them. A layer in place is a module with the
routed part as ``experts``, whose ``forward(x, keys=None)`` returns y alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import Routing


@contextmanager
def collected_routings(
    layers: Mapping[str, nn.Module], keys: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, list[Routing]]]:
    """Inside the ``with`` block, hand ``keys`` to every layer and collect the routings of each by name."""
    records: dict[str, list[Routing]] = {name: [] for name in layers}
    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.experts.register_forward_hook(partial(_record, records[name])))
            if keys:
                handles.append(layer.register_forward_pre_hook(partial(_give_keys, keys), with_kwargs=True))
        yield records
    finally:
        for handle in handles:
            handle.remove()


def keys_of_rows(keys: Mapping[str, Tensor] | None, x: Tensor, where: str) -> dict[str, Tensor]:
    """Keys with one row per x[i] (n, ..., D) -> one row per item, of which every x[i] holds equally many."""
    rows = x.shape[:-1].numel()
    for name, key in (keys or {}).items():
        if key.shape[:1] != x.shape[:1]:
            raise RoutingError(
                f"'{name}' has {tuple(key.shape)}, the layer's input {tuple(x.shape)}",
                where=where,
                fix="give one row per first dimension of the input, and a single row for merging",
            )
    return {name: key.repeat_interleave(rows // x.shape[0], dim=0) for name, key in (keys or {}).items()}


def _record(into: list[Routing], layer: nn.Module, args: Any, output: tuple[Tensor, Routing]) -> None:
    into.append(output[1])


def _give_keys(keys: Mapping[str, Tensor], layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {**kwargs, "keys": keys}
