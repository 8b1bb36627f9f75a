"""The claims, one small file a system; ``reproduce`` runs them.

A claim named after its system makes its own data. One with a further word, such as ``-real`` or ``-landsat``, needs
benchmark data, which the user has to give (see ``data.benchmarks``).
"""

from __future__ import annotations

from importlib import import_module

from terramoe.errors import ConfigError
from terramoe.experiments.claims.claim import Claim, MeasuredStatement, Statement
from terramoe.experiments.claims.rows_claim import Above, Compared, RowsClaim

_FOLDER = "terramoe.experiments.claims"
CLAIMS: dict[str, tuple[str, str]] = {  # name: (module, attribute)
    "aggarwal": (f"{_FOLDER}.aggarwal", "CLAIM"),
    "amofe": (f"{_FOLDER}.amofe", "CLAIM"),
    "amofe-samson": (f"{_FOLDER}.amofe", "REAL_SAMSON"),
    "cplp-dmoes": (f"{_FOLDER}.cplp_dmoes", "CLAIM"),
    "cplp-dmoes-real": (f"{_FOLDER}.cplp_dmoes", "REAL_CLAIM"),
    "hypertransxnet": (f"{_FOLDER}.hypertransxnet", "CLAIM"),
    "hypertransxnet-real": (f"{_FOLDER}.hypertransxnet", "REAL_CLAIM"),
    "jiang": (f"{_FOLDER}.jiang", "CLAIM"),
    "kussul": (f"{_FOLDER}.kussul", "CLAIM"),
    "kussul-real": (f"{_FOLDER}.kussul", "REAL_CLAIM"),
    "land-moe": (f"{_FOLDER}.land_moe", "CLAIM"),
    "loyola": (f"{_FOLDER}.loyola", "CLAIM"),
    "mambamoe": (f"{_FOLDER}.mambamoe", "CLAIM"),
    "mambamoe-landsat": (f"{_FOLDER}.mambamoe", "REAL_LANDSAT"),
    "mamol": (f"{_FOLDER}.mamol", "CLAIM"),
    "mamol-landsat": (f"{_FOLDER}.mamol_landsat", "REAL_LANDSAT"),
    "mamol-real": (f"{_FOLDER}.mamol", "REAL_CLAIM"),
    "mecka": (f"{_FOLDER}.mecka", "CLAIM"),
    "meg": (f"{_FOLDER}.meg", "CLAIM"),
    "mixturers": (f"{_FOLDER}.mixturers", "CLAIM"),
    "mixturers-real": (f"{_FOLDER}.mixturers", "REAL_CLAIM"),
    "mixturers-sentinel": (f"{_FOLDER}.mixturers", "REAL_SENTINEL"),
    "nagarajan-slatton": (f"{_FOLDER}.nagarajan_slatton", "CLAIM"),
    "pasika": (f"{_FOLDER}.pasika", "CLAIM"),
    "pha-moe": (f"{_FOLDER}.pha_moe", "CLAIM"),
    "pha-moe-real": (f"{_FOLDER}.pha_moe", "REAL_CLAIM"),
    "pmmoe": (f"{_FOLDER}.pmmoe", "CLAIM"),
    "pmmoe-real": (f"{_FOLDER}.pmmoe", "REAL_CLAIM"),
    "spectralx": (f"{_FOLDER}.spectralx", "CLAIM"),
    "spectralx-jasper": (f"{_FOLDER}.spectralx", "REAL_JASPER"),
    "stf-moe": (f"{_FOLDER}.stf_moe", "CLAIM"),
    "yuksel-gader": (f"{_FOLDER}.yuksel_gader", "CLAIM"),
}


def claim_of(name: str) -> Claim | RowsClaim:
    """A claim by its name; ConfigError if there is none."""
    if name not in CLAIMS:
        raise ConfigError(f"'{name}' has no claim", where="reproduce", fix=f"use one of {', '.join(CLAIMS)}")
    module, attribute = CLAIMS[name]
    return getattr(import_module(module), attribute)


__all__ = ["CLAIMS", "Above", "Claim", "Compared", "MeasuredStatement", "RowsClaim", "Statement", "claim_of"]
