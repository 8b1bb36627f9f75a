"""LoRA experts in a model that exists: put them beside its linear layers, train them, merge them or take them out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts.lora import LoRABank
from terramoe.moe.in_place import collected_routings, keys_of_rows
from terramoe.moe.layer import MoELayer, Selector
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.scorers import LinearScorer, Scores

ScorerFactory = Callable[[int, int], nn.Module]
Targets = Collection[str] | Callable[[str, nn.Linear], bool]

# These read the weights of their linear layers themselves, so that an update beside them would be passed over.
_READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


class LoRALinear(nn.Module):
    """``base(x) + experts(x)`` in the place of the linear layer ``base``; rows (..., D) are the items."""

    def __init__(self, base: nn.Linear, experts: MoELayer) -> None:
        super().__init__()
        self.base, self.experts = base, experts

    def forward(self, x: Tensor, keys: Mapping[str, Tensor] | None = None) -> Tensor:
        """(..., D) -> (..., D_out). ``keys`` have one row per x[i], which all its inner rows share (see ``routed``)."""
        y, rows = self.base(x), x.reshape(-1, x.shape[-1])
        if rows.shape[0] == 0:
            return y
        update, _ = self.experts(rows, keys=keys_of_rows(keys, x, "LoRALinear"))
        return y + update.view_as(y)

    @torch.no_grad()
    def mixture(self, keys: Mapping[str, Tensor] | None = None) -> Tensor:
        """(E,) weights that every item gets under ``keys`` (one row each), without noise.

        Raises RoutingError where the items themselves change the weights; that is tried on 16 unlike items.
        """
        weight, training = self.base.weight, self.experts.training
        noise = torch.randn(15, self.base.in_features, generator=torch.Generator().manual_seed(0))
        probes = torch.cat([torch.zeros(1, self.base.in_features), 10 * noise]).to(weight.device, weight.dtype)
        shared = keys_of_rows(keys, probes[None], "LoRALinear")
        self.experts.eval()
        try:
            dense = self.experts.route(RouteInput(probes, keys=shared)).dense()
        finally:
            self.experts.train(training)
        if (dense - dense[0]).abs().max() > 1e-6:
            raise RoutingError(
                "the weights of the experts depend on the item",
                where="LoRALinear.mixture",
                fix="merge only where the router reads keys alone, or give the weights yourself",
            )
        return dense[0]

    @torch.no_grad()
    def merged(self, weights: Tensor) -> nn.Linear:
        """One linear layer equal to the base plus the mixture ``weights`` (E,) of the experts."""
        base = self.base
        linear = nn.Linear(base.in_features, base.out_features, base.bias is not None).to(base.weight)
        linear.weight.copy_(base.weight + self.experts.bank.merge(weights))
        if base.bias is not None:
            linear.bias.copy_(base.bias)
        return linear.train(self.training)


def add_lora_experts(
    model: nn.Module,
    targets: Targets,
    num_experts: int,
    rank: int,
    *,
    alpha: float | None = None,
    scorer: ScorerFactory = LinearScorer,
    selector: Selector | None = None,
    shared_a: bool = False,
    rs_scaling: bool = True,
    freeze: Literal["layer", "model", "nothing"] = "layer",
) -> list[str]:
    """Put LoRA experts beside linear layers of a model, in place; its output is unchanged until they are trained.

    Args:
        model: any module that holds ``nn.Linear`` layers.
        targets: names of layers, or a function (name, layer) -> whether to take it.
        num_experts, rank, alpha, shared_a, rs_scaling: see ``LoRABank``.
        scorer: (D, E) -> scorer, called for each layer.
        selector: see ``MoELayer``.
        freeze: stop training the replaced layers, the whole model, or nothing of it.

    Returns:
        Names of the replaced layers. A layer that stands in two places stays one layer.

    Raises:
        RoutingError: no such layer, none at all, or one whose weights its parent reads without calling it.
    """
    if freeze not in ("layer", "model", "nothing"):
        raise RoutingError(f"freeze = '{freeze}'", where="add_lora_experts", fix="use 'layer', 'model' or 'nothing'")
    found = _find(model, targets)
    made: dict[nn.Linear, LoRALinear] = {}
    for base in found.values():  # build all before the model is touched
        bank = LoRABank(
            num_experts, base.in_features, base.out_features, rank, alpha, shared_a=shared_a, rs_scaling=rs_scaling
        )
        if base not in made:
            experts = MoELayer(scorer(base.in_features, num_experts), bank, selector=selector)
            made[base] = LoRALinear(base, experts.to(base.weight).train(base.training))
    if freeze == "model":
        model.requires_grad_(False)
    for name, base in found.items():
        if freeze == "layer":
            base.requires_grad_(False)
        _replace(model, name, made[base])
    return list(found)


def merge_lora_experts(model: nn.Module, keys: Mapping[str, Tensor] | None = None) -> list[str]:
    """Turn every ``LoRALinear`` into one plain linear layer with the mixture that ``keys`` (one row each) ask for.

    Only where the router reads keys and not items, as with a task or sensor embedding (Uni-Perceiver-MoE, 2022, arXiv
    2206.04674). Returns the names; RoutingError, with the model as it was, where items change the mixture.
    """
    layers = _some_lora_layers(model)
    merged = {layer: layer.merged(layer.mixture(keys)) for layer in dict.fromkeys(layers.values())}
    for name, layer in layers.items():
        _replace(model, name, merged[layer])
    return list(layers)


def remove_lora_experts(model: nn.Module) -> list[str]:
    """Put the base layers back and drop the experts; what was frozen stays frozen. Returns the names."""
    layers = _some_lora_layers(model)
    for name, layer in layers.items():
        _replace(model, name, layer.base)
    return list(layers)


@contextmanager
def routed(model: nn.Module, keys: Mapping[str, Tensor] | None = None) -> Iterator[dict[str, list[Routing]]]:
    """Inside the ``with`` block, hand ``keys`` to every ``LoRALinear`` and collect the routings of each by name.

    A model that calls its linear layers with x alone can so be told the task or the sensor. The keys' first dimension
    is that of the layers' inputs; all inner rows of x[i] share row i.
    """
    names = {layer: name for name, layer in reversed(_some_lora_layers(model).items())}  # the first name counts
    with collected_routings({name: layer for layer, name in reversed(names.items())}, keys) as records:
        yield records


class BlendScorer(nn.Module):
    """HMoRA's router: token probabilities in early layers, task probabilities in late ones.

    ``p = (1 - s) * softmax(token) + s * softmax(task)`` with ``s = sigmoid(-epsilon + 2 epsilon l / L + mu)``. The
    logits are ``log p``, so that the layer's softmax gives p back and not a flattened softmax of probabilities.

    Args:
        token_scorer: scorer of the item.
        task_scorer: scorer of a key, for example ``EmbeddedKeyScorer``.
        layer_index: l, 0 <= l <= L.
        num_layers: L.
        epsilon: half the range of the sigmoid's argument.
        mu: shift towards the task.

    Raises:
        RoutingError: a layer index outside of 0..L; scorers for different numbers of experts.

    Source: HMoRA, 2025, ICLR, openreview lTkHiXeuDl.
    """

    def __init__(
        self,
        token_scorer: nn.Module,
        task_scorer: nn.Module,
        layer_index: int,
        num_layers: int,
        *,
        epsilon: float = 2.0,
        mu: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1 or not 0 <= layer_index <= num_layers:
            raise RoutingError(
                f"layer {layer_index} of {num_layers}", where="BlendScorer", fix="use 0 <= layer_index <= num_layers"
            )
        self.token_scorer, self.task_scorer = token_scorer, task_scorer
        self.balance = -epsilon + 2 * epsilon * layer_index / num_layers + mu  # a_l

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with what both scorers ask for -> logits (T, E) = log p."""
        token, task = self.token_scorer(inp).logits, self.task_scorer(inp).logits
        if token.shape != task.shape:
            raise RoutingError(
                f"token logits {tuple(token.shape)}, task logits {tuple(task.shape)}",
                where="BlendScorer",
                fix="build both scorers with the same number of experts",
            )
        # log(1 - s) + log p_token and log s + log p_task, added in log space: nothing underflows.
        balance = token.new_tensor(self.balance)
        return Scores(
            torch.logaddexp(
                nn.functional.logsigmoid(-balance) + token.log_softmax(-1),
                nn.functional.logsigmoid(balance) + task.log_softmax(-1),
            )
        )


