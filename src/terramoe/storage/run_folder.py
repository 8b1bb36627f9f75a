"""The files of a run, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from terramoe.errors import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files. ``run.json`` is written last: a folder that has it is finished."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False) -> RunFolder:
        """Make the folder. ConfigError if it holds a finished run and ``overwrite`` is not set; nothing is deleted."""
        folder = cls(Path(path))
        if folder.path.exists() and not folder.path.is_dir():
            raise ConfigError("the output is a file", where=folder.path, fix="name another folder with -o")
        if folder.card.exists() and not overwrite:
            raise ConfigError(
                "this folder holds a finished run", where=folder.path, fix="name another with -o, or add --overwrite"
            )
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the folder: {error.strerror}", where=folder.path, fix="name another with -o"
            ) from error
        if overwrite:
            folder.card.unlink(missing_ok=True)
        return folder

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def overview(self) -> Path:
        return self.path / "overview.png"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def split(self) -> Path:
        return self.path / "split.tif"

    @property
    def card(self) -> Path:
        return self.path / "run.json"

    def state(self, name: str) -> Path:
        """The state file of a training called ``name``."""
        return self.path / "states" / f"{name}.safetensors"
