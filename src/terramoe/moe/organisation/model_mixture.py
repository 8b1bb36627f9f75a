"""Whole models as experts: segmentation networks, trained apart, mixed on their logits by a gate that sees features.

Shapes: B images, E models, C classes, H x W pixels, F channels of intermediate features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError


class MixtureMaps(NamedTuple):
    """What a mixture of models returns.

    Attributes:
        logits: (B, C, H, W) of the mixture.
        weights: (B, E) image-wise or (B, E, C) class-wise; sums to 1 over the models.
        expert_logits: (E, B, C, H, W) of the models.
    """

    logits: Tensor
    weights: Tensor
    expert_logits: Tensor


class FeatureGate(nn.Module):
    """Weights of E models from their intermediate features: convolution, mean over the image, linear, softmax.

    Args:
        channels: F of each model's features.
        num_classes: C for one weight per model and class; None for one per model.
        hidden: channels of the convolution.
    """

    def __init__(self, channels: Sequence[int], num_classes: int | None = None, hidden: int = 32) -> None:
        super().__init__()
        self.num_experts, self.num_classes = len(channels), num_classes
        self.conv = nn.Conv2d(sum(channels), hidden, 3, padding=1)
        self.linear = nn.Linear(hidden, self.num_experts * (num_classes or 1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """E features (B, F_e, h_e, w_e) -> weights (B, E) or (B, E, C). All are brought to the first one's size."""
        size = features[0].shape[-2:]
        same = [f if f.shape[-2:] == size else F.interpolate(f, size, mode="bilinear") for f in features]
        pooled = F.relu(self.conv(torch.cat(same, 1))).mean((2, 3))
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
            weight, bias = self.linear.weight.to(pooled.dtype), self.linear.bias.to(pooled.dtype)
            logits = F.linear(pooled, weight, bias)
            shape = (self.num_experts,) if self.num_classes is None else (self.num_experts, self.num_classes)
            return logits.unflatten(-1, shape).softmax(1)


class ModelMixture(nn.Module):
    """Weighted sum of the logits of E models (Using Mixture of Expert Models to Gain Insights into Semantic
    Segmentation, CVPR Workshops, 2020).

    The gate gives one weight per image and model, or per image, class and model. Train the models first, each on its
    part of the data; then freeze them (``requires_grad_(False)``) and train the gate and the head.

    Args:
        models: each maps images (B, bands, H, W) to (features (B, F, h, w), logits (B, C, H, W)).
        gate: list of features -> weights (B, E) or (B, E, C).
        head: applied to the weighted sum, for example a convolution; None for nothing.
    """

    def __init__(self, models: Sequence[nn.Module], gate: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        if not models:
            raise RoutingError("no models were given", where="ModelMixture", fix="give at least one model")
        self.models, self.gate, self.head = nn.ModuleList(models), gate, head

    def forward(self, image: Tensor) -> MixtureMaps:
        """Images (B, bands, H, W) -> logits, weights and the models' own logits.

        Raises:
            RoutingError: the models disagree in the shape of their logits, or the gate's weights do not fit.
        """
        features, logits = zip(*(model(image) for model in self.models), strict=True)
        if len({part.shape for part in logits}) > 1 or logits[0].ndim != 4:
            raise RoutingError(
                f"the models give logits {[tuple(part.shape) for part in logits]}",
                where="ModelMixture",
                fix="let all models map to (B, C, H, W) with the same classes and size",
            )
        expert_logits = torch.stack(logits)
        weights = self.gate(features)
        experts, batch, classes = expert_logits.shape[:3]
        if weights.shape not in ((batch, experts), (batch, experts, classes)):
            raise RoutingError(
                f"the gate gives weights {tuple(weights.shape)}",
                where="ModelMixture.gate",
                fix=f"give ({batch}, {experts}) or ({batch}, {experts}, {classes})",
            )
        each = weights if weights.ndim == 3 else weights[..., None].expand(-1, -1, classes)
        mixed = torch.einsum("bec,ebchw->bchw", each.to(expert_logits.dtype), expert_logits)
        return MixtureMaps(mixed if self.head is None else self.head(mixed), weights, expert_logits)


class Disagreement(NamedTuple):
    """Where predictions differ; all without gradient.

    Attributes:
        experts: (B, H, W) bool, the models do not all predict the same class.
        mixture: (E, B, H, W) bool, the mixture predicts another class than this model.
        new_class: (B, H, W) bool, the mixture predicts a class that no model does.
        vote_entropy: (B, H, W) entropy of the models' votes in nats, 0 where they agree.
    """

    experts: Tensor
    mixture: Tensor
    new_class: Tensor
    vote_entropy: Tensor


@torch.no_grad()
def disagreement_maps(maps: MixtureMaps) -> Disagreement:
    """Compare the models' and the mixture's most likely classes pixel by pixel; ties go to the lower class."""
    votes = maps.expert_logits.argmax(2)  # (E, B, H, W)
    differs = votes != maps.logits.argmax(1)
    classes = maps.expert_logits.shape[2]
    share = F.one_hot(votes, classes).to(torch.promote_types(maps.logits.dtype, torch.float32)).mean(0)
    return Disagreement((votes != votes[0]).any(0), differs, differs.all(0), torch.special.entr(share).sum(-1))
