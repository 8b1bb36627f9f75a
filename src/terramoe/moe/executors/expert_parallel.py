"""Experts spread over the ranks of a process group: rows travel to their experts and back.

R ranks hold E/R experts each, with contiguous ids, and items of their own. Each rank sorts its kept pairs by expert,
tells the others how many rows each expert will get, sends the rows, computes what arrived, sends the results back and
combines them. (GShard, 2020, arXiv 2006.16668; FastMoE, 2021, arXiv 2103.13262.)

An exchange is a list of steps, permutations of rows and all-to-all, each of which can be undone. So the way back and
the gradient of either way are the same list, undone from its end.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from terramoe.errors import RoutingError
from terramoe.moe.experts import Bank, ModuleBank, StackedFFN
from terramoe.moe.placement import experts_per_rank
from terramoe.moe.routing import Routing
from terramoe.moe.sorting import combine_rows, sort_pairs, take_rows


class Permute(NamedTuple):
    """Row i of the result is row ``order[i]``."""

    order: Tensor

    def run(self, rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return rows.index_select(0, self.order)

    def undo(self) -> Permute:
        places = torch.arange(self.order.numel(), device=self.order.device)
        return Permute(torch.empty_like(self.order).scatter_(0, self.order, places))


class Send(NamedTuple):
    """All-to-all: ``sends[r]`` rows go to rank r, in order, and ``receives[r]`` come from it."""

    sends: list[int]
    receives: list[int]

    def run(self, rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        arrived = rows.new_empty(sum(self.receives), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows.contiguous(), self.receives, self.sends, group=group)
        return arrived

    def undo(self) -> Send:
        return Send(self.receives, self.sends)


Plan = tuple[Permute | Send, ...]


def undo(plan: Plan) -> Plan:
    """The plan that brings every row back to where it was."""
    return tuple(step.undo() for step in reversed(plan))


def flat_plan(table: Tensor, rank: int, device: torch.device | str = "cpu") -> Plan:
    """From rows sorted by expert to the rows of this rank's experts, sorted by expert and inside by source rank.

    Args:
        table: (R, E) on the CPU, rows that each rank has for each expert.
        rank: the rank that runs the plan.
        device: where the rows are.
    """
    blocks = table.view(table.shape[0], table.shape[0], -1)  # (source, destination, its experts)
    arriving = blocks[:, rank]
    return Send(blocks[rank].sum(1).tolist(), arriving.sum(1).tolist()), Permute(block_order(arriving, (1, 0), device))


def hierarchical_plan(table: Tensor, rank: int, node_size: int, device: torch.device | str = "cpu") -> Plan:
    """The same result as ``flat_plan`` in two exchanges: inside each node, then between nodes.

    Rank ``n * node_size + i`` is place i of node n. Inside its node a rank first hands all rows for place i of any
    node to place i; places i of all nodes then exchange with each other. A row crosses between nodes once, as in the
    flat exchange, but in R / node_size long messages a rank instead of R short ones (DeepSpeed-MoE, 2022, arXiv
    2201.05596; HetuMoE, 2022, arXiv 2203.14685). Both exchanges use the whole group, with nothing for other ranks.
    """
    world = table.shape[0]
    if node_size < 1 or world % node_size:
        raise RoutingError(
            f"{world} ranks do not make nodes of {node_size}",
            where="hierarchical_plan",
            fix="use a node size that divides the number of ranks",
        )
    shape = (world // node_size, node_size)
    blocks = table.view(*shape, *shape, -1)  # (source node, place, destination node, place, its experts)
    node, place = divmod(rank, node_size)
    mine, met, arriving = blocks[node, place], blocks[node, :, :, place], blocks[:, :, node, place]
    neighbours, twins = slice(node * node_size, (node + 1) * node_size), slice(place, None, node_size)
    return (
        Permute(block_order(mine, (1, 0, 2), device)),  # (node, place, expert) -> (place, node, expert)
        Send(_splits(mine.sum((0, 2)), neighbours, world), _splits(met.sum((1, 2)), neighbours, world)),
        Permute(block_order(met, (1, 0, 2), device)),  # (source place, node, expert) -> (node, source place, expert)
        Send(_splits(met.sum((0, 2)), twins, world), _splits(arriving.sum((1, 2)), twins, world)),
        Permute(block_order(arriving.flatten(0, 1), (1, 0), device)),
    )


def block_order(sizes: Tensor, dims: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """(N,) row order that transposes blocks of rows.

    Rows stand in blocks of ``sizes`` (an n-dimensional table on the CPU, last index fastest); in the result the
    blocks stand as ``sizes.permute(dims)``, each with its rows in their old order.
    """
    start = (sizes.flatten().cumsum(0) - sizes.flatten()).view_as(sizes).permute(dims).flatten()
    size = sizes.permute(dims).flatten()
    shift, total = start - (size.cumsum(0) - size), int(size.sum())
    shift = shift.to(device).repeat_interleave(size.to(device), output_size=total)
    return shift + torch.arange(total, device=device)


def exchange(rows: Tensor, plan: Plan, group: dist.ProcessGroup | None = None, after: Tensor | None = None) -> Tensor:
    """Run a plan: rows (n, ..., D) -> (n', ..., D). Every rank of the group must call it. Differentiable.

    While gradients are on, the backward pass runs on every rank, whether or not its rows need a gradient: a rank
    that stayed out would leave the others waiting. ``after`` (an earlier exchange's rows) ties the two together, so
    that the earlier one takes part too where nothing in between depends on its rows.
    """
    if after is None:
        after = rows.new_zeros((), requires_grad=torch.is_grad_enabled())
    return _Exchange.apply(rows, after, plan, group)


def shard_bank(bank: Bank, rank: int, world: int) -> Bank:
    """A copy of the E/R experts that ``rank`` of ``world`` holds.

    Raises:
        RoutingError: E is not a multiple of ``world``, no such rank, or a bank of another kind than StackedFFN and
            ModuleBank.
    """
    share = experts_per_rank(bank.num_experts, world)
    if not 0 <= rank < world:
        raise RoutingError(f"rank {rank} of {world}", where="shard_bank", fix="use 0 <= rank < world")
    mine = slice(rank * share, (rank + 1) * share)
    if isinstance(bank, ModuleBank):
        return ModuleBank(copy.deepcopy(bank.experts[mine]))
    if isinstance(bank, StackedFFN):
        # Every parameter is replaced by its slice on the way: the other experts are never copied.
        slices = {id(p): nn.Parameter(p.detach()[mine].clone(), p.requires_grad) for p in bank.parameters()}
        shard = copy.deepcopy(bank, slices)
        shard.num_experts = share
        return shard
    raise RoutingError(
        f"cannot cut a {type(bank).__name__}", where="shard_bank", fix="use a StackedFFN or a ModuleBank"
    )


@dataclass(frozen=True)
class ExpertParallel:
    """Executor whose bank is this rank's shard (``shard_bank``) while routings are over all E experts.

    Output and gradients of x and of the routing are as if one process held every expert. An expert's gradient is that
    of the sum of all ranks' losses, so it must not be averaged over the ranks as those of the other parameters are:
    keep the bank out of DistributedDataParallel, and divide by R where the loss is a mean over ranks.

    All ranks must call it, and go back through it, equally often and in the same order. A rank without items passes
    x of shape (0, ..., D) and calls ``backward`` all the same.

    Args:
        num_experts: E, over all ranks.
        group: the ranks that share the experts; all of them unless given.
        node_size: ranks per node for the hierarchical exchange; the flat one unless given.

    Raises:
        RoutingError: no process group, or a rank outside of it; E, R or ``node_size`` do not divide; a bank or a
            routing for another number of experts; rows of different size on different ranks.
    """

    num_experts: int
    group: dist.ProcessGroup | None = None
    node_size: int | None = None
    collective: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_rank(self.group) < 0:
            raise RoutingError(
                "this process is in no process group",
                where="ExpertParallel",
                fix="call torch.distributed.init_process_group first, and pass a group that holds this rank",
            )
        experts_per_rank(self.num_experts, self._world)
        if self.node_size is not None and (self.node_size < 1 or self._world % self.node_size):
            raise RoutingError(
                f"{self._world} ranks do not make nodes of {self.node_size}",
                where="ExpertParallel.node_size",
                fix="use a node size that divides the number of ranks",
            )

    @property
    def _world(self) -> int:
        return dist.get_world_size(self.group)

    def __call__(self, x: Tensor, routing: Routing, bank: Bank) -> Tensor:
        """This rank's items (T, ..., D), T may be 0 -> (T, ..., D_out)."""
        self._check(routing, bank)
        rank, pairs = dist.get_rank(self.group), sort_pairs(routing)
        table = self._share_counts(pairs.counts, x)
        if self.node_size is None:
            there = flat_plan(table, rank, x.device)
        else:
            there = hierarchical_plan(table, rank, self.node_size, x.device)
        rows = exchange(take_rows(x, pairs), there, self.group)
        counts = table.view(self._world, self._world, -1)[:, rank].sum(0).tolist()
        y = exchange(bank.run_sorted(rows, counts), undo(there), self.group, after=rows)
        return combine_rows(y, routing.weight, pairs)

    def _share_counts(self, counts: list[int], x: Tensor) -> Tensor:
        """(R, E) on the CPU: rows that each rank has for each expert."""
        row_bytes = x.shape[1:].numel() * x.element_size()
        mine = torch.tensor([*counts, row_bytes], device=x.device)
        table = [torch.empty_like(mine) for _ in range(self._world)]
        dist.all_gather(table, mine, group=self.group)
        table = torch.stack(table).cpu()
        if (table[:, -1] != row_bytes).any():  # seen by every rank alike, so none is left waiting
            raise RoutingError(
                f"the ranks' items have {table[:, -1].tolist()} bytes each",
                where="ExpertParallel",
                fix="give items of the same shape and dtype on every rank",
            )
        return table[:, :-1].contiguous()

    def _check(self, routing: Routing, bank: Bank) -> None:
        if bank.num_experts * self._world != self.num_experts or routing.num_experts != self.num_experts:
            raise RoutingError(
                f"{self._world} ranks with {bank.num_experts} experts each, routing over {routing.num_experts}, "
                f"{self.num_experts} wanted",
                where="ExpertParallel",
                fix="give each rank its shard (shard_bank) and route over all experts",
            )


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, after: Tensor, plan: Plan, group: dist.ProcessGroup | None) -> Tensor:
        ctx.plan, ctx.group = plan, group
        return _run(rows, plan, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _run(grad, undo(ctx.plan), ctx.group), None, None, None


def _run(rows: Tensor, plan: Plan, group: dist.ProcessGroup | None) -> Tensor:
    for step in plan:
        rows = step.run(rows, group)
    return rows


def _splits(counts: Tensor, ranks: slice, world: int) -> list[int]:
    """R split sizes: ``counts`` for ``ranks``, 0 for the rest."""
    splits = torch.zeros(world, dtype=torch.int64)
    splits[ranks] = counts
    return splits.tolist()
