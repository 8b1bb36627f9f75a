"""The default executor: the fastest one for what it is given."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.executors.dense import dense
from terramoe.moe.executors.grouped import grouped
from terramoe.moe.experts import Bank
from terramoe.moe.routing import Routing


def auto(x: Tensor, routing: Routing, bank: Bank) -> Tensor:
    """Items (T, ..., D) -> (T, ..., D_out). ``dense`` while a graph is traced for export, else ``grouped``."""
    # Sorting reads counts, which a traced graph with free lengths cannot hold.
    run = dense if torch.compiler.is_compiling() else grouped
    return run(x, routing, bank)
