"""Expert parallelism gives what one process with all experts gives: real processes against the loop executor.

Processes take seconds to start, so each world size starts once, runs every case, and the tests read the results.
"""

import time
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from terramoe.errors import RoutingError
from terramoe.moe import FixedCapacity, ModuleBank, MoELayer, Scores, StackedFFN, TopK
from terramoe.moe.executors.expert_parallel import (
    ExpertParallel,
    Permute,
    Send,
    block_order,
    exchange,
    flat_plan,
    hierarchical_plan,
    shard_bank,
    undo,
)
from terramoe.moe.experts import Bank

EXPERTS, DIM = 8, 6
TIMEOUT = 60  # seconds for all cases of a world; they take about two


class GivenScores(nn.Module):
    """Logits passed as a key: the tests choose who goes where, and read the gradient of the decision."""

    def forward(self, inp):
        return Scores(inp.keys["logits"])


class Silent(nn.Module):
    """An expert whose output does not depend on its input."""

    def forward(self, x):
        return x.new_ones(x.shape)


def stacked():
    return StackedFFN(EXPERTS, DIM, 5, 4)


def gated():
    return StackedFFN(EXPERTS, DIM, 5, activation="swiglu", bias=False)


def mixed():
    return ModuleBank(nn.Sequential(nn.Linear(DIM, 2 + e), nn.Tanh(), nn.Linear(2 + e, DIM)) for e in range(EXPERTS))


def partly_silent():
    """The first half of the experts ignore their input: they cut the graph on the ranks that hold them."""
    return ModuleBank(Silent() if e < EXPERTS // 2 else nn.Linear(DIM, DIM) for e in range(EXPERTS))


@dataclass(frozen=True)
class Case:
    """One layer on one batch; ``items`` and ``frozen`` go by rank, and repeat."""

    items: tuple[int, ...] = (5, 9)
    inner: tuple[int, ...] = ()
    bank: object = stacked
    selector: object = field(default_factory=lambda: TopK(2))
    capacity: object = None
    favour: tuple[int, ...] = ()  # experts that everybody chooses
    avoid: tuple[int, ...] = ()  # experts that nobody chooses
    masked: bool = False
    frozen: tuple[bool, ...] = (False,)  # items that need no gradient


CASES = {
    "top-2": Case(),
    "top-1": Case(selector=TopK(1)),
    "gated experts": Case(bank=gated),
    "experts of different size": Case(bank=mixed),
    "windows": Case(inner=(2, 3)),
    "an expert nobody chose": Case(avoid=(2, 5)),
    "all rows to the first rank": Case(favour=(0, 1)),
    "all rows to the last rank": Case(favour=(6, 7), bank=mixed),
    "an empty rank": Case(items=(7, 0)),
    "only the last rank has items": Case(items=(0, 0, 0, 5)),
    "no items at all": Case(items=(0,)),
    "no items at all, modules": Case(items=(0,), bank=mixed),
    "dropped pairs": Case(capacity=FixedCapacity(0.5), favour=(3,)),
    "masked items hold NaN": Case(masked=True, inner=(2,)),
    "capacity, mask and an empty rank": Case(items=(0, 11), capacity=FixedCapacity(0.7), masked=True),
    "experts that ignore their input": Case(bank=partly_silent, selector=TopK(1)),
    "items without a gradient on one rank": Case(frozen=(True, False)),
    "one item each": Case(items=(1,), selector=TopK(EXPERTS)),
}


def make(case, world):
    """All of a case: the full bank, and by rank (x, logits, mask)."""
    torch.manual_seed(7)
    bank = case.bank().double()
    ranks = []
    for rank in range(world):
        n = case.items[rank % len(case.items)]
        x = torch.randn(n, *case.inner, DIM, dtype=torch.float64)
        logits = torch.randn(n, EXPERTS, dtype=torch.float64)
        logits[:, list(case.favour)] += 20
        logits[:, list(case.avoid)] -= 20
        mask = (torch.arange(n) + rank) % 3 != 0 if case.masked else None
        if mask is not None:
            x[~mask] = torch.nan
        x.requires_grad_(not case.frozen[rank % len(case.frozen)])
        ranks.append((x, logits.requires_grad_(), mask))
    return bank, ranks


def layer_of(case, bank, executor):
    return MoELayer(GivenScores(), bank, selector=case.selector, capacity=case.capacity, executor=executor)


def loss_of(y):
    """Not linear in y, and different for every channel; a sum over items, so ranks add up."""
    return (y.sin() * torch.linspace(1, 2, y[0:1].numel(), dtype=y.dtype).view_as(y[0:1])).sum() if len(y) else y.sum()


def one_process(case, world):
    """The oracle: items of all ranks in one batch, capacity counted by rank."""
    bank, ranks = make(case, world)
    mask = torch.cat([m for *_, m in ranks]) if case.masked else None
    group = torch.cat([torch.full((len(x),), rank) for rank, (x, _, _) in enumerate(ranks)])
    layer = layer_of(case, bank, "loop")
    x, logits = torch.cat([x for x, _, _ in ranks]), torch.cat([g for _, g, _ in ranks])
    if len(x):
        y, _ = layer(x, mask=mask, group=group, keys={"logits": logits})
        loss_of(y).backward()
    else:
        y = bank.run(0, x)
    return {
        "y": y.detach().split([len(x) for x, _, _ in ranks]),
        "x": [None if x.grad is None else x.grad for x, _, _ in ranks],
        "logits": [g.grad for _, g, _ in ranks],
        "bank": dict(gradients(bank)),
    }


def gradients(bank):
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in bank.named_parameters()}


