"""What differs between two runs, read from their cards, and whether it may have changed the results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terramoe.errors import ModelFileError

CARDS = ("run.json", "card.json")  # of a run, of a study
ABSENT = "absent"

# Where a key begins -> (group, whether a change may change results); the first that fits counts. Whatever fits none
# is taken to decide, so that a new entry of the card is never overlooked.
RULES: dict[str, tuple[str, bool]] = {
    "facts.scene": ("data", False),  # its name
    "facts.scene_": ("data", True),
    "facts.labels_": ("data", True),
    "facts.data": ("data", True),
    "facts.grid": ("data", True),  # no network reads it, but the maps lie elsewhere
    "plan.split.groups": ("split", False),  # names of files: the digests tell what they held
    "plan.split.official": ("split", False),
    "plan.split": ("split", True),
    "plan.lenient": ("split", False),  # only lets a run begin
    "facts.split_": ("split", True),
    "facts.tiling": ("tiling", True),
    "plan.normaliser": ("normalisation", True),
    "facts.normalisation": ("normalisation", True),
    "facts.routing": ("routing", True),
    "system": ("model", True),
    "plan.system": ("model", True),
    "plan.model": ("model", True),
    "plan.reduced": ("model", False),  # what was made smaller, in words
    "facts.networks": ("model", True),
    "card": ("model", False),  # what the paper says
    "plan.train.seed": ("seeds", True),
    "plan.seeds": ("seeds", True),
    "facts.seeds": ("seeds", True),
    "plan.train.save_every": ("training", False),  # a resumed training ends with the same bits
    "plan.train": ("training", True),
    "plan.twin": ("training", False),  # another model beside this one
    "facts.versions": ("versions", True),
    "facts.source_digest": ("versions", True),
    "facts.git_commit": ("versions", False),  # the digest of the source tells whether the code changed
    "facts.arithmetic": ("machine", True),
    "facts.machine": ("machine", False),  # instructions, threads and devices decide, and stand in arithmetic
    "audit": ("results", False),
    "scores": ("results", False),
    "comparison": ("results", False),
}
GROUPS = ("other", *dict.fromkeys(group for group, _ in RULES.values()))


@dataclass(frozen=True)
class Change:
    """One entry that two cards do not share.

    Attributes:
        key: dotted. group: of ``GROUPS``. a, b: the values, "absent" where there is none.
        decides: the change may have changed the results.
    """

    key: str
    group: str
    a: object
    b: object
    decides: bool

    def summary(self) -> tuple[str, str]:
        """Both values in a few words; of two lists what differs first."""
        if not isinstance(self.a, list) or not isinstance(self.b, list) or len(self.a) != len(self.b):
            return _short(self.a, self.b), _short(self.b, self.a)
        differing = [place for place, (a, b) in enumerate(zip(self.a, self.b, strict=True)) if a != b]
        first, count = differing[0], len(self.a)
        if Counter(map(str, self.a)) == Counter(map(str, self.b)):
            return f"{count} values", f"the same in another order, from number {first + 1} on"
        a, b = self.a[first], self.b[first]
        where = "" if count == 1 else f" (number {first + 1}, {len(differing)} of {count} differ)"
        return _short(a, b), _short(b, a) + where


def diff_cards(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """Every entry that differs, group by group."""
    first, second = flatten(a), flatten(b)
    changes = []
    for key in dict.fromkeys([*first, *second]):
        before, after = first.get(key, ABSENT), second.get(key, ABSENT)
        if before != after:
            group, decides = classify(key)
            changes.append(Change(key, group, before, after, decides))
    return sorted(changes, key=lambda change: GROUPS.index(change.group))


def classify(key: str) -> tuple[str, bool]:
    """(group, whether a change may change results) of a dotted key."""
    fitting = (rule for start, rule in RULES.items() if _begins(key, start))
    return next(fitting, ("other", True))


def flatten(card: Mapping[str, Any]) -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}. A list of plain values stays one value; of a list of records each has its number.

    An empty mapping or list of records leaves nothing.
    """
    flat: dict[str, object] = {}
    for key, value in card.items():
        if isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
            value = {str(number): inner for number, inner in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": found for inner, found in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a run or a study, given its folder or the file.

    Raises:
        ModelFileError: there is no card, or it is damaged.
    """
    path = Path(path)
    file = next((path / name for name in CARDS if (path / name).is_file()), path) if path.is_dir() else path
    if not file.is_file():
        raise ModelFileError("there is no card of a run", where=path, fix="give the folder of a finished run or study")
    try:
        card = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelFileError("the card is damaged", where=file, fix="make the run again") from error
    if not isinstance(card, dict) or "plan" not in card:
        raise ModelFileError("this is no card of a run", where=file, fix=f"give a folder that holds {CARDS[0]}")
    return card


def _begins(key: str, start: str) -> bool:
    """Whole words only, unless the rule ends with an underscore."""
    return key == start or key.startswith(start if start.endswith("_") else f"{start}.")


def _short(value: object, other: object) -> str:
    """One of two different values, with as many digits as it takes to tell them apart."""
    if isinstance(value, list):
        return f"{len(value)} values" if len(value) > 3 else json.dumps(value)
    if isinstance(value, float) and not (isinstance(other, float) and f"{other:.5g}" == f"{value:.5g}"):
        return f"{value:.5g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
