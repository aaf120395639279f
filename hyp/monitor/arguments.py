"""What the arguments of hypercalls may be. Each kind checks a value that an untrusted domain sent, and returns what handlers want.

A kind is called with the call, the argument's name and its value; `Refused` names domain, operation, argument and reason. Kinds
that depend on another argument find it in `call.checked`, so the table has that one first.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hyp.abi.features import MAX_WORD, unoffered
from hyp.abi.nic import CQE_BYTES, DESC_BYTES, MAX_QUEUE, MIN_QUEUE, PAGE, mac_to_int
from hyp.control import Refused
from hyp.monitor.domain import Domain
from hyp.monitor.event_channels import Upcall
from hyp.monitor.system import System


@dataclass(slots=True)
class Call:
    """One call under way: who calls what, and the arguments that have been checked so far."""

    system: System
    domain: Domain
    operation: str
    checked: dict[str, Any] = field(default_factory=dict)

    def refused(self, reason: str, error: str = "EINVAL") -> Refused:
        """The error to raise: `error` as in errno, `reason` as the end of a sentence that names domain and operation."""
        return Refused(error, f"{self.domain.who}: {self.operation}: {reason}")


Argument = Callable[[Call, str, Any], Any]
"""A kind of argument: (call, name, value) → the value as handlers take it."""


@dataclass(frozen=True, slots=True)
class Default:
    """An argument that may be left out: `value` then stands for it, checked like any other."""

    kind: Argument
    value: Any

    def __call__(self, call: Call, name: str, value: Any) -> Any:
        return self.kind(call, name, value)


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer in [low, high], a multiple of `unit`; `high` may depend on the domain and on arguments before this one."""

    low: int
    high: int | Callable[[Call], int]
    unit: int = 1

    def __call__(self, call: Call, name: str, value: Any) -> int:
        high = self.high if isinstance(self.high, int) else self.high(call)
        if type(value) is not int or not self.low <= value <= high:
            raise call.refused(f"{name} is {reprlib.repr(value)}, not an integer in [{self.low}, {high}]")
        if value % self.unit:
            raise call.refused(f"{name} is {value}, not a multiple of {self.unit}")
        return value


def _queue(size: str, entry_bytes: int) -> Integer:
    """The address of a queue with as many entries as argument `size` says: page-aligned, all of it in the domain's RAM."""
    return Integer(0, lambda call: call.domain.memory - entry_bytes * int(call.checked[size]), unit=PAGE)


def _one_of_ours(error: str, what: str, table: Callable[[Domain], Any]) -> Argument:
    """A number in one of the domain's own tables."""

    def check(call: Call, name: str, value: Any) -> int:
        if type(value) is not int or value not in table(call.domain):
            raise call.refused(f"{name} is {reprlib.repr(value)}: it has no such {what}", error)
        return value

    return check


def queue_size(call: Call, name: str, value: Any) -> int:
    """Entries of a queue: a power of two in the NIC's limits."""
    size = Integer(MIN_QUEUE, MAX_QUEUE)(call, name, value)
    if size & (size - 1):
        raise call.refused(f"{name} is {size}, not a power of two")
    return size


def boolean(call: Call, name: str, value: Any) -> bool:
    """True or false, and no number."""
    if not isinstance(value, bool):
        raise call.refused(f"{name} is {reprlib.repr(value)}, not a boolean")
    return value


def domain_number(call: Call, name: str, value: Any) -> int:
    """The domid of a domain that exists; else ESRCH."""
    if type(value) is not int or value not in call.system.domains:
        raise call.refused(f"{name} is {reprlib.repr(value)}: there is no such domain", "ESRCH")
    return value


def own_upcall(call: Call, name: str, value: Any) -> Upcall:
    """The number of one of the domain's upcalls → that upcall."""
    upcalls = call.domain.upcalls
    return upcalls[Integer(0, len(upcalls) - 1)(call, name, value)]


def mac_list(call: Call, name: str, value: Any) -> list[int]:
    """A list of MAC addresses as text → as integers."""
    if not isinstance(value, list) or not all(isinstance(mac, str) for mac in value):
        raise call.refused(f"{name} is {reprlib.repr(value)}, not a list of MAC addresses")
    try:
        return [mac_to_int(mac) for mac in value]
    except ValueError:
        raise call.refused(f"{name} is {reprlib.repr(value)}: not all of it are MAC addresses") from None


own_context = _one_of_ours("ENODEV", "context", lambda domain: domain.contexts)
own_registration = _one_of_ours("ENOENT", "memory region", lambda domain: domain.registrations)


def accepted_features(offered: Callable[[Call], int]) -> Default:
    """The features that a driver accepts: none that has not been offered. A driver that knows of none need not say so."""

    def check(call: Call, name: str, value: Any) -> int:
        word = Integer(0, MAX_WORD)(call, name, value)
        if wrong := unoffered(offered(call), word):
            raise call.refused(f"{name} is {word:#x}, of which {wrong:#x} has not been offered")
        return word

    return Default(check, 0)


PAGE_ADDRESS = Integer(0, lambda call: call.domain.memory - PAGE, unit=PAGE)
PAGES_FROM_ADDR = Integer(PAGE, lambda call: call.domain.memory - int(call.checked["addr"]), unit=PAGE)
"""Whole pages of RAM from argument `addr` on, in bytes."""

QUEUES: dict[str, Argument] = {
    "sq_size": queue_size,
    "rq_size": queue_size,
    "sq": _queue("sq_size", DESC_BYTES),
    "scq": _queue("sq_size", CQE_BYTES),
    "rq": _queue("rq_size", DESC_BYTES),
    "rcq": _queue("rq_size", CQE_BYTES),
}
"""Sizes and places of the four queues of a NIC context: sizes first, since where a queue can lie depends on them."""
