"""The role of a guest with a split front end that tampers with its own rings, grants and nodes. Runs in place of a program.

In its configuration, with ``grants = "persistent"``: ``deaf``, it finds that the back end has no control ring; ``revoked``, one of
the pages that it names to the back end is not granted. ``answer``: what it writes as its ``request-multicast-control``. Operations:

scramble {seed}                        every entry of the pools becomes nonsense, in use or not
repost {first, grefs}                  rewrite the references of receive requests that have been posted and not been used
overrun                                claim more transmit requests than a ring has
close                                  Closing, then Closed, as a guest whose driver is unloaded; answers when the back end is
"""

import ctypes
from typing import Any

import numpy as np

from domu.device import Device
from domu.frontends import split
from domu.frontends.split_state import NETFRONT
from domu.guest import Guest
from domu.programs import traffic
from hyp.abi.grant import GRANT_ENTRY, PAGE_BYTES
from hyp.abi.netif import FEATURE_CTRL_RING, REQUEST_MULTICAST_CONTROL, RX_REQUEST
from hyp.abi.ring import FIRST_SLOT, REQ_PROD
from hyp.process import Process
from hyp.xenstore.client import XenstoreClient
from hyp.xenstore.xenbus import XenbusState, frontend_path, says_one, switch_state, wait_for_state

POOLS = slice(split.TX_REF, split.RX_REF + split.RX_SLOTS)


def _array(address: int, dtype: Any, count: int) -> "np.ndarray[Any, Any]":
    """Memory of ours by its address."""
    size = np.dtype(dtype).itemsize * count
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype)


class Hostile:
    """The tampering."""

    def __init__(self, process: Process, domid: int) -> None:
        self._front = frontend_path(domid, "vif", 0)
        for op in (self.scramble, self.repost, self.overrun, self.close):
            process.serve(op.__name__, op)

    def take(self, device: Device) -> None:
        """The device is connected."""
        memory, self._store = device.keep[-2:]
        row = memory.record[0]
        self._entries = _array(int(row["table"]), GRANT_ENTRY, POOLS.stop)
        self._rings = int(row["ram"]) + memory.ring_pages

    def scramble(self, seed: int) -> None:
        noise = np.random.default_rng(seed).bytes(self._entries[POOLS].nbytes)
        self._entries[POOLS] = np.frombuffer(noise, GRANT_ENTRY)

    def repost(self, first: int, grefs: list[int]) -> None:
        slots = _array(self._rings + PAGE_BYTES + FIRST_SLOT, RX_REQUEST, split.RX_SLOTS)
        slots["gref"][first : first + len(grefs)] = grefs

    def overrun(self) -> None:
        _array(self._rings + REQ_PROD, np.uint32, 1)[0] += split.TX_SLOTS + 1

    async def close(self) -> None:
        back = await self._store.read(f"{self._front}/backend")
        for state in (XenbusState.CLOSING, XenbusState.CLOSED):
            await switch_state(self._store, self._front, state)
            await wait_for_state(self._store, back, [state, XenbusState.CLOSED], 10.0)


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the guest, with the tampering on its console."""
    hostile = Hostile(process, int(config["domid"]))
    honest = split.connect

    grant_pools = vars(split)["_grant_pools"]

    async def connect(guest: Guest) -> list[Device]:
        if "answer" in config:
            node = f"{frontend_path(int(config['domid']), 'vif', 0)}/{REQUEST_MULTICAST_CONTROL}"
            await (await guest.xenstore()).write(node, config["answer"])
        devices = await honest(guest)
        hostile.take(devices[0])
        return devices

    async def deaf(store: XenstoreClient, node: str) -> bool:
        return not node.endswith(FEATURE_CTRL_RING) and await says_one(store, node)

    def grant(front: int) -> None:
        grant_pools(front)
        table = int(_array(front, NETFRONT, 1)[0]["table"])
        _array(table, GRANT_ENTRY, POOLS.stop)["flags"][POOLS.stop - 1] = 0

    vars(split)["connect"] = connect
    if "deaf" in config:
        assert "says_one" in vars(split)
        vars(split)["says_one"] = deaf
    if "revoked" in config:
        vars(split)["_grant_pools"] = grant
    await traffic.main(process, config)
