"""What the numbers of ``moe_layer.csv`` say: the bars that the layer is held to, and a plot."""

from __future__ import annotations

import csv
import itertools
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LARGE = "items >= 8k"
CELL = ("device", "dtype", "direction", "items", "width", "experts", "k", "routing")
Cells = dict[tuple[str, ...], dict[str, tuple[float, float, float]]]


def read(path: Path) -> Cells:
    """Cell -> implementation -> (ratio to dense, milliseconds, peak MB)."""
    cells: Cells = defaultdict(dict)
    with path.open() as file:
        for row in csv.DictReader(file):
            numbers = float(row["ratio_to_dense"]), float(row["median_ms"]), float(row["peak_mb"])
            cells[tuple(row[c] for c in CELL)][row["implementation"]] = numbers
    return cells


def print_summary(path: Path) -> None:
    """One line for each bar; numbers are ratios of medians."""
    every = read(path)
    cells = {key: values for key, values in every.items() if "terramoe" in values}
    print(f"{len(cells)} cells in {path.name}, and {len(every) - len(cells)} of LoRA and convolution banks")
    for device, dtype, direction in sorted({key[:3] for key in cells}):
        chosen = {k: v for k, v in cells.items() if k[:3] == (device, dtype, direction)}
        print(f"{device} {dtype} {direction}")
        for limit in ("dense", "dense-same-kernels"):
            _spread(
                f"{LARGE}, width >= 128, E <= 16", limit, chosen, lambda w, e, n: n >= 8192 and w >= 128 and e <= 16
            )
            _spread(f"{LARGE}, 64 experts", limit, chosen, lambda w, e, n: n >= 8192 and e == 64)
        _spread("1k items, width >= 128, E <= 16", "dense", chosen, lambda w, e, n: n < 8192 and w >= 128 and e <= 16)
        _spread(f"{LARGE}, width 64, E <= 16", "dense", chosen, lambda w, e, n: n >= 8192 and w == 64 and e <= 16)
    large = {k: v for k, v in cells.items() if int(k[3]) >= 8192}
    few = {k: v for k, v in large.items() if int(k[5]) <= 16}
    _count(f"fastest of all MoE implementations, {LARGE}", large, _others, index=1)
    _count("not slower than the plain loop (5 % noise allowed)", cells, lambda v: ["plain-loop"], index=1, slack=1.05)
    _count("peak memory below each other library", cells, _libraries, index=2)
    _count("peak memory below the plain loop", cells, lambda v: ["plain-loop"], index=2)
    _count(f"peak memory below the plain loop, {LARGE}, E <= 16", few, lambda v: ["plain-loop"], index=2)
    for bank, limit in (("terramoe-lora", "one LoRA of equal active rank"), ("terramoe-conv", "k convolutions")):
        for dtype, direction in itertools.product(("float32", "bfloat16"), ("forward", "forward+backward")):
            ratios = [v[bank][0] for k, v in every.items() if k[1:3] == (dtype, direction) and bank in v]
            if ratios:
                spread = f"median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}"
                print(f"{bank} {dtype} {direction}: {spread} x {limit}")


def _others(values: dict) -> list[str]:
    return [name for name in values if not name.startswith(("dense", "terramoe", "lora", "conv"))]


def _libraries(values: dict) -> list[str]:
    return [name for name in _others(values) if name != "plain-loop"]


def _spread(title: str, limit: str, cells: Cells, keep: Callable[[int, int, int], bool]) -> None:
    """Ratios over the cells whose width, experts and items ``keep`` wants."""
    ratios = [
        values["terramoe"][1] / values[limit][1]
        for key, values in cells.items()
        if keep(int(key[4]), int(key[5]), int(key[3])) and limit in values
    ]
    if ratios:
        spread = f"median {statistics.median(ratios):.2f}, worst {max(ratios):.2f} x {limit} ({len(ratios)} cells)"
        print(f"  {title}: {spread}")


def _count(title: str, cells: Cells, rivals, *, index: int, slack: float = 1.0) -> None:
    good, bad = 0, []
    for key, values in cells.items():
        names = [n for n in rivals(values) if n in values]
        worst = min(((values[n][index], n) for n in names), default=None)
        if worst is None or values["terramoe"][index] <= worst[0] * slack:
            good += 1
        else:
            bad.append((values["terramoe"][index] / worst[0], worst[1], " ".join(key[1:])))
    print(f"{title}: {good} of {len(cells)} cells")
    for ratio, name, key in sorted(bad, reverse=True)[:8]:
        print(f"    {ratio:.2f} x {name}: {key}")


def plot(path: Path, target: Path) -> None:
    """Median ratio to dense over the cells of each size, one line an implementation."""
    cells = {key: values for key, values in read(path).items() if "terramoe" in values}
    panels = sorted({key[1:3] for key in cells})
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4), sharey=True, squeeze=False)
    names = list(dict.fromkeys(n for values in cells.values() for n in values))
    for axis, (dtype, direction) in zip(axes[0], panels, strict=True):
        sizes = sorted({int(k[3]) for k in cells if k[1:3] == (dtype, direction)})
        for name in names:
            points = []
            for size in sizes:
                chosen = [v[name][0] for k, v in cells.items() if k[1:4] == (dtype, direction, str(size)) and name in v]
                points.append(statistics.median(chosen) if chosen else float("nan"))
            own = name.startswith("terramoe")
            axis.plot(sizes, points, "o-" if own else "s--", lw=2 if name == "terramoe" else 1, label=name)
        axis.set(xscale="log", yscale="log", title=f"{direction}, {dtype}", xlabel="items", xticks=sizes)
        axis.set_xticklabels([f"{s // 1024}k" for s in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("time / dense block of equal active FLOPs")
    axes[0][0].set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="center right", fontsize=8)
    figure.tight_layout(rect=(0, 0, 0.88, 1))
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    print_summary(Path(sys.argv[1]))
