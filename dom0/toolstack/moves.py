"""A running guest changes its path, split or bypass: the toolstack's and the bridge's part (docs/faults.md). Guests': domu/move.py.

Where a guest's address is looked up are two places: the NIC's filters (its own context, or context 0, Dom0's) and the bridge's
static entries (its vif, or the uplink). They are changed in such an order, and with such waits in between, that nobody is left with
a frame for a device that gets no more:

=========  ====================================================  =============================================================
step       to bypass                                             to split
=========  ====================================================  =============================================================
begin      the toolstack allows a context, which the guest       the device's nodes are made; its vif connects, and gets
           opens; the NIC gives it no address                    nothing
switch     NIC: the address is the context's                     bridge: the address is behind the vif
           wait: what was on its way to context 0 is there,      wait: all that Dom0 had posted has left the NIC
           and the uplink has passed it on                       NIC: the address is context 0's
           bridge: the address is behind the uplink              wait: what was on its way to the guest's context is there
settle     all that Dom0 had posted has left the NIC             all that the guest's context had posted has left the NIC, and
                                                                 the uplink has passed on what came to it of that
end        the vif and its nodes are taken away                  the guest's contexts are taken away, if it has not closed them
=========  ====================================================  =============================================================

In a switch nothing may be waited for behind which there can be a frame for the new device: nobody takes that before `move_receive`.
For the same reason senders wait for the new device longer than for others, from the switch on (`grace`, hyp/fairness/patience.py).
Between `switch` and `settle` the guest stops to send by the old device, takes what that has received, then what the new one has.
tests/models/move.pml is a model of it. `abort` undoes `begin`; from `switch` on there is no way back but another move. Whatever the
guest does, it has no device but that of its path when it is over: nobody else would close a context that it kept.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from dom0.build import EngineState
from dom0.toolstack.authority import Toolstack
from dom0.vifs import Vif
from hyp.abi.domids import DOM0
from hyp.control import Channel, ControlError, Refused
from hyp.paths import PATHS, Attachment

log = logging.getLogger(__name__)

EMPTY_S = 1.0
MOVABLE = (Attachment.VIF, Attachment.CONTEXT)


class Vifs(Protocol):
    """What makes and takes away vifs: the driver domain."""

    async def make_vif(self, domid: int) -> Vif:
        """The nodes of a guest's device, and its vif, which gets no frames before it is given the guest's address."""

    async def take_vif(self, domid: int) -> None:
        """Take it away, with its nodes."""

    def vif(self, domid: int) -> Vif:
        """The vif that a guest has."""

    def vif_port(self, domid: int) -> int:
        """The bridge's port of the vif that a guest has, or would have."""

    def uplink_port(self) -> int:
        """The bridge's port to the NIC."""


