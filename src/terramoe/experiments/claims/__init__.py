"""The claims, one small file a system; ``reproduce`` runs them."""

from __future__ import annotations

from importlib import import_module

from terramoe.errors import ConfigError
from terramoe.experiments.claims.claim import Claim, MeasuredStatement, Statement

CLAIMS: dict[str, str] = {
    "mambamoe": "terramoe.experiments.claims.mambamoe",
}


def claim_of(system: str) -> Claim:
    """The claim of a system; ConfigError if it has none."""
    if system not in CLAIMS:
        raise ConfigError(f"'{system}' has no claim", where="reproduce", fix=f"use one of {', '.join(CLAIMS)}")
    return import_module(CLAIMS[system]).CLAIM


__all__ = ["CLAIMS", "Claim", "MeasuredStatement", "Statement", "claim_of"]