def _find(model: nn.Module, targets: Targets) -> dict[str, nn.Linear]:
    inside = tuple(name + "." for name in _lora_layers(model))
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and name and not name.startswith(inside)
    }
    if callable(targets):
        found = {name: module for name, module in linear.items() if targets(name, module)}
    else:
        names = [targets] if isinstance(targets, str) else list(targets)
        missing = [name for name in names if name not in linear]
        if missing:
            raise RoutingError(
                f"no linear layer '{missing[0]}' (there are {', '.join(linear) or 'none'})",
                where="add_lora_experts",
                fix="name layers of the model that have no experts yet",
            )
        found = {name: linear[name] for name in names}
    if not found:
        raise RoutingError("no linear layer was chosen", where="add_lora_experts", fix="choose at least one")
    for name in found:
        parent = modules[name.rpartition(".")[0]]
        if isinstance(parent, _READ_WEIGHTS):
            raise RoutingError(
                f"'{name}' belongs to {type(parent).__name__}, which reads its weights without calling it",
                where="add_lora_experts",
                fix="choose layers of modules that call them",
            )
    return found


def _lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The LoRALinear layers of a model, each under all of its names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, LoRALinear)}


def _some_lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    layers = _lora_layers(model)
    if not layers:
        raise RoutingError("the model has no LoRA experts", where="adapters", fix="call add_lora_experts first")
    return layers


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
