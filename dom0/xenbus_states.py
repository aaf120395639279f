"""netback's state machine, as a table: what a back end does when its front end's state changes. Nothing here touches anything.

Source: Xen's ``xen/include/public/io/xenbus.h``; the transitions are those of Linux's xen-netback (``xenbus.c``, `frontend_changed`
and `set_backend_state`). Where it is more than Linux's, docs/netif.md says so, and why. dom0/vifs.py carries it out.

A front end's state gives the *goal* (`judge`). The way there (`steps`) leads over the states that a front end may wait for, so that
one that closes sees Closing and then Closed, wherever the back end was::

    Initialising ──▶ InitWait ──connect──▶ Connected
         │             ▲   │                   │ disconnect
         ▼             │   ▼                   ▼
      Closed ──────────┘  Closing ◀────────────┘
         ▲  ▼              │
         └──┴──────────────┘
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from hyp.xenstore.xenbus import XenbusState

UNKNOWN, INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED, *_ = XenbusState
BACK_STATES: Final = (INITIALISING, INIT_WAIT, CONNECTED, CLOSING, CLOSED)
"""Those that this back end is ever in."""


class Action(Enum):
    """What goes with a step, before the new state is told."""

    CONNECT = auto()
    """Map the rings, bind the event channel, become a port of the bridge. It can fail: then the back end goes to Closing."""
    DISCONNECT = auto()
    """The inverse."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where the back end has to go. `error`: the front end's mistake. `ends`: once there, the device is given up (unregistered)."""

    goal: XenbusState
    error: str = ""
    ends: bool = False


_GOALS: Final = {
    UNKNOWN: CLOSED,
    INITIALISING: INIT_WAIT,
    INITIALISED: CONNECTED,  # Linux ignores it; FreeBSD's netback connects
    CONNECTED: CONNECTED,
    CLOSING: CLOSING,
    CLOSED: CLOSED,
}
_WITHDRAWN: Final = {INITIALISING: CLOSED, INITIALISED: CLOSING, CONNECTED: CLOSING}
"""The same for a device that the toolstack wants back: one in use is closed, and its front end has to follow."""

_NEXT: Final = {
    (INITIALISING, INIT_WAIT): INIT_WAIT,
    (INITIALISING, CONNECTED): INIT_WAIT,
    (INITIALISING, CLOSING): INIT_WAIT,
    (INITIALISING, CLOSED): CLOSED,
    (INIT_WAIT, CONNECTED): CONNECTED,
    (INIT_WAIT, CLOSING): CLOSING,
    (INIT_WAIT, CLOSED): CLOSING,
    (CONNECTED, INIT_WAIT): CLOSING,
    (CONNECTED, CLOSING): CLOSING,
    (CONNECTED, CLOSED): CLOSING,
    (CLOSING, INIT_WAIT): CLOSED,
    (CLOSING, CONNECTED): CLOSED,
    (CLOSING, CLOSED): CLOSED,
    (CLOSED, INIT_WAIT): INIT_WAIT,
    (CLOSED, CONNECTED): INIT_WAIT,
    (CLOSED, CLOSING): CLOSING,
}
"""(where it is, its goal) → the next state on the way."""


def judge(front: XenbusState, *, online: bool = True, withdrawn: bool = False) -> Verdict:
    """What a front end's state asks for.

    `online`: the back end's node of this name is not 0: the device is to be there again after it was closed. `withdrawn`: the
    toolstack has set the back end's state to Closing. Either is how a toolstack takes a device away.
    """
    if front not in _GOALS:
        return Verdict(CLOSING, error=f"saw state {int(front)} at frontend")
    goals = _GOALS if online and not withdrawn else _GOALS | _WITHDRAWN
    goal = goals[front]
    return Verdict(goal, ends=goal is CLOSED and not online)


def steps(back: XenbusState, goal: XenbusState) -> Iterator[tuple[Action | None, XenbusState]]:
    """The way from one state of the back end to another: what to do, and the state to tell then, step by step."""
    while back is not goal:
        after = _NEXT[back, goal]
        action = Action.CONNECT if after is CONNECTED else Action.DISCONNECT if back is CONNECTED else None
        yield action, after
        back = after
