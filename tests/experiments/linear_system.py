"""A system without routing whose every answer can be worked out by hand: class scores = weights @ bands."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from terramoe.data import Normaliser
from terramoe.inference import Predictor
from terramoe.systems import Output, System


@dataclass(frozen=True)
class LinearConfig:
    bands: int
    classes: int


class LinearSystem(System):
    """Logits of a pixel from its own bands, or with ``spread`` from the sum over its 3 x 3 neighbours; reads nodata."""

    Config = LinearConfig
    card = None

    def __init__(self, weights, spread=False):
        super().__init__()
        weights = torch.as_tensor(np.asarray(weights), dtype=torch.float32)
        self.config = LinearConfig(weights.shape[1], weights.shape[0])
        size = 3 if spread else 1
        self.conv = nn.Conv2d(weights.shape[1], weights.shape[0], size, padding=size // 2, bias=False)
        self.conv.weight.data = weights[:, :, None, None].expand(-1, -1, size, size).clone()

    def forward(self, batch):
        return Output(self.conv(batch["image"]), {})

    def loss(self, output, batch): ...

    @classmethod
    def tiny(cls): ...

    @classmethod
    def tiny_batch(cls, images, seed): ...

    @classmethod
    def dense_twin(cls, config, equal="compute"): ...

    @classmethod
    def scaled(cls, config, experts, top_k): ...

    def expert_names(self, layer): ...


def predictor_of(system, scene, window=16, overlap=8):
    """A predictor that leaves the bands as they are."""
    bands = scene.bands
    return Predictor(
        name="linear",
        system=system.eval(),
        normaliser=Normaliser((0.0,) * bands, (1.0,) * bands, "none"),
        class_values=scene.class_values,
        class_names=scene.class_names,
        window=window,
        overlap=overlap,
    )
