"""The live display of an experiment."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class LiveProgress:
    """Shows each stage and, while training, steps and loss. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._finish()
        self._progress.stop()

    def stage(self, text: str) -> None:
        """Close the last stage and begin a new one."""
        self._finish()
        self._task = self._progress.add_task(f"{text:<32}", total=None, note="")

    def step(self, run: str, done: int, total: int, loss: float) -> None:
        """A training step is done."""
        self._progress.update(self._task, completed=done, total=total, note=f"step {done}/{total}, loss {loss:.3f}")

    def _finish(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._task]
            self._progress.update(self._task, total=task.total or 1, completed=task.total or 1)
            self._progress.stop_task(self._task)
