"""What the terminal shows of an examination of trust, and of drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from terramoe.evaluation import Drift
from terramoe.experiments.trust import Trust
from terramoe.reporting.console import narrow_table
from terramoe.reporting.wording import percent, percent_interval

WORST = 8  # strata shown


def print_trust(trust: Trust, which: str, classes: Sequence[str], console: Console) -> None:
    """Calibration, sets, risk, the worst strata, and a sentence a routed layer."""
    lines = (
        f"{which}; {trust.calibration_pixels} pixels calibrate, {trust.judged_pixels} are judged",
        f"Calibration error {trust.before.ece:.3f}; at temperature {trust.temperature:.2f} {trust.after.ece:.3f}",
        f"Sets of classes: {percent(trust.coverage)} % hold the truth, {percent(1 - trust.conformal.error)} promised; "
        f"{trust.set_size:.2f} classes on average",
        f"Errors {percent(trust.risk.risk_at(1.0))} %; in the surest half {percent(trust.risk.risk_at(0.5))} %",
    )
    for line in lines:
        console.print(line, highlight=False)
    table = narrow_table("Where it fails: share correct of parts of the judged pixels, 95 % over blocks")
    for column in ("part", "pixels", "blocks", "correct %", "elsewhere %"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for s in trust.strata[:WORST]:
        name = classes[s.value - 1] if s.division == "class" else f"{s.division} {s.value}"
        few = " (few)" if s.small else ""
        table.add_row(name, str(s.pixels), f"{s.blocks}{few}", percent_interval(s.accuracy), percent(s.rest))
    console.print(table)
    for layer, probe in trust.probes.items():
        console.print(f"{layer}: {probe.sentence}", highlight=False)


def print_drift(found: Mapping[str, Drift], bands: Sequence[float], console: Console, level: float = 0.05) -> None:
    """A row a test, and which bands changed."""
    said = f"the threshold is exceeded without drift in {100 * level:g} % of cases"
    table = narrow_table(f"Drift against the reference; {said}")
    for column in ("of", "statistic", "threshold", "p", "drifted"):
        table.add_column(column, justify="left" if column == "of" else "right")
    for name, drift in found.items():
        numbers = (f"{drift.statistic:.4f}", f"{drift.threshold:.4f}", f"{drift.p_value:.3f}")
        table.add_row(name, *numbers, "yes" if drift.drifted else "no")
    console.print(table)
    changed = [str(i + 1) for i, p in enumerate(bands) if p < level]
    console.print(f"Bands that changed: {', '.join(changed) or 'none'}", highlight=False)
