"""Reporting: ``report`` (one HTML file), ``console`` (the terminal), ``figures``, ``palette``, ``wording``."""

from terramoe.reporting.console import print_audit, print_summary
from terramoe.reporting.palette import class_colours
from terramoe.reporting.report import write_overview, write_report

__all__ = ["class_colours", "print_audit", "print_summary", "write_overview", "write_report"]