def run_case(case, rank, world, node_size):
    bank, ranks = make(case, world)
    x, logits, mask = ranks[rank]
    layer = layer_of(case, shard_bank(bank, rank, world), ExpertParallel(EXPERTS, node_size=node_size))
    y, _ = layer(x, mask=mask, keys={"logits": logits})
    loss_of(y).backward()
    return {"y": y.detach(), "x": x.grad, "logits": logits.grad, "bank": gradients(layer.bank)}


def run_identity(rank, world, node_size):
    """There and back again, and the gradient of there: exact, in any dtype."""
    table = torch.randint(0, 4, (world, EXPERTS), generator=torch.Generator().manual_seed(3))
    plan = flat_plan(table, rank) if node_size is None else hierarchical_plan(table, rank, node_size)
    results = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        rows = (torch.arange(int(table[rank].sum()) * 3).view(-1, 3) + 100 * rank).to(dtype).requires_grad_()
        there = exchange(rows, plan)
        (there * there.detach()).sum().backward()  # the gradient that each row gets is the row itself
        back = exchange(there, undo(plan)).detach()
        results[dtype] = (rows.detach(), there.detach(), back, rows.grad)
    return results


def run_training(rank, world, node_size):
    """Two routed layers, five steps: every rank updates its own experts with the sum of all ranks' losses."""
    banks, x, logits = training_data(world)
    executor = ExpertParallel(EXPERTS, node_size=node_size)
    layers = [MoELayer(GivenScores(), shard_bank(bank, rank, world), executor=executor) for bank in banks]
    train(layers, x[rank], logits[rank])
    return [dict(layer.bank.named_parameters()) for layer in layers]


def training_data(world):
    torch.manual_seed(11)
    banks = [StackedFFN(EXPERTS, DIM, 5).double(), mixed().double()]
    sizes = [12 * rank for rank in range(world)]  # the first rank has nothing
    return banks, [torch.randn(n, DIM).double() for n in sizes], [torch.randn(n, EXPERTS).double() for n in sizes]


def train(layers, x, logits):
    """Plain gradient descent (torch.optim takes each process a second to import)."""
    parameters = [p for layer in layers for p in layer.parameters()]
    for _ in range(5):
        y = x
        for layer in layers:
            y = y + layer(y, keys={"logits": logits})[0]
        y.pow(2).sum().backward()
        for p in parameters:
            if p.grad is not None:  # None: an expert that nobody chose
                with torch.no_grad():
                    p -= 0.01 * p.grad
                p.grad = None


