"""Fitted estimators on disk: ``model.skops`` with the numbers and ``model.json``, the manifest that vouches for them.

skops writes what scikit-learn's estimators hold without pickle, and builds nothing on reading but what is trusted: its
own list, and the types of TerraMoE.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from terramoe._version import __version__
from terramoe.errors import ModelFileError
from terramoe.storage.atomic import write_bytes, write_json

FORMAT = 1
ESTIMATOR, MANIFEST = "model.skops", "model.json"
OURS = ("terramoe.",)  # beginnings of the names of types that are ours
_KEYS = ("format", "terramoe", "system", "settings", "data", "sha256", "manifest_sha256")


@dataclass(frozen=True)
class StoredEstimator:
    """An estimator as it lies on disk.

    Attributes:
        system: name in the registry. settings: of the system, as plain values.
        estimator: fitted.
        data: what prediction must know about the data.
    """

    system: str
    settings: dict[str, Any]
    estimator: Any
    data: dict[str, Any]


def is_estimator(path: str | Path) -> bool:
    """Whether a run folder or a file holds an estimator."""
    path = Path(path)
    return (path / ESTIMATOR).is_file() if path.is_dir() else path.name == ESTIMATOR


def save_estimator(
    folder: str | Path, estimator: Any, *, system: str, settings: Mapping[str, Any], data: Mapping[str, Any]
) -> Path:
    """Write estimator and manifest into ``folder``; returns the path of the estimator."""
    from skops.io import dumps

    folder, content = Path(folder), dumps(estimator)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "terramoe": __version__,
        "system": system,
        "settings": dict(settings),
        "data": dict(data),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest["manifest_sha256"] = _digest(manifest)
    write_bytes(folder / ESTIMATOR, content)
    write_json(folder / MANIFEST, manifest)
    return folder / ESTIMATOR


def load_estimator(path: str | Path) -> StoredEstimator:
    """Read an estimator, given its run folder or its file. The hashes are checked before anything is built.

    Raises:
        ModelFileError: a file is missing or damaged, of another format, or names a type that is not trusted.
    """
    from skops.io import get_untrusted_types, loads

    path = Path(path)
    folder = path if path.is_dir() else path.parent
    manifest = load_manifest(folder)
    try:
        content = (folder / ESTIMATOR).read_bytes()
    except OSError as error:
        raise ModelFileError("there is no model", where=folder / ESTIMATOR, fix="name the run folder") from error
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise ModelFileError("the model is damaged", where=folder / ESTIMATOR, fix="copy or train it again")
    try:
        types = get_untrusted_types(data=content)
        strange = sorted(t for t in types if not _is_our_class(t))
        if strange:
            raise ModelFileError(
                f"the model holds {strange[0]}, which is not trusted", where=folder / ESTIMATOR, fix="train it here"
            )
        estimator = loads(content, trusted=types)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise ModelFileError(
            f"the model cannot be built: {error}", where=folder / ESTIMATOR, fix="train it with this version"
        ) from error
    return StoredEstimator(manifest["system"], manifest["settings"], estimator, manifest["data"])


def _is_our_class(name: str) -> bool:
    """Whether this names a class of TerraMoE, and not, say, a function that would be called."""
    if not name.startswith(OURS):
        return False
    module, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(import_module(module), attribute, None), type)
    except ImportError:
        return False


def load_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a run folder or its estimator, checked; ModelFileError if it cannot be trusted."""
    path = Path(path)
    path = (path if path.is_dir() else path.parent) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        whole = all(key in manifest for key in _KEYS)
    except (OSError, ValueError, TypeError) as error:
        raise ModelFileError("the manifest cannot be read", where=path, fix="name the run folder") from error
    if not whole or manifest.pop("manifest_sha256") != _digest(manifest):
        raise ModelFileError("the manifest is damaged", where=path, fix="copy or train it again")
    if manifest["format"] != FORMAT:
        raise ModelFileError(
            f"the file has format {manifest['format']}, this version reads {FORMAT}", where=path, fix="update terramoe"
        )
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
