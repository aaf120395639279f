"""Profiles: what operations cost on a system that others have measured, each cost with its source.

A profile is a TOML file: one of `hyp/model/profiles/`, by its name, or any other, by its path. Every operation that has a price
(hyp/model/operations.py) is in exactly one of three tables::

    title = "…"

    [cost.vm_exit_ns]           what was published
    value = 683                 in the unit that the name ends in
    basis = "text"              "text": as printed; "figure": read off a figure; "derived": by arithmetic from what is printed
    how = "2,000 cycles at 2.93 GHz"
    machine = "…"  source = "…"  table = "Table 1"  year = "2011"  quote = "…"

    [free.event_send_ns]        no figure was to be had: 0, unless a topology or a fit gives it one within the range
    range = [300, 3000]
    why = "…"                   why there is none, and why this range

    [absent.iommu_map_ns]       that system had no such operation: 0
    why = "…"

Read by processes that must not import numpy: plain Python only.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hyp.abi.sizes import MAX_PRICE
from hyp.model.operations import OPERATIONS

FOLDER: Final = Path(__file__).with_name("profiles")
BASES: Final = ("text", "figure", "derived")
_SAID: Final = ("how", "machine", "source", "table", "year", "quote")


class ProfileError(ValueError):
    """A profile that cannot be used; the message names the file, the key and what is wrong."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What an operation was measured to cost, and who says so."""

    value: int
    basis: str
    how: str
    machine: str
    source: str
    table: str
    year: str
    quote: str


@dataclass(frozen=True, slots=True)
class Free:
    """An operation without a published cost: what is plausible, and why."""

    low: int
    high: int
    why: str


@dataclass(frozen=True, slots=True)
class Profile:
    """Costs by the name of the price."""

    name: str
    title: str
    costs: Mapping[str, Cost]
    free: Mapping[str, Free]
    absent: Mapping[str, str]

    @property
    def prices(self) -> dict[str, int]:
        """For the hypervisor's `price`: all of them; what is free or absent is 0."""
        return {name: self.costs[name].value if name in self.costs else 0 for name in OPERATIONS}


def names() -> list[str]:
    """The profiles that come with the lab."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def profile(name: str, folder: Path | None = None) -> Profile:
    """A profile that comes with the lab, or that of a file (ends in ``.toml``; relative to `folder`). ProfileError."""
    path = FOLDER / f"{name}.toml" if name in names() else (folder or Path()) / name
    if not name.endswith(".toml") and name not in names():
        raise ProfileError(f"{name!r} is neither a profile ({', '.join(names())}) nor a file that ends in .toml")
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: {error}") from None
    try:
        return _profile(name, table)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from None


def _profile(name: str, table: dict[str, Any]) -> Profile:
    if unknown := table.keys() - {"title", "cost", "free", "absent"}:
        raise ProfileError(f"{min(unknown)} is not a key; there are title, cost, free, absent")
    parts: dict[str, dict[str, Any]] = {part: _table(table.get(part, {}), part) for part in ("cost", "free", "absent")}
    where: dict[str, list[str]] = {}
    for part, entries in parts.items():
        for operation in entries:
            where.setdefault(operation, []).append(part)
    if unknown := where.keys() - OPERATIONS.keys():
        raise ProfileError(f"{min(unknown)} is no operation; there are {', '.join(OPERATIONS)}")
    for operation in OPERATIONS:
        if len(where.get(operation, [])) != 1:
            found = " and ".join(where.get(operation, [])) or "none"
            raise ProfileError(f"{operation} has to be in one of cost, free and absent, and is in {found}")
    costs = {key: _cost(f"cost.{key}", entry) for key, entry in parts["cost"].items()}
    free = {key: _free(f"free.{key}", entry) for key, entry in parts["free"].items()}
    absent = {key: _text(f"absent.{key}", _table(entry, f"absent.{key}"), "why") for key, entry in parts["absent"].items()}
    return Profile(name, _text("", table, "title"), costs, free, absent)


def _table(value: object, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProfileError(f"{key} must be a table")
    return value


def _text(key: str, entry: dict[str, Any], what: str) -> str:
    value = entry.get(what)
    if not isinstance(value, str) or not value.strip():
        raise ProfileError(f"{f'{key}.' if key else ''}{what} must say something, not {value!r}")
    return value


def _price(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PRICE:
        raise ProfileError(f"{key} must be an integer from 0 to {MAX_PRICE}, not {value!r}")
    return value


def _cost(key: str, value: object) -> Cost:
    entry = _table(value, key)
    if unknown := entry.keys() - {"value", "basis", *_SAID}:
        raise ProfileError(f"{key}.{min(unknown)} is not a key; there are value, basis, {', '.join(_SAID)}")
    if entry.get("basis") not in BASES:
        raise ProfileError(f"{key}.basis must be one of {', '.join(BASES)}, not {entry.get('basis')!r}")
    return Cost(_price(f"{key}.value", entry.get("value")), entry["basis"], *(_text(key, entry, what) for what in _SAID))


def _free(key: str, value: object) -> Free:
    entry = _table(value, key)
    ends = entry.get("range")
    if not isinstance(ends, list) or len(ends) != 2:
        raise ProfileError(f"{key}.range must be [least, most], not {ends!r}")
    low, high = _price(f"{key}.range", ends[0]), _price(f"{key}.range", ends[1])
    if not 0 < low < high:
        raise ProfileError(f"{key}.range must be [least, most] with 0 < least < most, not {ends!r}")
    return Free(low, high, _text(key, entry, "why"))
