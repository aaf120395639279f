"""A running guest moves to another path: the guest's part (docs/faults.md). The toolstack's: dom0/toolstack/moves.py, and why so.

Operations of the guest's console, in the order in which they are called:

=============  =========================================================================================================
move_connect   connect a device on the other path. Its receive buffers are posted; nothing comes yet. The program notices nothing
               of it: what is counted meanwhile is counted aside, as the row is its loop's
move_receive   (nobody has a frame for the old device any more) The loop sends no more; once it has taken what the old device has
               received, it receives by the new one. Answered when all that was sent by the old one is done with
move_send      (all that it has sent has left) The loop sends by the new device
move_close     give the old device back
move_abort     give the new device back instead, before `move_receive`
=============  =========================================================================================================

Who calls them and stops in between leaves a guest that receives and does not send: `move_send` comes by itself after `PATIENCE_S`.
"""

import asyncio
import contextlib
from typing import Any

import numpy as np

from domu.device import Device, Record
from domu.exchange import attach, detach, has_received, is_sending, quiet, receiving_only
from domu.guest import Guest
from hyp.abi.counters import COLUMNS, ROW_BYTES
from hyp.control import Refused

LOOK_S = 0.0003
"""How often it is looked whether the old device is empty: of that nobody tells."""
PATIENCE_S = 2.0


class _Aside:
    """Rows that are nobody's: of a device that is being connected beside the one in use."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray[Any, np.dtype[np.uint8]]] = []

    def row(self, name: str) -> tuple[int, int]:
        """See `CounterPage.row`."""
        self._rows.append(np.zeros(2 * ROW_BYTES, np.uint8))
        at = int(self._rows[-1].ctypes.data)
        return at, at + ROW_BYTES


class Moving:
    """One guest's moves; at most one at a time."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._coming: list[Device] = []
        self._connecting = False
        self._path = ""
        self._sends = True
        self._patience: asyncio.TimerHandle | None = None
        self._going_on: asyncio.Task[None] | None = None
        for name in ("connect", "receive", "send", "close", "abort"):
            guest.process.serve(f"move_{name}", getattr(self, name))
        assert COLUMNS * 8 <= ROW_BYTES

    async def connect(self, path: str) -> None:
        """Connect a device on `path`. Refused if one cannot be had, or there are not as many queues."""
        guest = self._guest
        if self._coming or self._connecting:
            raise Refused("EBUSY", "this guest is moving already")
        self._connecting = True
        counters, guest.counters = guest.counters, _Aside()  # type: ignore[assignment]
        try:
            self._coming = await guest.connect_on(path)
        finally:
            guest.counters, self._connecting = counters, False
        self._path = path
        if len(self._coming) != len(guest.devices):
            wanted = len(guest.devices)
            there = len(self._coming)
            await self.abort()
            raise Refused("EINVAL", f"{path} gives this guest {there} queues, and it has {wanted}")
        for queue, device, coming in zip(guest.running, guest.devices, self._coming, strict=True):
            assert coming.behind is not None
            coming.behind.adopt(device, coming.record, counters.row(queue.row("device")))

    async def receive(self) -> None:
        """Empty the old device, and receive by the new one."""
        guest = self._must_move()
        self._sends = False
        self._patience = asyncio.get_running_loop().call_later(PATIENCE_S, self._lose_patience)
        left: list[Record] = []
        for queue, device, coming in zip(guest.running, guest.devices, self._coming, strict=True):
            left.append(device.record.copy())
            await self._empty(device, queue.engine, left[-1])
            if not await attach(device, queue.engine, receiving_only(coming.record)):
                raise Refused("EIO", "the network device has failed")
        for record in left:  # not before: what others have sent to the new device may stand in the way of what we sent by the old
            while not self._sends and is_sending(record) > 0:
                await asyncio.sleep(LOOK_S)

    async def send(self) -> None:
        """Send by the new device."""
        guest = self._must_move()
        if self._sends:
            return
        self._sends = True
        if self._patience is not None:
            self._patience.cancel()
        for queue, device, coming in zip(guest.running, guest.devices, self._coming, strict=True):
            await attach(device, queue.engine, coming.record)

    async def close(self) -> None:
        """Give the old device back. It is the new one that the guest has from now on."""
        guest = self._must_move()
        await self.send()
        old = [(device.behind, device.keep) for device in guest.devices]
        for device, coming in zip(guest.devices, self._coming, strict=True):
            device.behind, device.keep = coming.behind, [*coming.keep, coming]
        self._coming = []
        guest.config["path"] = self._path
        await guest.release([behind for behind, _ in old])  # until then what they point at is kept

    async def abort(self) -> None:
        """Give the new device back."""
        coming, self._coming = self._coming, []
        if coming:
            await self._guest.release([device.behind for device in coming])

    def _must_move(self) -> Guest:
        if not self._coming:
            raise Refused("EINVAL", "this guest is not moving")
        return self._guest

    def _lose_patience(self) -> None:
        async def go_on() -> None:
            with contextlib.suppress(Refused):
                await self.send()

        self._going_on = asyncio.get_running_loop().create_task(go_on())

    async def _empty(self, device: Device, engine: Any, before: Record) -> None:
        """The loop sends no more; returns when the old device, `before`, has nothing for it any more, and is nobody's."""
        received = 1
        while received > 0:
            if not await quiet(device, engine, before):
                raise Refused("EIO", "the network device has failed")
            await asyncio.sleep(LOOK_S)
            await detach(device, engine)
            received = has_received(before)
        if received < 0:
            raise Refused("EIO", "the network device has failed")
