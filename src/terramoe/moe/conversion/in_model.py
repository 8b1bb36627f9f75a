"""Routed experts in the place of the FFNs of a model that exists, and what they were given and decided.

The model keeps calling its FFNs with x alone; routings are collected and keys handed over inside a ``with`` block
(``routed_ffns``), so that no module stores them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.conversion.dense_ffn import read_ffn
from terramoe.moe.in_place import collected_routings, keys_of_rows
from terramoe.moe.routing import Routing

Convert = Callable[[str, nn.Module], nn.Module]
Targets = Collection[str] | Callable[[str, nn.Module], bool]


class RoutedFFN(nn.Module):
    """Takes and gives what the FFN did in whose place it stands; rows (..., D) are the items.

    Args:
        experts: ``(items, keys=...) -> (y, Routing)``, for example a ``MoELayer``.
        dim_out: O.
    """

    def __init__(self, experts: nn.Module, dim_out: int) -> None:
        super().__init__()
        self.experts, self.dim_out = experts, dim_out

    def forward(self, x: Tensor, keys: Mapping[str, Tensor] | None = None) -> Tensor:
        """(..., D) -> (..., O). ``keys`` have one row per x[i], which all its inner rows share."""
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] == 0:
            return x.new_zeros(*x.shape[:-1], self.dim_out)
        y, _ = self.experts(rows, keys=keys_of_rows(keys, x, "RoutedFFN"))
        return y.view(*x.shape[:-1], self.dim_out)


def find_ffns(model: nn.Module, targets: Targets | None = None) -> dict[str, nn.Module]:
    """The dense FFNs of a model by name, in its order: what ``read_ffn`` can read and is not inside another.

    Args:
        model: any module.
        targets: names, or a function (name, FFN) -> whether to take it. None: those that give as many channels as they
            take, as the FFN of a block does and a head does not.

    Raises:
        RoutingError: a name that is no dense FFN, or none at all.
    """
    if targets is not None and not callable(targets):
        modules = dict(model.named_modules(remove_duplicate=False))
        names = [targets] if isinstance(targets, str) else list(targets)
        missing = [name for name in names if not name or name not in modules]
        if missing or not names:
            raise RoutingError(
                f"no module '{missing[0] if missing else ''}' in the model",
                where="find_ffns",
                fix="name feed-forward modules as model.named_modules() does",
            )
        for name in names:
            read_ffn(modules[name])
        return {name: modules[name] for name in names}
    take = targets or (lambda name, module: _keeps_width(module))
    found: dict[str, nn.Module] = {}
    skip: list[str] = []
    for name, module in model.named_modules():
        if not name or name.startswith(tuple(skip)):
            continue
        readable = _readable(module)
        if readable or isinstance(module, RoutedFFN):
            skip.append(name + ".")
        if readable and take(name, module):
            found[name] = module
    if not found:
        raise RoutingError(
            "no dense feed-forward network was found",
            where="find_ffns",
            fix="name the modules to take; each holds two linear layers around a GELU, SiLU or ReLU",
        )
    return found


def convert_ffns(model: nn.Module, convert: Convert, targets: Targets | None = None) -> nn.Module:
    """A copy of the model in which FFNs are replaced by routed experts; the given model is left as it is.

    An FFN that stands in two places is converted once and stays one module.

    Args:
        model: any module that calls its FFNs with x alone.
        convert: (name, FFN) -> the experts, a module as for ``RoutedFFN`` that shares no parameter with the FFN.
        targets: see ``find_ffns``.
    """
    found = find_ffns(model, targets)
    made: dict[int, nn.Module] = {}
    for name, ffn in found.items():
        if id(ffn) not in made:
            dim_out = read_ffn(ffn).weights.w_out.shape[1]
            made[id(ffn)] = RoutedFFN(convert(name, ffn), dim_out).train(ffn.training)
    return copy.deepcopy(model, made)  # whatever refers to a converted FFN then refers to its experts


@contextmanager
def routed_ffns(model: nn.Module, keys: Mapping[str, Tensor] | None = None) -> Iterator[dict[str, list[Routing]]]:
    """Inside the ``with`` block, hand ``keys`` to every ``RoutedFFN`` and collect the routings of each by name.

    The keys' first dimension is that of the FFNs' inputs; all inner rows of x[i] share row i. Checkpointing of
    activations runs a layer twice and records it twice.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, RoutedFFN)}
    if not layers:
        raise RoutingError("the model has no routed FFNs", where="routed_ffns", fix="call convert_ffns first")
    with collected_routings(layers, keys) as records:
        yield records


@contextmanager
def recorded_inputs(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside the ``with`` block, collect what the modules of these names are called with: items (T, D), with gradient.

    For objectives on what happens inside an FFN, and for routers that are trained alone.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [name for name in names if name not in modules]
    if missing:
        raise RoutingError(f"no module '{missing[0]}' in the model", where="recorded_inputs", fix="name its modules")
    records: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []
    try:
        for name, into in records.items():
            handles.append(modules[name].register_forward_pre_hook(partial(_record_input, into)))
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _readable(module: nn.Module) -> bool:
    try:
        read_ffn(module)
    except RoutingError:
        return False
    return True


def _keeps_width(module: nn.Module) -> bool:
    weights = read_ffn(module).weights
    return weights.w_in.shape[0] == weights.w_out.shape[1]


def _record_input(into: list[Tensor], layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    into.append(args[0].reshape(-1, args[0].shape[-1]))
