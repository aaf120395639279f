"""How a hypercall is declared, found and checked. The operations themselves: hyp/monitor/hypercalls.py.

``@hypercall(who, name=kind, ...)`` enters a function into the table under its name: `who` may call it, and what each of its
arguments may be (hyp/monitor/arguments.py). `dispatch` checks the names of the arguments and then every argument. Handlers get
checked values and nothing else.
"""

import enum
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.monitor.arguments import Argument, Call, Default
from hyp.monitor.domain import Domain
from hyp.monitor.system import System


class Callers(enum.Enum):
    """Who may call an operation. The NIC is no domain: it has operations of its own and no others."""

    EVERY_DOMAIN = "every domain"
    DOM0 = "Dom0"
    NIC = "the NIC"

    def include(self, domain: Domain) -> bool:
        """True if `domain` is one of them. A device model (of the hypervisor's own) is a domain like a guest's."""
        if domain.domid == DOMID_NIC or self is Callers.NIC:
            return domain.domid == DOMID_NIC and self is Callers.NIC
        return self is Callers.EVERY_DOMAIN or (domain.domid == DOM0 and not domain.device_model)


@dataclass(frozen=True, slots=True)
class Hypercall:
    """One row of the table. `run(system, domain, **arguments)` may be a coroutine function."""

    callers: Callers
    arguments: dict[str, Argument]
    run: Callable[..., Any]


HYPERCALLS: dict[str, Hypercall] = {}
"""Every operation by its name."""


def hypercall(callers: Callers, /, **arguments: Argument) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function ``(system, domain, **arguments)`` as the operation of its name."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        if name in HYPERCALLS:
            raise ValueError(f"there are two hypercalls {name}")
        HYPERCALLS[name] = Hypercall(callers, arguments, function)
        return function

    return declare


def dispatch(system: System, domain: Domain, operation: str, /, **arguments: Any) -> Any:
    """Check what `domain` sent as the arguments of an operation it has, then run that. `Refused` names what is wrong."""
    row, call = HYPERCALLS[operation], Call(system, domain, operation)
    for name in arguments:
        if name not in row.arguments:
            raise call.refused(f"there is no argument {reprlib.repr(name)}")
    for name, kind in row.arguments.items():
        if name in arguments:
            value = arguments[name]
        elif isinstance(kind, Default):
            value = kind.value
        else:
            raise call.refused(f"argument {name} is missing")
        call.checked[name] = kind(call, name, value)
    return row.run(system, domain, **call.checked)
