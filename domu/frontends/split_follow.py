"""What the split front end does about its back end's state, once it is connected (split.py): it follows one that closes, and
reconnects to one that was made anew, without its program noticing.

A device is made anew by the toolstack: in one transaction both ends' nodes are written again, and both states are Initialising.
Dom0 does that when it was started in the place of a dead one, as nobody serves the old device any more. States, of the front
end::

    attached ── back end and our own node Initialising, or InitWait ──▶ detached
    detached ── back end InitWait, our own node Initialising ──▶ rings anew (split_again.py), our nodes, Connected
    detached ── both Connected ──▶ attached
    any ── back end Closing, Closed or removed; refuses; has not what we had agreed on ──▶ lost, our own node Closed

Both states are read at each event, and what is to be done follows from them alone: a back end that dies once more on the way,
however far it was, is one that was made anew. Nothing is waited for with a limit: while there is no back end, our program sleeps,
and who has given it up says so (`daemon_lost`, domu/guest.py).

Who owns what meanwhile: from Initialising on the rings are ours alone in the loop's stead (domu/exchange.py); from InitWait on no
back end is behind them either, and only then are they written. Event channels are kept: the end of the other side has unbound
them, and the next one binds to the same ports; each bind makes new eventfds. The old ones stay open until the loops have let go
of them.

| fails | and then |
|---|---|
| the back end dies, in whatever state | nothing, until the next one is there; requests are sent once more |
| the guest dies | its nodes, ports and grants go with its domain; its back end sees its home vanish |
| xenstored dies | what is connected goes on; once there is a store again each watch fires, and the states are looked at |
| the back end refuses, or lacks what was agreed on (features, queues) | the device is lost; the reason is logged |
| it answers what it was not asked, or takes an index back | the loop sees it as ever: the device has failed |
| the program has frames that it does not release | their pages stay its own; the ring has so many requests less until it does |
"""

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from domu.device import Device, Record
from domu.exchange import attach, detach, lose
from domu.frontends.split_again import begin_again, resend, settle, unanswered
from domu.frontends.split_mappings import Mappings, Unmapped
from hyp.abi.netif import MAX_QUEUES_NODE
from hyp.control import Channel, ControlError, Refused
from hyp.xenstore.client import Transaction, Watch, XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import XenbusError, XenbusState, offered_features, read_state, switch_state, wait_for_state

if TYPE_CHECKING:
    from domu.guest import GuestQueue

log = logging.getLogger(__name__)

MADE_ANEW = (XenbusState.INITIALISING, XenbusState.INIT_WAIT)
GONE_STATES = (XenbusState.CLOSING, XenbusState.CLOSED)
GONE = (*GONE_STATES, None)
CLOSE_TIMEOUT_S = 5.0


@dataclass(slots=True)
class ConnectedQueue:
    """One queue of a device that has been connected."""

    guest: "GuestQueue"
    device: Device
    front: Record
    """Its NETFRONT record."""
    busy: "np.ndarray[tuple[int], np.dtype[np.int64]]"
    ports: list[int]
    """Event channels: one to transmit and one to receive, or one for both."""
    event_fds: list[int]
    """By which their other ends are notified."""
    attached: Record = field(init=False)
    """The DEVICE record with which its loop drives it."""

    def __post_init__(self) -> None:
        self.attached = self.device.record.copy()

    def begin_again(self) -> None:
        """New rings, with all that has not been answered. ConnectionError: the old ones make no sense."""
        device = int(self.attached.ctypes.data)
        if settle(device) < 0:
            raise ConnectionError("its rings make no sense")
        ids = unanswered(self.busy, int(self.front[0]["free_head"]))
        begin_again(device)
        frames = int(resend(device, int(ids.ctypes.data), len(ids)))
        if frames < 0:
            raise ConnectionError("a page of a frame that it has answered in part is still in use")
        if frames:
            log.info("%d frames are sent again", frames)

    def notify_by(self, event_fds: list[int]) -> None:
        """Whoever attaches it notifies by these from now on."""
        self.close_notifiers()
        self.event_fds = event_fds
        self.front[0]["tx_event_fd"], self.front[0]["rx_event_fd"] = event_fds[0], event_fds[-1]

    def close_notifiers(self) -> None:
        """Nobody notifies any more."""
        for fd in dict.fromkeys(self.event_fds):
            os.close(fd)
        self.event_fds = []


async def max_queues(store: XenstoreClient | Transaction, back: str) -> int:
    """How many queues the back end takes: 1, if it does not say."""
    try:
        text = await store.read(f"{back}/{MAX_QUEUES_NODE}")
    except XenstoreError as error:
        if error.name != "ENOENT":
            raise
        return 1
    return max(int(text), 1) if text.isascii() and text.isdigit() else 1


async def notifiers(hyp: Channel, ports: list[int]) -> list[int]:
    """The eventfds of event channels that the back end has bound. Refused (ENOTCONN) if it has not."""
    fds: list[int] = []
    try:
        for port in ports:
            fds += (await hyp.call("evtchn_notifier", port=port)).fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


async def tell_connected(store: XenstoreClient, front: str, nodes: dict[str, int]) -> None:
    """Write what the back end must know, and Connected, all at once: a device that is made anew in between is at its beginning.

    Raises XenstoreError ENOENT if the state node is not there: the toolstack has removed the device.
    """

    async def write(transaction: Transaction) -> None:
        await transaction.read(f"{front}/state")
        for name, value in nodes.items():
            await transaction.write(f"{front}/{name}", str(value))
        await transaction.write(f"{front}/state", str(int(XenbusState.CONNECTED)))

    await store.retry(write)


