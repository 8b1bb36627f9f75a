"""Checks for authors of systems (``system``) and for installations (``installation``)."""

from terramoe.checks.installation import Finding, examine_installation
from terramoe.checks.system import SYSTEM_CHECKS, CheckFailed, check_system

__all__ = ["SYSTEM_CHECKS", "CheckFailed", "Finding", "check_system", "examine_installation"]
