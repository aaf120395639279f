"""netback's control side: one vif per split guest, which follows its front end from state to state for as long as the guest lives.

What to do when is a table of its own (dom0/xenbus_states.py), what a connected vif holds is dom0/vif_connection.py. Here is what
drives them: watches on the front end's state, on the back end's own nodes, which the toolstack may change, and on its `rate`.

A front end's mistake is told three times: in the log, in ``error/backend/vif/<domid>/<handle>/error`` under Domain 0's home, and to
the front end by the state Closing, as Linux's xenbus_dev_fatal does. None ends the vif: a front end that closes begins anew.

What a vif holds whose rings have run away is given back at once, whatever it is in the middle of: it may wait for a xenstored that
does not answer. The front end is told when there is an answer.

A guest can write its state without end, and each time there is much to look at. What that takes of Domain 0's time is its debt
(hyp/control/debt.py): while it owes, only what others have caused is looked at, and of what it has written only the last is seen.

The topology's `grants` say how netback gets at the guest's pages (dom0/mapped_pages.py). "persistent" is the front end's to bring
about, by static mappings on its control ring: to netback it is "copy".
"""

import asyncio
import contextlib
import errno
import logging
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from dom0.build import EngineState
from dom0.rate import UNLIMITED, Rate, node_rate
from dom0.toolstack.libxl import VIF
from dom0.vif_connection import Connection, Identity, VifError, read_wishes
from dom0.xenbus_states import CLOSED, CLOSING, CONNECTED, INIT_WAIT, INITIALISED, INITIALISING, UNKNOWN, Action, judge, steps
from hyp.abi.domids import DOM0
from hyp.abi.features import NETIF_NODES, NETIF_OFFERS
from hyp.abi.netif import (
    FEATURE_CTRL_RING,
    FEATURE_MULTICAST_CONTROL,
    FEATURE_SPLIT_EVENT_CHANNELS,
    MAX_QUEUES_NODE,
)
from hyp.control import Channel, Refused
from hyp.control.debt import PAYER, Debt
from hyp.control.limited_log import TRACEBACKS_S, LimitedLog
from hyp.counters import CounterPage
from hyp.memory import MappedOnce
from hyp.xenstore.client import Transaction, Watch, XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import XenbusState, backend_path, frontend_path, parse_state, read_state, tell_error

log = logging.getLogger(__name__)

RAN_AHEAD = "a ring's producer index ran ahead of what the ring has slots; the device is disabled"


class Cause(IntEnum):
    """Why a vif looks. In the order in which it does, if there are several."""

    GONE = 0  # the guest's domain
    FAILED = 1  # the engine had taken the port out of service, and what it held has been given back
    BACK = 2  # the back end's nodes were written, by us or by the toolstack
    FRONT = 3  # the front end's state was written
    RATE = 4  # the toolstack has written how much the guest may send


