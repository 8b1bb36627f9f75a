"""Models on disk: ``model.safetensors`` with the weights and ``model.json``, the manifest that vouches for them.

No pickle is ever read: unpickling a file runs whatever code its author put there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from terramoe._version import __version__
from terramoe.errors import ModelFileError
from terramoe.storage.atomic import write_bytes, write_json
from terramoe.storage.estimator_file import is_estimator

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
WEIGHTS, MANIFEST = "model.safetensors", "model.json"
_KEYS = ("format", "terramoe", "system", "config", "data", "tensors", "sha256", "manifest_sha256")


@dataclass(frozen=True)
class StoredModel:
    """A model as it lies on disk.

    Attributes:
        system: name in the registry. config: its settings, as plain values.
        tensors: weights by parameter name.
        data: what prediction must know about the data: bands, normalisation, classes, window.
        version: of TerraMoE, that wrote it.
    """

    system: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    data: dict[str, Any]
    version: str


def save_model(
    folder: str | Path,
    *,
    system: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    data: Mapping[str, Any],
) -> Path:
    """Write weights and manifest into ``folder``; returns the path of the weights.

    The weights hold no time stamp: equal weights give equal files. Between the two writes a crash can leave new
    weights beside an old manifest; ``load_model`` then reports a mismatch instead of loading a wrong pair.
    """
    from safetensors.torch import save

    folder = Path(folder)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "terramoe": __version__,
        "system": system,
        "config": dict(config),
        "data": dict(data),
        "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest["manifest_sha256"] = _digest(manifest)
    write_bytes(folder / WEIGHTS, content)
    write_json(folder / MANIFEST, manifest)
    return folder / WEIGHTS


def load_model(path: str | Path) -> StoredModel:
    """Read a model, given its run folder, its weights or its manifest. The hashes are checked before anything is used.

    Raises:
        ModelFileError: a file is missing, changed after it was written, of an unknown format, or a pickle.
    """
    folder = _folder(Path(path))
    if is_estimator(folder):
        raise ModelFileError(
            "this model works on rows or surfaces, not on scenes", where=folder, fix="use evaluate or predict"
        )
    manifest = _read_manifest(folder / MANIFEST)
    content = _read(folder / WEIGHTS)
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise ModelFileError(
            "the weights are not those that the manifest vouches for",
            where=folder / WEIGHTS,
            fix="the file was changed or half copied: take it again from its source, or train anew",
        )
    from safetensors.torch import load

    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ModelFileError(f"no safetensors file: {error}", where=folder / WEIGHTS, fix="train anew") from error
    if {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()} != manifest["tensors"]:
        raise ModelFileError("weights and manifest list other tensors", where=folder, fix="train anew")
    return StoredModel(manifest["system"], manifest["config"], tensors, manifest["data"], manifest["terramoe"])


def _folder(path: Path) -> Path:
    if path.is_dir():
        return path
    if not path.exists():
        raise ModelFileError("there is no such model", where=path, fix="give a run folder or its model.safetensors")
    with open(path, "rb") as file:
        start = file.read(8)
    # A pickle starts with the PROTO opcode; torch.save writes a zip of pickles.
    if path.suffix in (".pt", ".pth", ".pkl", ".ckpt") or start[:1] == b"\x80" or start[:2] == b"PK":
        raise ModelFileError(
            "this is a pickle checkpoint, which can run code when it is opened",
            where=path,
            fix="use a model.safetensors written by 'terramoe fit'",
        )
    if path.name not in (WEIGHTS, MANIFEST):
        raise ModelFileError("this is no TerraMoE model", where=path, fix=f"give a run folder or its {WEIGHTS}")
    return path.parent


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(
            "a file of the model is missing", where=path, fix=f"keep {WEIGHTS} and {MANIFEST} together"
        ) from error
    except OSError as error:
        raise ModelFileError(
            f"cannot read: {error.strerror}", where=path, fix="check the file's permissions"
        ) from error


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_read(path))
        complete = isinstance(manifest, dict) and all(key in manifest for key in _KEYS)
    except (json.JSONDecodeError, UnicodeDecodeError):
        complete = False
    if not complete:
        raise ModelFileError("the manifest is damaged", where=path, fix="take the model again from its source")
    if manifest["format"] != FORMAT:
        raise ModelFileError(
            f"the manifest has format {manifest['format']}, this version reads {FORMAT}",
            where=path,
            fix=f"use TerraMoE {manifest['terramoe']}, which wrote it",
        )
    if _digest(manifest) != manifest["manifest_sha256"]:
        raise ModelFileError(
            "the manifest was changed after it was written", where=path, fix="take the model again from its source"
        )
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its own digest."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
