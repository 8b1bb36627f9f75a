"""Speed and size of every published system, at its paper's own input and on a scene of 512 x 512 pixels.

    make bench-systems                      every system that can be built; QUICK=1 for few repetitions
    python bench/systems.py --only mecka    one system
    python bench/systems.py --whole         predict the whole scene instead of one window times their number

Writes ``results/systems.csv``, one row a system and device, replaced when it is measured anew:

    system, device, threads     which, where; threads of the CPU
    input                       what a step gets, as (items, bands, rows, columns)
    reduced                     what is smaller than in the paper, or why the size is ours; empty if nothing
    forward_ms                  median of a forward pass without gradients, in evaluation mode
    step_ms                     median of a training step: forward, loss, backward, Adam
    peak_mb                     most memory held at once by what a training step allocates, in 10^6 bytes
    parameters                  all of them
    active_parameters           those that an item uses on average in this forward pass, untrained
    scene_s                     seconds to predict 512 x 512 pixels with the settings of the system's claim
    scene_how                   "whole", or "extrapolated" from one prediction window
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import statistics
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import medians_ms, peak_mb
from torch import Tensor

from terramoe.data import Normaliser
from terramoe.errors import TerraMoEError
from terramoe.evaluation import active_parameters, total_parameters
from terramoe.experiments.claims import claim_of
from terramoe.experiments.train import build_for
from terramoe.inference import Predictor, predict_array
from terramoe.inference.windows import starts
from terramoe.moe import summarise
from terramoe.storage.atomic import write_text
from terramoe.systems import SYSTEMS, System, make_config, system_class

RESULTS = Path(__file__).parent / "results" / "systems.csv"
COLUMNS = (
    "system",
    "device",
    "threads",
    "input",
    "reduced",
    "forward_ms",
    "step_ms",
    "peak_mb",
    "parameters",
    "active_parameters",
    "scene_s",
    "scene_how",
)
SCENE = 512  # pixels


@dataclass(frozen=True)
class Input:
    """What a system is fed.

    Attributes:
        config: settings that differ from the defaults, the data's facts among them.
        items: images, or patches, a step.
        size: side of an image; a system of patches has its own.
        reduced: what differs from the paper, and why.
    """

    config: dict[str, Any]
    items: int = 4
    size: int = 64
    reduced: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # taken where the configuration has a setting of the name


def wavelengths(bands: int, first: float = 430.0, last: float = 2400.0) -> tuple[float, ...]:
    """Evenly spaced, in nanometres."""
    return tuple(np.linspace(first, last, bands).round(1).tolist())


INPUTS: dict[str, Input] = {
    "amofe": Input({"bands": (48, 4), "classes": 20}, items=64, reduced="sizes are ours: the paper was not to be read"),
    "cplp-dmoes": Input({"bands": (144, 1), "classes": 15, "patch": 11}, items=64),
    "hypertransxnet": Input({"bands": 200, "classes": 16, "patch": 15}),
    "land-moe": Input({"bands": 4, "classes": 10}, items=1, size=256, reduced="512 x 512 in the paper"),
    "mambamoe": Input({"bands": 103, "classes": 9}, items=1, reduced="the whole scene in the paper"),
    "mamol": Input({"bands": (144, 1), "classes": 15, "patch": 15}, items=2, reduced="14 x 14 in the paper; odd here"),
    "mecka": Input({"bands": 3, "classes": 8, "domains": 4, "patch": 223}, reduced="224 x 224 in the paper; odd here"),
    "mixturers": Input({"bands": (144, 1), "classes": 15, "patch": 11}, items=64),
    "spectralx": Input({"bands": 32, "classes": 10}, items=1, size=128, facts={"wavelengths": wavelengths(32)}),
}


def build_paper(name: str, given: Input) -> System:
    """The system at the paper's size. ConfigError where its settings are refused."""
    known = {f.name for f in fields(system_class(name).Config)}
    facts = {key: value for key, value in given.facts.items() if key in known}
    torch.manual_seed(0)
    return system_class(name)(make_config(name, {**given.config, **facts}))


