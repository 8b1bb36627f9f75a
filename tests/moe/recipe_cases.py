"""How the checks of whole recipes build and call them: small modules in float64, everything drawn from a seed."""

import torch
from property_cases import generator

from terramoe.moe import MoELayer

DIM, EXPERTS, HIDDEN = 8, 4, 6


def make(recipe, seed, *, experts=EXPERTS, moved=True, **options):
    """The recipe's module in float64; ``moved`` away from its start, where adapters give 0 and copies are equal."""
    torch.manual_seed(seed)
    module = recipe.build(DIM, experts, HIDDEN, **options).double()
    if moved:
        draw = generator(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return module


def items_of(items, seed):
    return torch.randn(items, DIM, generator=generator(seed), dtype=torch.float64)


def call(recipe, module, x, seed=0):
    torch.manual_seed(seed)
    return recipe.call(module, x)


def layers_of(module):
    return [part for part in module.modules() if isinstance(part, MoELayer)]


def only_layer(module):
    (layer,) = layers_of(module)
    return layer


def keys_of(recipe, items):
    """The keys that the recipe's own call passes on."""
    seen = {}

    def spy(x, keys=None, **rest):
        seen.update(keys or {})
        return x, []

    recipe.call(spy, items)
    return seen


def fixed_experts(recipe, items=20):
    """The experts that a recipe without a learned router gives to fixed items: for comparison between processes."""
    x = torch.linspace(-1, 1, items * DIM, dtype=torch.float64).mul(50).sin().view(items, DIM)
    return [r.expert.tolist() for r in call(recipe, make(recipe, 0), x)[1]]
