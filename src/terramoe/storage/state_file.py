"""The state of a training in one safetensors file, replaced in one step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from terramoe.errors import ModelFileError
from terramoe.storage.atomic import write_bytes

if TYPE_CHECKING:
    from torch import Tensor


def save_state(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able ``meta`` atomically; a digest over both closes the file."""
    from safetensors.torch import save

    content = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, {"meta": json.dumps(meta)})
    write_bytes(path, content + hashlib.sha256(content).digest())


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_state`` wrote, bit for bit; ModelFileError if the file is damaged."""
    from safetensors.torch import load

    whole = Path(path).read_bytes()
    content, digest = whole[:-32], whole[-32:]
    damaged = ModelFileError("the state file is damaged", where=path, fix="delete it and train from the start")
    if hashlib.sha256(content).digest() != digest:
        raise damaged
    try:
        header_size = int.from_bytes(content[:8], "little")
        meta = json.loads(json.loads(content[8 : 8 + header_size])["__metadata__"]["meta"])
        return load(content), meta
    except (SafetensorError, KeyError, ValueError) as error:
        raise damaged from error