def refusals(rank, world):
    """Messages of the errors that each rank must see; none may leave the others waiting."""
    seen = {}
    bank, ((x, logits, _), *_) = make(CASES["top-2"], world)
    shard = shard_bank(bank, rank, world)
    for name, call in {
        "experts": lambda: ExpertParallel(world + 1),
        "nodes": lambda: ExpertParallel(EXPERTS, node_size=3),
        "no nodes": lambda: ExpertParallel(EXPERTS, node_size=0),
        "whole bank": lambda: layer_of(CASES["top-2"], bank, ExpertParallel(EXPERTS))(x, keys={"logits": logits}),
        "scorer": lambda: layer_of(CASES["top-2"], shard, ExpertParallel(EXPERTS))(x, keys={"logits": logits[:, :2]}),
        "width": lambda: layer_of(CASES["top-2"], shard, ExpertParallel(EXPERTS))(
            torch.zeros(5, DIM + rank, dtype=torch.float64), keys={"logits": logits}
        ),
    }.items():
        try:
            call()
        except RoutingError as error:
            seen[name] = str(error)
    return seen


def run_subgroup(rank, world):
    """Every second rank forms a group; the others are no part of it."""
    members = list(range(0, world, 2))
    group = dist.new_group(members)
    if rank not in members:
        try:
            return ExpertParallel(EXPERTS, group)
        except RoutingError as error:
            return str(error)
    place, size = members.index(rank), len(members)
    bank, ranks = make(CASES["top-2"], size)
    layer = layer_of(CASES["top-2"], shard_bank(bank, place, size), ExpertParallel(EXPERTS, group))
    with torch.no_grad():
        return layer(ranks[place][0], keys={"logits": ranks[place][1]})[0]


def work(rank, world, folder):
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", timeout=timedelta(seconds=TIMEOUT), rank=rank, world_size=world
    )
    results = {"refusals": refusals(rank, world), "subgroup": run_subgroup(rank, world)}
    for node_size in NODE_SIZES[world]:
        for name, case in CASES.items():
            results[name, node_size] = run_case(case, rank, world, node_size)
        results["identity", node_size] = run_identity(rank, world, node_size)
        results["training", node_size] = run_training(rank, world, node_size)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def fail_on_one(rank, world, folder):
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    if rank == 1:
        raise ValueError("rank 1 stops here")
    dist.barrier()


def wait_forever(rank, world, folder):
    time.sleep(3600)


def spawn(function, world, folder, timeout=TIMEOUT):
    """Run one process per rank; an error in any is raised here, and no process outlives the call."""
    context, end = mp.spawn(function, (world, str(folder)), nprocs=world, join=False), time.monotonic() + timeout
    try:
        while not context.join(timeout=0.5):
            if time.monotonic() > end:
                raise TimeoutError(f"{world} processes did not end in {timeout} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


NODE_SIZES = {2: (None,), 4: (None, 2)}
WORLDS = [(world, node_size) for world, sizes in NODE_SIZES.items() for node_size in sizes]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """World size -> results by rank."""
    started = {}

    def results(world):
        if world not in started:
            folder = tmp_path_factory.mktemp(f"world{world}")
            started[world] = TimeoutError("the processes failed in an earlier test")
            spawn(work, world, folder)
            started[world] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
        if isinstance(started[world], Exception):
            raise started[world]
        return started[world]

    return results


def close(actual, expected, what):
    if expected is None:
        assert actual is None or not actual.any(), what
        return
    actual = torch.zeros_like(expected) if actual is None else actual
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, msg=lambda m: f"{what}: {m}")


def whole_bank(shards, bank):
    """Names and tensors of the full bank from those of the ranks."""
    share = EXPERTS // len(shards)
    if isinstance(bank, StackedFFN):
        return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    named = {}
    for rank, shard in enumerate(shards):
        for name, tensor in shard.items():
            _, expert, rest = name.split(".", 2)
            named[f"experts.{rank * share + int(expert)}.{rest}"] = tensor
    return named


