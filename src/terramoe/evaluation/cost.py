"""What a system costs: parameters in all, parameters that one item uses, arithmetic, peak memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from terramoe.moe import LayerStatistics, MoELayer


@dataclass(frozen=True)
class Cost:
    """Cost of one model.

    Attributes:
        total, active: parameters in all, and used by one item on average under the measured load.
        flops: floating-point operations per pixel of a prediction, see ``flops_per_pixel``.
        train_seconds, predict_seconds: wall clock.
        peak_mib: largest memory of the process so far, in MiB.
    """

    total: int
    active: int
    flops: float
    train_seconds: float
    predict_seconds: float
    peak_mib: float


def total_parameters(module: nn.Module) -> int:
    """Number of scalars in all parameters."""
    return sum(p.numel() for p in module.parameters())


def active_parameters(system: nn.Module, statistics: Mapping[str, LayerStatistics]) -> int:
    """Parameters that one item uses on average: all outside the banks, and of each expert the share of items it served.

    Args:
        statistics: one entry per MoELayer of the system, in the order of the system's modules.
    """
    layers = [module for module in system.modules() if isinstance(module, MoELayer)]
    active = float(total_parameters(system))
    users: dict[nn.Module, list[LayerStatistics]] = {}
    for layer, numbers in zip(layers, statistics.values(), strict=True):
        users.setdefault(layer.bank, []).append(numbers)
    for bank, found in users.items():  # layers may share a bank: its experts count once, by the mean of their use
        sizes = [bank.expert_parameters(e) for e in range(bank.num_experts)]
        items = max(sum(numbers.items for numbers in found), 1)
        active -= sum(sizes)
        for numbers in found:
            pairs = numbers.pairs * (1 - numbers.dropped_share)
            active += sum(size * share for size, share in zip(sizes, numbers.load, strict=True)) * pairs / items
    return round(active)


def flops_per_pixel(system: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Floating-point operations of matrix products and convolutions that a forward pass really runs, per pixel.

    Experts that no item chose cost nothing. Element-wise work (norms, scans, activations) is not counted.

    Args:
        batch: with ``image`` (B, bands, H, W); if ``wanted`` (B, H, W) names some pixels, only these count.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        system(batch)
    pixels = int((batch["wanted"] & batch["valid"]).sum()) if "wanted" in batch else batch["image"][:, 0].numel()
    return counter.get_total_flops() / max(pixels, 1)


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
