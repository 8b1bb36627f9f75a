"""The card of a system: where it comes from and how far it is a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Provenance = Literal["code", "paper", "abstract", "survey"]


@dataclass(frozen=True)
class Card:
    """Facts about one published system, from which the docs table is made.

    Attributes:
        name: as the paper names it.
        title, authors, year, doi, arxiv: the paper ("" where there is none).
        survey_section, survey_reference: place in "Mixture-of-Experts in Remote Sensing: A Survey" (2025).
        task, sensors: what it predicts, from what.
        provenance: what could be read: released code, paper, abstract, the survey's sentence.
        completions: what the sources leave open and we filled; any entry makes the system a reconstruction.
        differences: where paper and released code differ or the code is defective, and what we do.
        reported: the paper's own figure, with its protocol.
    """

    name: str
    title: str
    authors: str
    year: int
    task: str
    sensors: tuple[str, ...]
    survey_section: str
    survey_reference: int
    provenance: tuple[Provenance, ...]
    completions: tuple[str, ...]
    differences: tuple[str, ...]
    reported: str
    doi: str = ""
    arxiv: str = ""

    @property
    def reconstruction(self) -> bool:
        return bool(self.completions)
