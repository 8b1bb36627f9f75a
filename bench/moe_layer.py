"""Speed and memory of the MoE layer beside a dense block and other libraries, in one run.

    python bench/moe_layer.py             all cells, in a fixed shuffled order; goes on where it stopped
    python bench/moe_layer.py --quick     a fixed subset, under 3 minutes

Writes ``moe_layer.csv`` (``moe_layer_quick.csv``) and a plot of it. The machine is noisy, so read the ratios.
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
from measure import medians_ms, peak_mb
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
QUICK = {**GRID, "items": [1024, 8192], "width": [64, 128], "experts": [8, 64], "routing": ["uniform"]}
QUICK_EXTRA = {**QUICK, "items": [8192], "width": [256], "experts": [8], "k": [2], "routing": ["skewed"]}


def cells(device: str, quick: bool) -> list[Cell]:
    grids = [QUICK, QUICK_EXTRA] if quick else [GRID]
    found = [
        Cell(device=device, **dict(zip(grid, values, strict=True)))
        for grid in grids
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


def measure(cell: Cell, seconds: float) -> list[dict]:
    dtype = DTYPES[cell.dtype]
    x, router = problem(cell)
    calls = {}
    for name, make in IMPLEMENTATIONS.items():
        torch.manual_seed(0)
        module = make(cell, router)
        if module is not None:
            calls[name] = step(module.to(cell.device, dtype), x.to(cell.device, dtype), cell.direction)
    working, memory = {}, {}
    for name, call in calls.items():
        try:
            call()
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
            "ratio_to_dense": f"{ms / times['dense']:.4f}",
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
        module.zero_grad(set_to_none=True)
        leaf.grad = None
        module(leaf).backward(ascent)

    return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fixed subset of the cells, under 3 minutes")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after the cell that passes this time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))

    path = RESULTS / ("moe_layer_quick.csv" if options.quick else "moe_layer.csv")
    todo = cells(options.device, options.quick)
    if not options.quick and path.exists():
        with path.open() as file:
            done = {tuple(row[c] for c in COLUMNS[:8]) for row in csv.DictReader(file)}
        todo = [c for c in todo if tuple(map(str, dataclasses.astuple(c))) not in done]
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(",".join(COLUMNS) + "\n")
    start = time.monotonic()
    for number, cell in enumerate(todo, 1):
        rows = measure(cell, seconds=0.6 if options.quick else 2.0)
        with path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)
        ratios = {row["implementation"]: float(row["ratio_to_dense"]) for row in rows}
        best = min((r, n) for n, r in ratios.items() if not n.startswith(("dense", "terramoe")))
        print(
            f"[{number}/{len(todo)}] {cell.dtype:8} {cell.direction:16} items {cell.items:5} width {cell.width:3} "
            f"experts {cell.experts:2} k {cell.k} {cell.routing:7}  terramoe {ratios['terramoe']:.2f} x dense, "
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