class Moves:
    """Moves that are under way: `begin`, `switch`, `settle`, `end`; or `abort` after `begin`."""

    def __init__(self, hyp: Channel, state: EngineState, toolstack: Toolstack, vifs: Vifs) -> None:
        self._hyp, self._state, self._toolstack, self._vifs = hyp, state, toolstack, vifs
        self._before: dict[int, str] = {}  # domid → the path that it comes from

    def handlers(self) -> dict[str, Any]:
        """Operations of Dom0's console."""
        steps = (self.begin, self.switch, self.settle, self.end, self.abort)
        return {f"move_{step.__name__}": step for step in steps}

    async def begin(self, domid: int, path: str) -> None:
        """Allow the guest a device on `path`. Refused: EINVAL if it can't move there, EBUSY if it does already."""
        guest = self._toolstack.guest(domid)
        if domid in self._before:
            raise Refused("EBUSY", f"{guest['name']} is on its way to another path already")
        for one in (guest["path"], path):
            if one not in PATHS or PATHS[one].attachment not in MOVABLE or guest["iommu"] != "persistent":
                raise Refused(
                    "EINVAL", f"{guest['name']} cannot move from {guest['path']} to {path}: between split and bypass only"
                )
        if guest["path"] == path:
            raise Refused("EINVAL", f"{guest['name']} is on path {path}")
        self._before[domid] = guest["path"]
        guest["path"] = path
        if self._to_split(domid):
            try:
                await self._vifs.make_vif(domid)
            except BaseException:
                guest["path"] = self._before.pop(domid)
                raise

    async def switch(self, domid: int) -> None:
        """The new device is connected: the guest's address is its from now on, and nobody has a frame for the old one.

        ControlError if that takes too long; then the address is the old one's again.
        """
        mac = str(self._moving(domid)["mac"])
        if self._to_split(domid):
            vif = self._vifs.vif(domid)
            await self._state.route(mac, self._vifs.vif_port(domid))
            try:
                await self._settled(DOM0, sent=True)
                await vif.take_address()
            except ControlError:
                await self._state.route(mac, self._vifs.uplink_port())
                raise
            await self._tried(self._settled(domid, sent=False))
        else:
            await self._settled(domid, sent=False)
            await self._hyp.call("filter_change", domid=domid, add=[mac], remove=[])
            await self._tried(self._uplink_emptied())
            await self._state.route(mac, self._vifs.uplink_port())

    async def settle(self, domid: int) -> None:
        """The guest sends no more by the old device: all that it has sent has left."""
        self._moving(domid)
        if self._to_split(domid):
            await self._tried(self._settled(domid, sent=True))
            await self._tried(self._uplink_emptied())
        else:
            await self._tried(self._settled(DOM0, sent=True))

    async def end(self, domid: int) -> None:
        """The guest has closed the old device."""
        self._moving(domid)
        to_split = self._to_split(domid)
        del self._before[domid]
        await self._take_device(domid, vif=not to_split)

    async def abort(self, domid: int) -> None:
        """The guest stays where it was: the new device could not be connected."""
        guest, to_split = self._moving(domid), self._to_split(domid)
        guest["path"] = self._before.pop(domid)
        await self._take_device(domid, vif=to_split)

    async def _take_device(self, domid: int, *, vif: bool) -> None:
        if vif:
            await self._vifs.take_vif(domid)
        else:
            await self._tried(self._revoke(domid))

    async def gone(self, domid: int) -> None:
        """A guest's domain is gone, in the middle of a move perhaps: the next one of its number begins where this one came from."""
        if domid in self._before:
            guest = self._toolstack.guest(domid)
            guest["path"] = self._before.pop(domid)
            port = self._vifs.vif_port(domid) if self._to_split(domid) else self._vifs.uplink_port()
            await self._state.route(str(guest["mac"]), port)

    def _moving(self, domid: int) -> dict[str, Any]:
        if domid not in self._before:
            raise Refused("EINVAL", f"domain {domid} is not on its way to another path")
        return self._toolstack.guest(domid)

    def _to_split(self, domid: int) -> bool:
        return PATHS[str(self._toolstack.guest(domid)["path"])].attachment is Attachment.VIF

    async def _revoke(self, domid: int) -> None:
        await self._hyp.call("contexts_revoke", domid=domid)

    async def _settled(self, domid: int, *, sent: bool) -> dict[str, Any]:
        return dict((await self._hyp.call("contexts_settle", domid=domid, sent=sent)).value)

    async def _uplink_emptied(self) -> None:
        """The bridge has passed on what the NIC had for Dom0."""
        async with asyncio.timeout(EMPTY_S):
            await self._state.received_by_uplink((await self._settled(DOM0, sent=False))["received"][0])

    @staticmethod
    async def _tried(wait: Coroutine[Any, Any, Any]) -> None:
        """Wait for it; where somebody holds things up for long, that is more than what a late frame is worth."""
        try:
            await wait
        except (ControlError, TimeoutError) as error:
            log.warning("a guest's move goes on without that: %s", error)
