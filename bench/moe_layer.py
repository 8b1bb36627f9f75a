"""Speed and memory of the MoE layer beside a dense block and other libraries, in one run.

    make bench             all cells, in a fixed shuffled order; goes on where it stopped (hours)
    make bench QUICK=1     a fixed subset, under 3 minutes, in a new table

Writes ``moe_layer.csv`` and a plot of it; LoRA and convolution banks have rows of their own, whose ratio is to what
``banks`` says. The machine is noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import os
import random
import time
from pathlib import Path

import torch
from banks import CONV, LORA
from measure import medians_ms, peak_mb, settle_allocator
from peers import IMPLEMENTATIONS, Cell
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
COLUMNS = [f.name for f in dataclasses.fields(Cell)] + ["implementation", "median_ms", "peak_mb", "ratio_to_dense"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRID = {
    "dtype": ["float32", "bfloat16"],
    "direction": ["forward", "forward+backward"],
    "items": [1024, 8192, 32768],
    "width": [64, 128, 256, 384],
    "experts": [4, 8, 16, 64],
    "k": [1, 2],
    "routing": ["uniform", "skewed"],
}
BANKS = {**GRID, "items": [8192], "width": [128, 256], "experts": [4, 8], "routing": ["uniform"]}
IMAGES = {**BANKS, "items": [64], "width": [32]}
QUICK = {**GRID, "items": [1024, 8192], "width": [128], "experts": [8, 64], "k": [2], "routing": ["uniform"]}
QUICK_EXTRA = {**QUICK, "items": [8192], "width": [256], "experts": [8], "k": [2], "routing": ["skewed"]}


Todo = tuple[dict, Cell]  # implementations, the first of which is the limit, and a cell


def cells(device: str, quick: bool) -> list[Todo]:
    grids = [(IMPLEMENTATIONS, QUICK), (IMPLEMENTATIONS, QUICK_EXTRA)] if quick else [(IMPLEMENTATIONS, GRID)]
    small = {"dtype": ["float32"], "experts": [8], "k": [2]} if quick else {}
    grids += [(LORA, {**BANKS, **small}), (CONV, {**IMAGES, "dtype": ["float32"], **small})]
    found = [
        (makers, Cell(device=device, **dict(zip(grid, values, strict=True))))
        for makers, grid in grids
        for values in itertools.product(*grid.values())
    ]
    random.Random(0).shuffle(found)  # a run that is cut short is a fair sample of the grid
    return found


def problem(cell: Cell) -> tuple[Tensor, Tensor]:
    """Items (T, D) and a router matrix (E, D). Skewed: a common direction that favours experts like 1 / rank^1.5."""
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(cell.experts, cell.width, generator=generator) / cell.width**0.5
    x = torch.randn(cell.items, cell.width, generator=generator)
    if cell.routing == "skewed":
        wanted = -1.5 * torch.arange(1, cell.experts + 1).log()
        x = x + torch.linalg.lstsq(router, wanted[:, None]).solution.T
    return x, router


def measure(makers: dict, cell: Cell, seconds: float) -> list[dict]:
    dtype = DTYPES[cell.dtype]
    x, router = problem(cell)
    calls = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        module = make(cell, router)
        if module is not None:
            calls[name] = step(module.to(cell.device, dtype), x.to(cell.device, dtype), cell.direction)
    working, memory = {}, {}
    for name, call in calls.items():
        try:
            memory[name] = peak_mb(call)
            working[name] = call
        except (RuntimeError, NotImplementedError) as error:
            print(f"  {name} cannot run {cell.dtype} {cell.direction}: {str(error).splitlines()[0][:90]}")
    times = medians_ms(working, seconds=seconds)
    return [
        {
            **dataclasses.asdict(cell),
            "implementation": name,
            "median_ms": f"{ms:.4f}",
            "peak_mb": f"{memory[name]:.2f}",
            "ratio_to_dense": f"{ms / times[next(iter(makers))]:.4f}",
        }
        for name, ms in times.items()
    ]


def step(module: torch.nn.Module, x: Tensor, direction: str):
    """A call without gradients in evaluation mode, or a training step's forward and backward."""
    if direction == "forward":
        module.eval()

        def forward() -> None:
            with torch.no_grad():
                module(x)

        return forward
    module.train()
    leaf = x.clone().requires_grad_()
    ascent = torch.ones_like(x)

    def both() -> None:
        module(leaf).backward(ascent)
        module.zero_grad(set_to_none=True)  # at the end, so that the next call starts without the old gradients
        leaf.grad = None

    return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fixed subset of the cells, under 3 minutes")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after the cell that passes this time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))

    path = RESULTS / "moe_layer.csv"
    todo = cells(options.device, options.quick)
    if not options.quick and path.exists():
        with path.open() as file:
            done = {tuple(row[c] for c in COLUMNS[:9]) for row in csv.DictReader(file)}
        todo = [(m, c) for m, c in todo if (*map(str, dataclasses.astuple(c)), next(iter(m))) not in done]
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(",".join(COLUMNS) + "\n")
    settle_allocator()
    start = time.monotonic()
    for number, (makers, cell) in enumerate(todo, 1):
        rows = measure(makers, cell, seconds=0.6 if options.quick else 1.5)
        with path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)
        limit, *others = ((float(row["ratio_to_dense"]), row["implementation"]) for row in rows)
        ours = next((r, n) for r, n in others if n.startswith("terramoe"))
        rivals = [(r, n) for r, n in others if not n.startswith(("terramoe", "dense"))]
        best = min(rivals, default=(float("nan"), "none"))
        print(
            f"[{number}/{len(todo)}] {cell.dtype:8} {cell.direction:16} items {cell.items:5} width {cell.width:3} "
            f"experts {cell.experts:2} k {cell.k} {cell.routing:7}  {ours[1]} {ours[0]:.2f} x {limit[1]}, "
            f"next {best[0]:.2f} ({best[1]})",
            flush=True,
        )
        if time.monotonic() - start > 60 * options.minutes:
            break
    from summary import plot, print_summary

    print_summary(path)
    plot(path, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
