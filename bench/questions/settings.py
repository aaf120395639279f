"""What a question may vary, and what it keeps equal: the dimensions of a measurement, their values, and how a user writes them.

A `Setting` is one value of each. Paths are what is compared at a setting, so they are no part of it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from bench.method.contenders import BETWEEN, DIRECTIONS, FROM_WIRE, TO_WIRE
from bench.method.options import OptionsError
from hyp.abi.frame import COVERED
from hyp.abi.nic import MAX_QUEUE
from hyp.abi.sizes import MAX_PRICE
from hyp.model.ablation import SWITCHES
from hyp.model.operations import OPERATIONS
from hyp.model.profile import names, profile
from hyp.paths import GRANT_MODES
from lab.placement import Placement
from lab.schema.values import MAX_WORKLOAD_FRAME, MIN_WORKLOAD_FRAME

MAX_GUESTS = 24
MAX_ENGINES = 8
SUITED = "suited"
NONE = "none"
GRANTS = "copy"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where paths are measured. Guests, queue and engines make a topology; all else is set while it is up."""

    frame: int = 64
    guests: int = 1
    queue: int = 256
    engines: int = 1
    cores: str = "all"
    load: float = 0.0  # Mframes/s that each guest offers, in an open loop; 0: as fast as the path takes them
    price: str = NONE
    ablation: str = NONE
    payload: str = "full"
    placement: str = SUITED
    direction: str = TO_WIRE
    grants: str = GRANTS  # of split's guests

    @property
    def topology(self) -> tuple[int, int, int]:
        """Settings with the same one can be measured in the same lab."""
        return self.guests, self.queue, self.engines

    @property
    def kind(self) -> str | None:
        """Split's guests where they are not the usual ones (KINDS of bench/questions/measure.py)."""
        return None if self.grants == GRANTS else self.grants

    @property
    def switches(self) -> dict[str, int]:
        """For the hypervisor's `ablate`."""
        return {} if self.ablation == NONE else {self.ablation: COVERED if self.ablation == "copy_limit" else 1}

    @property
    def prices(self) -> dict[str, int]:
        """For the hypervisor's `price`; all of them, so that none is left of the setting before."""
        return dict.fromkeys(OPERATIONS, 0) | _prices(self.price)

    def row(self) -> dict[str, Any]:
        """For a record: each dimension by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def kinds(found: Iterable[Setting]) -> list[str]:
    """Guests that are needed beside those of the paths, each once."""
    return list(dict.fromkeys(one.kind for one in found if one.kind is not None))


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"{low} to {high}")
        return int(text)

    return read


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return read


def _queue(text: str) -> int:
    entries = _whole(8, MAX_QUEUE)(text)
    if entries & (entries - 1):
        raise ValueError(f"a power of two, 8 to {MAX_QUEUE}")
    return entries


def _load(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 64):
        raise ValueError("0 (as fast as it goes) to 64 Mframes/s for each guest")
    return value


def _prices(text: str) -> dict[str, int]:
    """ "hypercall_ns:1000+event_send_ns:500"; a profile's name, "xen-4.x+hypercall_ns:500"; "none"."""
    found: dict[str, int] = {}
    for part in [] if text == NONE else text.split("+"):
        name, colon, value = part.partition(":")
        if not colon and name in names():
            found |= profile(name).prices
            continue
        if name not in OPERATIONS or not colon or not value.isdecimal() or int(value) > MAX_PRICE:
            known = f"{', '.join(OPERATIONS)}, up to {MAX_PRICE}; or a profile first: {', '.join(names())}"
            raise ValueError(f"none, or NAME:PRICE joined by +, of {known}")
        found[name] = int(value)
    return found


def _price(text: str) -> str:
    _prices(text)
    return text


def _direction(text: str) -> str:
    """With or without the arrow that few keyboards have."""
    plain = {way.replace("→", "-"): way for way in DIRECTIONS}
    return _one_of(*DIRECTIONS)(plain.get(text.replace("->", "-"), text))


DIMENSIONS: dict[str, Callable[[str], Any]] = {
    "frame": _whole(MIN_WORKLOAD_FRAME, MAX_WORKLOAD_FRAME),
    "guests": _whole(1, MAX_GUESTS),
    "queue": _queue,
    "engines": _whole(1, MAX_ENGINES),
    "cores": _one_of("all", "1"),
    "load": _load,
    "price": _price,
    "ablation": _one_of(NONE, *SWITCHES),
    "payload": _one_of("full", "header"),
    "placement": _one_of(SUITED, *(str(one) for one in Placement)),
    "direction": _direction,
    "grants": _one_of(*GRANT_MODES),
}
"""How a value of each is read; ValueError says what is possible."""


def dimension(text: str) -> tuple[str, list[Any]]:
    """ "guests=1,4,16" as ("guests", [1, 4, 16]). OptionsError names what will not do, and what would."""
    name, equals, values = (part.strip() for part in text.partition("="))
    if name not in DIMENSIONS or not equals:
        raise OptionsError(f"{text!r}: NAME=VALUE,… is needed, of {', '.join(DIMENSIONS)} (paths are given by --paths)")
    found = []
    for value in values.split(","):
        try:
            found.append(DIMENSIONS[name](value.strip()))
        except ValueError as error:
            raise OptionsError(f"{name}={value.strip()}: {error}") from None
    if len(set(found)) < len(found):
        raise OptionsError(f"{name}: a value is there twice: {values}")
    return name, found


def settings(vary: list[str], fixed: list[str]) -> tuple[list[Setting], list[str]]:
    """All combinations of what varies, and the names of what does. OptionsError for what cannot be measured."""
    varied, kept = [dimension(text) for text in vary], [dimension(text) for text in fixed]
    names = [name for name, _ in (*varied, *kept)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionsError(f"{', '.join(twice)}: given twice")
    if several := [name for name, values in kept if len(values) > 1]:
        raise OptionsError(f"--fixed {several[0]} has several values: --vary is for that")
    base = replace(Setting(), **{name: values[0] for name, values in kept})
    found = []
    for values in product(*(values for _, values in varied)):
        one = replace(base, **dict(zip((name for name, _ in varied), values, strict=True)))
        _check(one)
        found.append(one)
    return found, [name for name, values in varied if len(values) > 1]


def _check(one: Setting) -> None:
    if one.direction in (BETWEEN, FROM_WIRE) and one.guests > 1:
        raise OptionsError(f"guests={one.guests}: several guests send to the wire; {one.direction} is measured with one")
    if one.ablation == "copy_limit" and one.payload != "header":
        raise OptionsError(
            "ablation=copy_limit leaves the payload uncopied: it takes payload=header, whose payload nobody looks at"
        )
