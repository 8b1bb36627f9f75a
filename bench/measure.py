"""Time and memory of callables, side by side: one repetition of each in turn, medians over the repetitions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians_ms(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = 2.0, least: int = 3, most: int = 25
) -> dict[str, float]:
    """Median wall time of each call in milliseconds. Repeats for about ``seconds``, ``least`` to ``most`` times.

    Every call must have run before, as ``peak_mb`` does: its kernels are built on first use.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for repetition in range(most):
        if repetition >= least and time.perf_counter() > end:
            break
        for name, call in calls.items():
            _wait()
            start = time.perf_counter()
            call()
            _wait()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def settle_allocator() -> None:
    """Bring the C library's allocator to the state of a long-lived process.

    glibc gives large blocks back to the system at once, and learns not to from the largest one that was freed so far.
    Without this, what a call costs would depend on which cells were measured before it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def peak_mb(call: Callable[[], object]) -> float:
    """Most memory held at once by what the call allocates, in MB (10^6 bytes); parameters and inputs not counted."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    held = peak = 0
    changes = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
