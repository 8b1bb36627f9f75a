"""The contract that every published system keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe import Routing
from terramoe.systems.card import Card

Batch = Mapping[str, Tensor]


def require_settings(where: str, rules: Mapping[str, bool]) -> None:
    """ConfigError with the first rule that does not hold; ``where`` is the configuration's name."""
    for rule, holds in rules.items():
        if not holds:
            raise ConfigError(rule, where=where, fix="correct the setting")


class Layout(Protocol):
    """Knows where the items of a routing lie in the image."""

    def to_pixels(self, values: Tensor) -> Tensor:
        """(T, ...) -> (B, H, W, ...)."""


@dataclass(frozen=True)
class Output:
    """What a system returns.

    Attributes:
        prediction: the task's prediction; logits (B, K, H, W) for pixel classes.
        routings: one record per routed layer, by name, in the order of computation.
        layouts: for the layers whose items lie in the image, how to lay them back on its pixels.
        extras: whatever the system's own loss needs.
    """

    prediction: Tensor
    routings: Mapping[str, Routing]
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class System(nn.Module, ABC):
    """One published system: wiring plus what only its paper has.

    A subclass sets the class attributes and defines the abstract methods. Systems never inherit from each other.

    Attributes:
        card: where it comes from.
        Config: a frozen dataclass with the paper's hyper-parameters as defaults.
        conditioning: keys of the batch that the routers look at; changing one must change a routing.
        multi_sensor: whether ``Config.bands`` is a tuple, one number per sensor, and the batch has ``available``.
        exempt: checks of ``checks.check_system`` that do not apply, each with the reason.
        config: of this instance.
    """

    card: ClassVar[Card]
    Config: ClassVar[type]
    conditioning: ClassVar[tuple[str, ...]] = ("image",)
    multi_sensor: ClassVar[bool] = False
    exempt: ClassVar[Mapping[str, str]] = {}
    config: Any

    @property
    def patch(self) -> int | None:
        """Side of the patch that a pixel's prediction depends on alone (odd), or None: it depends on all it sees."""
        return getattr(self.config, "patch", None)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but a part that is frozen as a whole stays in evaluation mode."""
        super().train(mode)
        for part in self.children():
            parameters = list(part.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                part.eval()
        return self

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """A batch -> Output.

        ``image`` (B, bands, H, W), the bands of all sensors one after the other. Optionally, all bool: ``valid``
        (B, H, W); ``wanted`` (B, H, W), the pixels whose prediction is asked for, which a system of patches spares
        the others; ``available`` (B, sensors, H, W), the sensors that each pixel has, for a multi-sensor system. And
        ``domain`` (B, H, W) int64: which sensor, place or season a pixel comes from.
        """

    @abstractmethod
    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name, to be summed. "task" must reach the routers; the others are auxiliary losses."""

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars to train the body with before it is frozen, for systems that stand beside a frozen body."""
        raise ConfigError(
            f"{self.card.name} has no body to pretrain", where="training", fix="use --train.pretrain_steps 0"
        )

    def set_pretraining(self, on: bool) -> None:
        """Called before the first step of each phase: choose by ``requires_grad`` what it trains."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A miniature for tests: the same wiring, a few thousand parameters."""

    @classmethod
    @abstractmethod
    def tiny_batch(cls, images: int, seed: int) -> dict[str, Tensor]:
        """A random batch for ``tiny()``, with labels and some nodata."""

    @classmethod
    @abstractmethod
    def dense_twin(cls, config: Any, equal: Literal["compute", "parameters"] = "compute") -> Any:
        """The configuration of the same network whose experts, all used, cost what the routed ones do on an item.

        With ``equal="parameters"``: whose experts, all used, have as many parameters as the routed ones together. The
        learned choice itself is taken out by ``controls.fix_routing``.
        """

    @classmethod
    @abstractmethod
    def scaled(cls, config: Any, experts: int, top_k: int) -> Any:
        """The same configuration with another number of experts and of choices; ConfigError if it cannot be."""

    @abstractmethod
    def expert_names(self, layer: str) -> tuple[str, ...]:
        """A name for each expert of a routed layer, for legends."""
