"""XenBus: how a front end and a back end find each other in xenstore and agree that they are connected.

Source: Xen's ``xen/include/public/io/xenbus.h``; Linux's ``xenbus_client.c`` for what state changes do, and where errors are told.
The toolstack creates both devices' nodes, ``state`` included; each side then changes its own state and watches the other's.
"""

import asyncio
import itertools
import re
from collections.abc import Iterable
from enum import IntEnum

from hyp.abi.features import CSUM, NETIF_NODES, NO_CSUM_OFFLOAD, NONE
from hyp.xenstore.client import Transaction, XenstoreClient, XenstoreError

_STATE = re.compile(r"[0-8]")
_serials = itertools.count(1)  # several waits may watch the same node


class XenbusState(IntEnum):
    """enum xenbus_state; UNKNOWN also stands for a state node that is missing or holds anything else."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


class XenbusError(Exception):
    """The other end did not reach a state in time, or is gone: `path` of its device, `seen` last, `wanted`."""

    def __init__(self, path: str, seen: XenbusState, wanted: frozenset[XenbusState], cause: str) -> None:
        names = " or ".join(state.name for state in sorted(wanted))
        super().__init__(f"{path}/state: {cause}; it was {seen.name}, wanted {names}")
        self.path, self.seen, self.wanted = path, seen, wanted


def frontend_path(domid: int, device: str, handle: int) -> str:
    """Nodes of a guest's device, such as ``/local/domain/5/device/vif/0``."""
    return f"/local/domain/{domid}/device/{device}/{handle}"


def backend_path(backend_domid: int, device: str, domid: int, handle: int) -> str:
    """Nodes of its back end, such as ``/local/domain/0/backend/vif/5/0``."""
    return f"/local/domain/{backend_domid}/backend/{device}/{domid}/{handle}"


def error_path(path: str) -> str:
    """Where the driver of the device at `path` tells errors: under its own domain's ``error``, as Linux's xenbus_dev_error does."""
    _, local, domain, domid, device = path.split("/", 4)
    return f"/{local}/{domain}/{domid}/error/{device}/error"


def parse_state(value: str) -> XenbusState:
    """What the other end wrote as its state; anything that is none is UNKNOWN."""
    return XenbusState(int(value)) if _STATE.fullmatch(value) else XenbusState.UNKNOWN


async def read_state(client: XenstoreClient | Transaction, path: str) -> XenbusState | None:
    """State of the device at `path`; None if its state node is not there, which may look like EACCES to another domain.

    Raises XenstoreError for any other error.
    """
    try:
        return parse_state(await client.read(f"{path}/state"))
    except XenstoreError as error:
        if error.name not in ("ENOENT", "EACCES"):
            raise
        return None


async def says_one(client: XenstoreClient | Transaction, node: str) -> bool:
    """True if a node of the other end's is there, may be read, and is 1. Raises XenstoreError for any other error."""
    try:
        return await client.read(node) == "1"
    except XenstoreError as error:
        if error.name not in ("ENOENT", "EACCES"):
            raise
        return False


async def offered_features(client: XenstoreClient | Transaction, back: str) -> int:
    """The feature word that the back end at `back` offers (hyp/abi/features.py)."""
    word = NONE
    for feature, (offers, _) in NETIF_NODES.items():
        if await says_one(client, f"{back}/{offers}"):
            word |= feature
    if not await says_one(client, f"{back}/{NO_CSUM_OFFLOAD}"):
        word |= CSUM
    return int(word)


async def switch_state(client: XenstoreClient, path: str, state: XenbusState) -> None:
    """Set the state of the device at `path`, one's own.

    Raises XenstoreError ENOENT if the state node is not there: a device that the toolstack has removed stays removed.
    """
    node = f"{path}/state"

    async def write(transaction: Transaction) -> None:
        await transaction.read(node)
        await transaction.write(node, str(int(state)))

    await client.retry(write)


async def tell_error(client: XenstoreClient, path: str, number: int, text: str) -> None:
    """Leave an error of the device at `path`, one's own, for people and tools: ``"22 what went wrong"``, `number` an errno.

    As xenbus_dev_error; with `switch_state` to CLOSING after it, it is xenbus_dev_fatal. What cannot be told there is not told.
    """
    try:
        await client.write(error_path(path), f"{number} {text}")
    except XenstoreError:
        pass


async def wait_for_state(client: XenstoreClient, path: str, states: Iterable[XenbusState], timeout: float) -> XenbusState:
    """Wait until the device at `path`, the other end's, is in one of `states`; returns which.

    `timeout` is in seconds. A device that is not there yet is waited for. Raises XenbusError when the time is up, or
    when a state node that was there is removed; XenstoreError if the store cannot be read.
    """
    wait = _Wait(client, path, frozenset(states))
    try:
        async with asyncio.timeout(timeout):
            return await wait.run()
    except TimeoutError:
        cause = f"not reached in {timeout:g} s" if wait.there else f"not there, or not readable, for {timeout:g} s"
        raise XenbusError(path, wait.seen, wait.wanted, cause) from None


class _Wait:
    """One wait: what is wanted and what was seen last."""

    def __init__(self, client: XenstoreClient, path: str, wanted: frozenset[XenbusState]) -> None:
        self.client, self.path, self.wanted = client, path, wanted
        self.seen = XenbusState.UNKNOWN
        self.there = False  # the state node, ever

    async def run(self) -> XenbusState:
        node, token = f"{self.path}/state", f"wait-{next(_serials)}"
        watch = await self.client.watch(node, token)
        try:
            async for _ in watch:
                state = await read_state(self.client, self.path)
                if state is None and self.there:
                    raise XenbusError(self.path, self.seen, self.wanted, "removed")
                self.there = state is not None
                self.seen = XenbusState.UNKNOWN if state is None else state
                if self.seen in self.wanted:
                    return self.seen
        finally:
            self.client.forget(watch)  # not waiting: xenstored may be what does not answer
        raise XenbusError(self.path, self.seen, self.wanted, "no longer watched")