def made_batch(system: System, given: Input) -> dict[str, Tensor]:
    """Random images with a class at every pixel, or patches with one at their own; the last of them unlabelled."""
    config, generator = system.config, torch.Generator().manual_seed(0)
    bands = config.bands if isinstance(config.bands, tuple) else (config.bands,)
    side = system.patch or given.size
    shape = (given.items, side, side)
    batch = {
        "image": torch.randn(given.items, sum(bands), side, side, generator=generator),
        "valid": torch.ones(shape, dtype=torch.bool),
        "mask": torch.randint(config.classes, shape, generator=generator),
    }
    if system.multi_sensor:
        batch["available"] = torch.ones(given.items, len(bands), side, side, dtype=torch.bool)
    if system.patch is not None:
        centre = torch.zeros(shape, dtype=torch.bool)
        centre[:, side // 2, side // 2] = True
        domains = torch.arange(given.items) % getattr(config, "domains", 1)
        unlabelled = domains == max(getattr(config, "domains", 1) - 1, 1)
        batch["wanted"] = centre
        batch["domain"] = domains[:, None, None].expand(shape)
        batch["mask"] = torch.where(centre & ~unlabelled[:, None, None], batch["mask"], -1)
    return batch


def measure(system: System, batch: dict[str, Tensor], seconds: float) -> dict[str, Any]:
    """Times, memory and size of a system on a batch, both on one device."""
    trained = [p for p in system.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained)

    def forward() -> None:
        system.eval()
        with torch.no_grad():
            system(batch)

    def step() -> None:
        system.train()
        optimizer.zero_grad(set_to_none=True)
        sum(system.loss(system(batch), batch).values()).backward()
        optimizer.step()

    forward()  # builds kernels, which is not measured
    step()
    times = medians_ms({"forward": forward, "step": step}, seconds=seconds)
    system.eval()
    with torch.no_grad():
        statistics_of = summarise(system(batch).routings)
    return {
        "forward_ms": f"{times['forward']:.2f}",
        "step_ms": f"{times['step']:.2f}",
        "peak_mb": f"{peak_mb(step):.1f}",
        "parameters": total_parameters(system),
        "active_parameters": active_parameters(system, statistics_of),
    }


def scene_seconds(name: str, *, whole: bool, repetitions: int) -> tuple[float, str]:
    """Seconds to predict a scene with the settings of the system's claim, on the CPU, and how they were found.

    One window of the grid that prediction lays over the scene, times their number, or the whole scene.
    """
    claim = claim_of(name)
    plan, scene = replace(claim.plan, system=name), claim.scene()
    system = build_for(plan, scene, 0).eval()
    window = plan.train.crop
    overlap = 0 if system.patch else window // 2
    predictor = Predictor(
        name=name,
        system=system,
        normaliser=Normaliser((0.0,) * scene.bands, (1.0,) * scene.bands, "standard"),
        class_values=scene.class_values,
        class_names=scene.class_names,
        window=window,
        overlap=overlap,
        sensors=scene.sensors,
    )
    side = SCENE if whole else window
    image = np.random.default_rng(0).standard_normal((scene.bands, side, side), dtype=np.float32)
    times = []
    for _ in range(1 if whole else repetitions):
        start = time.perf_counter()
        predict_array(predictor, image, np.ones((side, side), dtype=bool))
        times.append(time.perf_counter() - start)
    if whole:
        return times[0], "whole"
    count = len(starts(SCENE, window, window - overlap)) ** 2
    how = f"extrapolated: {count} windows of {window} x {window}"
    return count * statistics.median(times), how


def row_of(name: str, device: str, *, quick: bool, whole: bool) -> dict[str, Any]:
    """The row of one system."""
    given = INPUTS[name]
    system = build_paper(name, given).to(device)
    batch = {key: value.to(device) for key, value in made_batch(system, given).items()}
    row = {
        "system": name,
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "input": " x ".join(map(str, batch["image"].shape)),
        "reduced": given.reduced,
        **measure(system, batch, seconds=0.3 if quick else 4.0),
    }
    try:
        seconds, how = scene_seconds(name, whole=whole, repetitions=1 if quick else 5)
        row |= {"scene_s": f"{seconds:.1f}", "scene_how": how}
    except (TerraMoEError, ImportError) as error:
        print(f"{name}: no scene is predicted: {error}")
    return row


def save(row: dict[str, Any], path: Path) -> None:
    """Put a row into the table in the place of the one with its system and device; the file is replaced whole."""
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [r for r in csv.DictReader(file) if (r["system"], r["device"]) != (row["system"], row["device"])]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(sorted([*rows, row], key=lambda r: (r["device"], r["system"])))
    write_text(path, text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SYSTEMS, help="one system")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--whole", action="store_true", help="predict the whole scene of 512 x 512 pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the table")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    for name in [options.only] if options.only else SYSTEMS:
        if name not in INPUTS:
            print(f"{name}: skipped, no input is given for it in INPUTS")
            continue
        try:
            row = row_of(name, options.device, quick=options.quick, whole=options.whole)
        except (TerraMoEError, ImportError) as error:
            print(f"{name}: skipped, {error}")
            continue
        save(row, options.output)
        print("  ".join(f"{key} {row[key]}" for key in COLUMNS if row.get(key) not in (None, "")), flush=True)


if __name__ == "__main__":
    main()
