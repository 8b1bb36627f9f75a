"""Does this installation work? Small, quick, and honest about what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "rasterio", "lightning-fabric", "safetensors", "tensorly")


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: its name, whether it is well, and what was found."""

    name: str
    ok: bool
    found: str


def examine_installation() -> list[Finding]:
    """Versions, devices, formats, disk, the packaged scene, and whether all executors of a routed layer agree."""
    findings = [Finding("python", True, f"{platform.python_version()}, {platform.system()} {platform.machine()}")]
    for package in PACKAGES:
        try:
            findings.append(Finding(package, True, version(package)))
        except PackageNotFoundError:
            findings.append(Finding(package, False, "missing"))
    if not all(f.ok for f in findings):
        return findings
    return [*findings, _devices(), _formats(), _disk(), _scene(), _executors()]


def _devices() -> Finding:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding(
        "devices", True, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; GPU: {', '.join(gpus) or 'none'}"
    )


def _formats() -> Finding:
    import rasterio

    with rasterio.Env() as environment:
        drivers = environment.drivers()
    missing = [name for name in ("GTiff", "COG", "ENVI", "PNG") if name not in drivers]
    found = f"GDAL {rasterio.__gdal_version__}" + (f", without {', '.join(missing)}" if missing else "")
    return Finding("raster formats", not missing, found)


def _disk() -> Finding:
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    return Finding("temporary disk", free > 0.5, f"{free:.1f} GiB free")


def _scene() -> Finding:
    from terramoe.data import indian_pines
    from terramoe.errors import DataError

    try:
        scene = indian_pines()
    except DataError as error:
        return Finding("Indian Pines scene", False, str(error))
    return Finding(
        "Indian Pines scene", True, f"{scene.bands} x {scene.height} x {scene.width}, {scene.classes} classes"
    )


def _executors() -> Finding:
    import torch

    from terramoe.moe import EXECUTORS, LinearScorer, MoELayer, StackedFFN

    bank, scorer, x = StackedFFN(4, 8, 16), LinearScorer(8, 4), torch.randn(32, 8)
    with torch.no_grad():
        outputs = [MoELayer(scorer, bank, executor=name)(x)[0] for name in EXECUTORS]
    gap = max(float((y - outputs[0]).abs().max()) for y in outputs)
    return Finding("executors agree", gap < 1e-5, f"largest difference {gap:.0e} over {', '.join(EXECUTORS)}")