class Vif:
    """One vif: port `number` of the bridge, with up to `max_queues` queues. `run` is its life."""

    def __init__(
        self,
        hyp: Channel,
        store: XenstoreClient,
        state: EngineState,
        counters: CounterPage,
        guest: Mapping[str, Any],
        number: int,
        max_queues: int,
        *,
        routed: bool = True,
    ) -> None:
        """`routed`: frames for the guest are for this vif; else not before `take_address`, as it still has another device."""
        self._hyp, self._store, self._state, self._counters = hyp, store, state, counters
        self.who = Identity(int(guest["domid"]), str(guest["name"]), str(guest["mac"]), number)
        self._front = frontend_path(self.who.domid, VIF, 0)
        self._back = backend_path(DOM0, VIF, self.who.domid, 0)
        self._maps, self._max_queues, self._routed = guest["grants"] == "map", max_queues, routed
        self.back = CLOSED  # the state that we are in, and have told last
        self.connected = asyncio.Event()  # has been, at least once
        self._node: XenbusState | None = None  # what its node said when we last read or wrote it
        self._registered = False  # the toolstack has made the device, and has not taken it back
        self._connection: Connection | None = None
        self._changing = asyncio.Lock()  # held while a connection is taken, or given back
        self._failed = asyncio.Event()  # the connection has: what it holds is to be given back
        self._untold = False  # it has been, and the front end does not know yet
        self._ram = MappedOnce()  # of the guest
        self._debt = Debt()  # for looking at it: to connect takes milliseconds, and the hypervisor's, too
        self._ring_debt = Debt()  # for what requests on its control ring have us do
        self._causes: set[Cause] = set()
        self._woken = asyncio.Event()
        shown = f"vif {self.who.domid}.0 ({self.who.name})"
        self._log, self._failures = LimitedLog(log, shown), LimitedLog(log, shown, TRACEBACKS_S)

    async def run(self) -> None:
        """Follow the front end until the guest is gone; then nothing of it is held any more. It pays for what others do then."""
        PAYER.set(self._debt)
        watches = [
            (await self._store.watch(f"{self._front}/state", f"front-{self.who.domid}"), Cause.FRONT),
            (await self._store.watch(self._back, f"back-{self.who.domid}"), Cause.BACK),
            (await self._store.watch(f"{self._back}/rate", f"rate-{self.who.domid}"), Cause.RATE),
        ]
        pumps = [asyncio.get_running_loop().create_task(self._pump(watch, cause)) for watch, cause in watches]
        pumps.append(asyncio.get_running_loop().create_task(self._give_back_what_failed()))
        try:
            while (cause := await self._next()) is not Cause.GONE:
                await self._debt.charged(self._look(cause), fair_ns=0)
        finally:
            async with self._changing:  # nobody is in the middle of it
                for pump in pumps:
                    pump.cancel()
            for watch, _ in watches:
                self._store.forget(watch)
            await asyncio.wait(pumps)
            await self._disconnect("its domain is gone")
            self._state.forget_guest(self.who.number)
            self._log.end()
            self._failures.end()

    def wake(self, cause: Cause) -> None:
        """Let it look."""
        self._causes.add(cause)
        self._woken.set()

    async def take_address(self) -> None:
        """Frames for the guest are for this vif from now on. Refused (ENODEV) if it is not connected."""
        async with self._changing:
            if self._connection is None:
                raise Refused("ENODEV", f"vif {self.who.domid}.0 ({self.who.name}) is not connected")
            self._routed = True
            await self._connection.take_address()

    def check_port(self) -> None:
        """Let it give back what it holds if the engine has taken its port out of service."""
        if self._connection is not None and self._connection.failed:
            self._failed.set()

    async def _pump(self, watch: Watch, cause: Cause) -> None:
        with contextlib.suppress(XenstoreError):  # xenstored is dead: what is connected goes on
            async for _ in watch:
                self.wake(cause)

    async def _give_back_what_failed(self) -> None:
        while await self._failed.wait():
            self._failed.clear()
            if self._connection is not None and self._connection.failed:
                self._log.warning(RAN_AHEAD)
                await self._debt.charged(self._give_back("see above"), fair_ns=0)
                self._untold = True
                self.wake(Cause.FAILED)

    async def _next(self) -> Cause:
        owes_s = self._debt.wait_s()
        while not (due := self._causes - {Cause.FRONT} if owes_s > 0 else self._causes):
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(owes_s or None):  # what it owed when it was left out: it may owe nothing by now
                    await self._woken.wait()
            owes_s = self._debt.wait_s()
        cause = min(due)
        self._causes.remove(cause)
        return cause

    # -- what happens --

    async def _look(self, cause: Cause) -> None:
        try:
            if cause is Cause.FAILED:
                await self._port_failed()
            elif cause is Cause.BACK:
                await self._back_written()
            elif cause is Cause.RATE:
                await self._rate_written()
            elif self._registered and await self._is_made_anew():  # both ends at once, and this one's event came first
                await self._back_written()
            elif self._registered:
                await self._follow(await self._front_state())
        except XenstoreError as error:
            self._log.warning(str(error))  # EIO: xenstored is dead, and nothing can be told any more
        except Exception as error:  # ours; the vif goes on
            self._failures.error(f"looking at it ({cause.name.lower()})", error)

    async def _rate_written(self) -> None:
        if self._connection is not None:
            await self._state.set_rate(self.who.number, await self._rate())

    async def _port_failed(self) -> None:
        if self._untold:
            self._untold = False
            await self._tell_fatal(errno.EIO, RAN_AHEAD)

    async def _back_written(self) -> None:
        """The toolstack makes a device, with `online` 1; takes it back by `online` 0 and Closing; or removes its nodes."""
        self._node = told = await read_state(self._store, self._back)
        online = await self._is_online()
        if told is None:
            await self._disconnect("the toolstack has removed it")
            self._registered, self.back = False, CLOSED
        elif not self._registered:
            if online:  # whatever its state: ours may have come after the toolstack's
                await self._probe()
        elif self._anew(told):
            await self._disconnect("the toolstack has made it anew")
            await self._probe()
        else:
            withdrawn = told is CLOSING and self.back is not CLOSING
            if withdrawn:
                self.back = CONNECTED if self._connection else CLOSING  # that is what its node says now
            if withdrawn or not online:
                await self._follow(await self._front_state(), withdrawn=True)

    def _anew(self, told: XenbusState | None) -> bool:
        """The toolstack has made the device anew: its node's state is not one that we have told."""
        return told is INITIALISING and self.back is not INITIALISING

    async def _is_made_anew(self) -> bool:
        return self._anew(await read_state(self._store, self._back))

    async def _probe(self) -> None:
        """A new device: say what is on offer, then wait for the front end, however long it takes."""
        self._registered, self.back = True, INITIALISING
        offers = {"feature-rx-copy": 1, "feature-rx-flip": 0, FEATURE_SPLIT_EVENT_CHANNELS: 1, MAX_QUEUES_NODE: self._max_queues}
        offers |= {FEATURE_MULTICAST_CONTROL: 1, FEATURE_CTRL_RING: 1}
        offers |= {node: 1 for feature, (node, _) in NETIF_NODES.items() if feature & NETIF_OFFERS}
        await self._switch(INIT_WAIT, offers)
        self.wake(Cause.FRONT)  # it may be there already

    async def _follow(self, front: XenbusState, *, withdrawn: bool = False) -> None:
        """Go where the front end's state sends us."""
        verdict = judge(front, online=await self._is_online(), withdrawn=withdrawn)
        if verdict.error:
            await self._fatal(errno.EINVAL, verdict.error)
            return
        for action, after in steps(self.back, verdict.goal):
            if action is Action.DISCONNECT:
                what = "the toolstack takes it back" if withdrawn else f"the front end is {_shown(front)}"
                await self._disconnect(what)
            elif action is Action.CONNECT and not await self._connect(front):
                return
            await self._switch(after)
        if verdict.ends:
            self._registered = False

    async def _connect(self, front: XenbusState) -> bool:
        """Serve the front end's rings. False if they can't be, which has been told then."""
        connection = Connection(self._hyp, self._state, self.who, self._ram, self._ring_debt)
        try:
            wishes, rate = await read_wishes(self._store, self._front, max_queues=self._max_queues), await self._rate()
            async with self._changing:
                await connection.open(self._counters, wishes, rate, maps=self._maps, routed=self._routed)
                self._connection = connection
        except VifError as error:
            await self._fatal(error.number, str(error))
            return False
        except Exception as error:  # ours
            self._failures.error("connecting", error)
            await self._fatal(errno.EIO, f"connecting: {error}")
            return False
        self.connected.set()
        early = " at Initialised, which Linux's netback would have ignored" if front is INITIALISED else ""
        self._log.info(f"connected{early}")
        return True

    async def _disconnect(self, why: str) -> None:
        """Give back what is held, for a reason that the front end knows, or is told."""
        await self._give_back(why)
        self._untold = False

    async def _give_back(self, why: str) -> None:
        """Nothing is held when this returns, whoever has given it back."""
        async with self._changing:
            if self._connection is None:
                return
            connection, self._connection = self._connection, None
            try:
                await connection.close()
            except Exception as error:  # the rest has been given back
                self._log.warning(f"disconnecting: {error}")
            self._log.info(f"disconnected: {why}")

    async def _fatal(self, number: int, text: str) -> None:
        """The front end can't be served: give back what it holds of ours, whether the store answers or not; say why, and close."""
        self._log.warning(text)
        await self._disconnect("see above")
        await self._tell_fatal(number, text)

    async def _tell_fatal(self, number: int, text: str) -> None:
        await tell_error(self._store, self._back, number, text)
        await self._switch(CLOSING)

    # -- xenstore --

    async def _front_state(self) -> XenbusState:
        return await read_state(self._store, self._front) or UNKNOWN

    async def _rate(self) -> Rate:
        """How much the guest may send, by the toolstack's node; what is missing, or says nothing, limits nothing."""
        try:
            return node_rate(await self._store.read(f"{self._back}/rate"))
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise
        except ValueError as error:
            self._log.warning(f"{self._back}/rate: {error}")
        return UNLIMITED

    async def _is_online(self) -> bool:
        """As xenbus_dev_is_online: what is not there is not online."""
        try:
            return (await self._store.read(f"{self._back}/online")).strip() not in ("", "0")
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise
            return False

    async def _switch(self, state: XenbusState, nodes: Mapping[str, int] | None = None) -> None:
        """Tell our state, and `nodes` with it; once, as it may be watched for.

        Not over what the toolstack has written since we last looked, in the middle of what we did: of that there is an event.
        """
        if state is self.back:
            return
        self.back, node = state, f"{self._back}/state"

        async def write(transaction: Transaction) -> bool:
            if parse_state(await transaction.read(node)) is not self._node:
                return False
            for name, value in (nodes or {}).items():
                await transaction.write(f"{self._back}/{name}", str(value))
            await transaction.write(node, str(int(state)))
            return True

        try:
            if await self._store.retry(write):
                self._node = state
        except XenstoreError as error:
            if error.name != "ENOENT":  # removed meanwhile, of which there is a watch's event
                raise


def _shown(state: XenbusState) -> str:
    return "gone" if state is UNKNOWN else state.name.title().replace("_", "")