async def close_front_end(store: XenstoreClient, front: str, back: str) -> None:
    """Closing, the back end lets go of everything, Closed; or there is no back end that has to."""
    with contextlib.suppress(XenstoreError, XenbusError):
        await switch_state(store, front, XenbusState.CLOSING)
        await wait_for_state(store, back, GONE_STATES, CLOSE_TIMEOUT_S)
        await switch_state(store, front, XenbusState.CLOSED)
        await wait_for_state(store, back, [XenbusState.CLOSED], CLOSE_TIMEOUT_S)


class Following:
    """`run` is a front end's life from Connected on."""

    def __init__(
        self, hyp: Channel, store: XenstoreClient, front: str, back: str, nodes: dict[str, int], features: int,
        queues: list[ConnectedQueue], mappings: Mappings | None, held: contextlib.AsyncExitStack,
    ) -> None:  # fmt: skip
        """`nodes`: what it has written; `features`: agreed on; `mappings`: of its pools, if there are some; `held`: all that is to
        be given back when the device is closed.
        """
        self._held = held
        self._hyp, self._store, self._front, self._back = hyp, store, front, back
        self._nodes, self._features, self._queues = nodes, features, queues
        self._mappings = mappings
        self._mapping: asyncio.Task[None] | None = None
        self._attached = True
        self._life: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Follow from now on."""
        self._watch = await self._store.watch(f"{self._back}/state", "follow")
        self._life = asyncio.get_running_loop().create_task(self.run(self._watch))

    async def close(self) -> None:
        """Close the device, which no loop drives any more, and give back what it holds. InUse as in `Behind`."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
            self._store.forget(self._watch)
        await self._stop_mapping()
        await self._held.aclose()

    async def run(self, watch: Watch) -> None:
        """Follow the back end, whose state `watch` watches, until the device is lost, or the store."""
        try:
            async for _ in watch:
                try:
                    if not await self._look():
                        return
                except XenstoreError as error:
                    if error.name == "EIO":
                        raise
                    log.warning("%s: %s", self._back, error)  # nodes are being made anew: there will be another event
        except XenstoreError:
            return  # the store is gone: what is connected goes on

    async def _look(self) -> bool:
        """Do what the two states ask for. False once the device is lost."""
        back, own = await read_state(self._store, self._back), await read_state(self._store, self._front)
        if back in GONE:
            return await self._lose("has closed")
        if self._attached:
            if not (back in MADE_ANEW and own is XenbusState.INITIALISING):
                return True
            self._attached = False
            log.info("%s is made anew", self._back)
            await self._stop_mapping()
            if not all([await detach(queue.device, queue.guest.engine) for queue in self._queues]):
                return False
        if back is XenbusState.INIT_WAIT and own is XenbusState.INITIALISING:
            return await self._connect()
        if back is XenbusState.CONNECTED and own is XenbusState.CONNECTED:
            return await self._attach()
        return True

    async def _connect(self) -> bool:
        back, offered, most = await self._store.retry(self._offers)
        if back is not XenbusState.INIT_WAIT:  # made anew since we looked: there is another event
            return True
        if self._features & ~offered or len(self._queues) > most:
            return await self._lose("does not offer what was agreed on")
        if self._mappings is not None:
            self._mappings.begin_again()
        try:
            for queue in self._queues:
                queue.begin_again()
        except ConnectionError as error:
            return await self._lose(str(error))
        await tell_connected(self._store, self._front, self._nodes)
        return True

    async def _offers(self, transaction: Transaction) -> tuple[XenbusState | None, int, int]:
        """The back end's state, and what it offers in it, and no other one."""
        state = await read_state(transaction, self._back)
        return state, await offered_features(transaction, self._back), await max_queues(transaction, self._back)

    async def _attach(self) -> bool:
        try:
            fds = await notifiers(self._hyp, [port for queue in self._queues for port in queue.ports])
        except Refused:  # it has died meanwhile
            return True
        for queue in self._queues:
            queue.notify_by(fds[: len(queue.ports)])
            fds = fds[len(queue.ports) :]
        self._attached = True
        done = [await attach(queue.device, queue.guest.engine, queue.attached) for queue in self._queues]
        log.info("%s: connected again", self._back)
        if self._mappings is not None:
            self._mapping = asyncio.get_running_loop().create_task(self._map_again(self._mappings))
        return all(done)

    async def _map_again(self, mappings: Mappings) -> None:
        try:
            await mappings.map_pools()
        except ControlError:  # it has died meanwhile, or the hypervisor has
            return
        except Unmapped as error:
            log.warning("%s: %s: frames go by grant copy", self._back, error)

    async def _stop_mapping(self) -> None:
        if self._mapping is not None:
            self._mapping.cancel()
            await asyncio.wait({self._mapping})

    async def _lose(self, why: str) -> bool:
        log.warning("%s: %s: the device is out of service", self._back, why)
        await self._stop_mapping()
        for queue in self._queues:
            await lose(queue.device, queue.guest.engine)
        with contextlib.suppress(XenstoreError):  # nobody is left to be told
            await switch_state(self._store, self._front, XenbusState.CLOSED)
        return False