@pytest.mark.parametrize(("world", "node_size"), WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_one_process(worlds, name, world, node_size):
    expected, case = one_process(CASES[name], world), CASES[name]
    ranks = [results[name, node_size] for results in worlds(world)]
    for rank, actual in enumerate(ranks):
        assert actual["y"].shape == expected["y"][rank].shape
        close(actual["y"], expected["y"][rank], f"y of rank {rank}")
        for what in ("x", "logits"):
            close(actual[what], expected[what][rank], f"gradient of {what} on rank {rank}")
    actual = whole_bank([rank["bank"] for rank in ranks], case.bank())
    assert actual.keys() == expected["bank"].keys()
    for what, grad in expected["bank"].items():
        close(actual[what], grad, f"gradient of {what}")


@pytest.mark.parametrize(("world", "node_size"), WORLDS)
def test_there_and_back_is_the_identity(worlds, world, node_size):
    for results in worlds(world):
        for rows, _, back, grad in results["identity", node_size].values():
            assert torch.equal(back, rows)
            assert torch.equal(grad, rows)


def test_the_hierarchical_exchange_delivers_what_the_flat_one_does(worlds):
    for results in worlds(4):
        for dtype, (_, there, _, _) in results["identity", None].items():
            assert torch.equal(there, results["identity", 2][dtype][1])


@pytest.mark.parametrize(("world", "node_size"), WORLDS)
def test_training_agrees_with_one_process(worlds, world, node_size):
    banks, x, logits = training_data(world)
    start = [{name: p.detach().clone() for name, p in bank.named_parameters()} for bank in banks]
    train([MoELayer(GivenScores(), bank, executor="loop") for bank in banks], torch.cat(x), torch.cat(logits))
    for i, bank in enumerate(banks):
        actual = whole_bank([results["training", node_size][i] for results in worlds(world)], bank)
        for name, p in bank.named_parameters():
            assert not torch.equal(p, start[i][name])
            close(actual[name].detach(), p.detach(), f"layer {i}, {name}")


@pytest.mark.parametrize("world", NODE_SIZES)
def test_every_rank_refuses_what_does_not_fit(worlds, world):
    for results in worlds(world):
        seen = results["refusals"]
        assert f"{world + 1} experts do not divide among {world} ranks" in seen["experts"]
        assert f"{world} ranks do not make nodes of 3" in seen["nodes"]
        assert "nodes of 0" in seen["no nodes"]
        assert "routing over 8" in seen["whole bank"]
        assert "2 logits for 8 experts" in seen["scorer"]
        assert f"{[8 * (DIM + rank) for rank in range(world)]} bytes" in seen["width"]


def test_a_group_of_some_ranks(worlds):
    case = CASES["top-2"]
    for world in NODE_SIZES:
        ranks, expected = worlds(world), one_process(case, world // 2)["y"]
        for rank in range(world):
            if rank % 2:
                assert "in no process group" in ranks[rank]["subgroup"]
            else:
                close(ranks[rank]["subgroup"], expected[rank // 2], f"y of rank {rank}")


def test_a_failing_process_is_reported(tmp_path):
    with pytest.raises(mp.ProcessRaisedException, match="rank 1 stops here"):
        spawn(fail_on_one, 2, tmp_path)


def test_a_waiting_process_is_ended(tmp_path):
    with pytest.raises(TimeoutError):
        spawn(wait_forever, 1, tmp_path, timeout=1)


# Without processes: plans are pure, and a world is a list.


def simulate(plans, rows):
    """Run the plans of all ranks on their rows, all-to-all being a matter of lists."""
    for steps in zip(*plans, strict=True):
        if isinstance(steps[0], Permute):
            rows = [step.run(r, None) for step, r in zip(steps, rows, strict=True)]
            continue
        parts = [r.split(step.sends) for step, r in zip(steps, rows, strict=True)]
        for receiver, step in enumerate(steps):
            assert step.receives == [len(sent[receiver]) for sent in parts]
        rows = [torch.cat([sent[receiver] for sent in parts]) for receiver in range(len(rows))]
    return rows


tables = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda s: st.tuples(
        st.just(s),
        st.lists(st.integers(0, 4), min_size=(s[0] * s[1]) ** 2 * s[2], max_size=(s[0] * s[1]) ** 2 * s[2]),
    )
)


@given(tables)
@settings(deadline=None)
def test_plans_sort_rows_by_expert_and_source_and_can_be_undone(case):
    (nodes, node_size, share), counts = case
    world = nodes * node_size
    table = torch.tensor(counts).view(world, world * share)
    rows = [
        torch.tensor([(e, rank, i) for e in range(world * share) for i in range(table[rank, e])]).view(-1, 3)
        for rank in range(world)
    ]
    flat = [flat_plan(table, rank) for rank in range(world)]
    hierarchical = [hierarchical_plan(table, rank, node_size) for rank in range(world)]
    expected = [[row for row in sorted(torch.cat(rows).tolist()) if row[0] // share == rank] for rank in range(world)]
    for plans in (flat, hierarchical):
        there = simulate(plans, rows)
        assert [r.tolist() for r in there] == expected
        back = simulate([undo(plan) for plan in plans], there)
        assert [r.tolist() for r in back] == [r.tolist() for r in rows]
    for rank, plan in enumerate(hierarchical):
        inside, between = (step for step in plan if isinstance(step, Send))
        for sends in (inside.sends, inside.receives):
            assert all(not n for r, n in enumerate(sends) if r // node_size != rank // node_size)
        for sends in (between.sends, between.receives):
            assert all(not n for r, n in enumerate(sends) if r % node_size != rank % node_size)


def test_one_node_and_nodes_of_one_are_the_flat_exchange():
    table = torch.arange(16).view(2, 8)
    flat_send, _ = flat_plan(table, 1)
    for node_size, which in ((1, 1), (2, 0)):
        sends = [step for step in hierarchical_plan(table, 1, node_size) if isinstance(step, Send)]
        assert sends[which] == flat_send
        assert sum(n for r, n in enumerate(sends[1 - which].sends) if r != 1) == 0


def test_nodes_must_divide_the_ranks():
    for node_size in (3, 0, -1):
        with pytest.raises(RoutingError, match="nodes"):
            hierarchical_plan(torch.ones(4, 4, dtype=torch.int64), 0, node_size)


@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.permutations([0, 1, 2]))
def test_block_order_transposes_blocks(sizes, dims):
    sizes = torch.tensor(sizes).view(2, 3, 2)
    rows = [(i, j, k, n) for i in range(2) for j in range(3) for k in range(2) for n in range(sizes[i, j, k])]
    expected = sorted(rows, key=lambda row: ([row[d] for d in dims], row[3]))
    assert [rows[i] for i in block_order(sizes, dims).tolist()] == expected


@pytest.mark.parametrize("make_bank", [stacked, gated, mixed])
def test_shards_are_copies_that_make_up_the_bank(make_bank):
    torch.manual_seed(0)
    bank, x = make_bank(), torch.randn(3, DIM)
    next(iter(bank.parameters())).requires_grad_(False)
    state = torch.get_rng_state()
    shards = [shard_bank(bank, rank, 4) for rank in range(4)]
    assert torch.equal(state, torch.get_rng_state())
    assert all(shard.num_experts == 2 for shard in shards)
    assert sum(p.numel() for shard in shards for p in shard.parameters()) == sum(p.numel() for p in bank.parameters())
    assert not next(iter(shards[0].parameters())).requires_grad
    with torch.no_grad():
        expected = bank.run_all(x)
        torch.testing.assert_close(torch.cat([shard.run_all(x) for shard in shards]), expected, rtol=0, atol=0)
        for shard in shards:
            for p in shard.parameters():
                p.zero_()
        assert torch.equal(bank.run_all(x), expected)


def test_shards_that_cannot_be():
    for call in (
        lambda: shard_bank(stacked(), 0, 3),
        lambda: shard_bank(stacked(), 4, 4),
        lambda: shard_bank(stacked(), -1, 4),
        lambda: shard_bank(stacked(), 0, 0),
        lambda: ExpertParallel(4),  # no process group here
    ):
        with pytest.raises(RoutingError):
            call()
    unknown = Bank()
    unknown.num_experts = 4
    with pytest.raises(RoutingError, match="cannot cut a Bank"):
        shard_bank(unknown, 0, 2)
