"""What a result owes to the computer and the code rather than to the plan: versions, source, threads, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rasterio
import torch

import terramoe
from terramoe._version import __version__

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "rasterio", "lightning-fabric", "safetensors")


def versions() -> dict[str, str]:
    """TerraMoE, Python, the packages that compute, and the libraries inside them."""
    found = {"terramoe": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found | {"gdal": rasterio.__gdal_version__, "cuda": torch.version.cuda or "none"}


def source_digest() -> str:
    """Sixteen hexadecimal digits that change with any file of the package that is running."""
    folder = Path(terramoe.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def git_commit() -> str | None:
    """The commit of the checkout that the package is run from; None if it is installed, or there is no git."""
    root = Path(terramoe.__file__).parents[2]
    if not (root / ".git").exists():  # an installed copy must not name the commit of whatever lies around it
        return None
    try:
        asked = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def arithmetic() -> dict[str, Any]:
    """What may change the last bits of a result on the same machine."""
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def machine() -> str:
    """System, processor and cores; no name of the computer or its user."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
