"""The table of gradient cases, and how to make one: a function without arguments and the tensors that it depends on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from terramoe.moe import LinearScorer, MoELayer, RouteInput, Routing, StackedFFN, TopK
from terramoe.moe.scorers import Scores

T, D, E = 5, 3, 4
MASK = torch.arange(T) != 2
GROUPS = torch.tensor([0, 1, 0, 1])
Case = Callable[[], tuple[Callable[[], Tensor | tuple[Tensor, ...]], Sequence[Tensor]]]
CASES: dict[str, dict[str, Case]] = {}


def case(name: str, label: str = "") -> Callable[[Case], Case]:
    """Registers a case of the part ``name``; several differ in their label."""

    def register(make: Case) -> Case:
        CASES.setdefault(name, {})[label] = make
        return make

    return register


def leaf(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def shaken(module: nn.Module) -> nn.Module:
    """In float64, every parameter random: what starts at zero would hide the gradients behind it."""
    generator = torch.Generator().manual_seed(3)
    module.double()
    for parameter in module.parameters():
        parameter.data = 0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def learned(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def seeded(run: Callable) -> Callable:
    """The same draws at every call."""

    def same() -> Tensor | tuple[Tensor, ...]:
        torch.manual_seed(11)
        return run()

    return same


class Given(nn.Module):
    """A scorer that gives what it was made with."""

    def __init__(self, *scores: Tensor) -> None:
        super().__init__()
        self.scores, self.num_experts = scores, E

    def forward(self, inp: RouteInput) -> Scores:
        return Scores(*self.scores)


def linear() -> LinearScorer:
    return LinearScorer(D, E)


def route(*scores: Tensor, mask: Tensor | None = None, keys: dict | None = None, **parts) -> Routing:
    """The routing of given logits, its gradients included."""
    parts = {"selector": TopK(2), **parts}
    layer = MoELayer(Given(*scores), StackedFFN(scores[0].shape[1], 1, 1), **parts)
    return layer.route(RouteInput(torch.zeros(scores[0].shape[0], 1), mask, keys=keys or {}))


def of_values(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Case:
    """The case of a plain function of float tensors."""

    def build():
        inputs = [leaf(*shape, seed=seed) for seed, shape in enumerate(shapes)]
        return lambda: function(*inputs), inputs

    return build


def of_logits(objective: Callable[[Routing], Tensor], **parts) -> Case:
    """The case of a function of one routing, some items masked."""

    def build():
        z = leaf(T, E)
        return lambda: objective(route(z, mask=MASK, **parts)), [z]

    return build


def of_module(
    make: Callable[[], nn.Module], run: Callable[[nn.Module, Tensor], object], shape: tuple[int, ...]
) -> Case:
    """The case of a module: its input and all parameters that learn."""

    def build():
        module, x = shaken(make()), leaf(*shape)
        return lambda: run(module, x), [x, *learned(module)]

    return build
