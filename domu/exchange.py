"""Exchanging what is behind a program's device, while the program runs and without its noticing: the back end is made anew, because
Dom0 was started again; or the guest moves to another path.

Who owns what. The DEVICE record at the address that a program knows is its loop's: nobody else calls the device's operations, and
nobody else changes the record. The control plane writes the record that is to come somewhere else, has `next` point at it, and
posts EXCHANGE. The loop takes its mail at the top of a round. That is the safe point, with nothing to be waited for: no send
buffer is reserved there, and what was polled and not released is polled once more before it is looked at. So the loop copies the
record over its own, and says so as it does with any message. From then on the front end that was there is the control plane's
alone, with all its queues: no loop of this process touches it. A loop that sleeps is woken by the message, and so learns of what
is new. The fast path pays nothing: the operations were called by the addresses in the record anyway.

Of several queues each has its loop and its device; they are exchanged one by one.

==========  ==================================================================================================================
attached    the loop drives the front end
detached    there is nothing to reserve or to poll, something is always pending, and nothing is ever there already: a loop has
            nothing to do but to sleep. It is not told that anything failed. What the program has put into the device and what had
            arrived for it is with the front end, which keeps both until the device is attached again, or hands them on
lost        every operation says FAILED, for good
==========  ==================================================================================================================

    attached ──detach──▶ detached ──attach──▶ attached          attached, detached ──lose──▶ lost

Failures. Whoever detaches, and then finds that nobody will be there any more, loses the device. A device that was lost meanwhile
stays so: `detach` and `attach` say False. Where no loop runs, before its start or after its end, the record is simply written. A
loop that ends without having taken the message has ended because its device failed, or with its guest: nobody drives the device
then.

What may differ in the record that comes, besides the operations and the front end: what a send buffer holds (`room`,
`fragment_room`, `fragment_align`, `max_fragments`), the features, who delivers interrupts. Loops read these afresh; who has derived
something from them is in `Device.told`, and is told while the device is detached.
"""

import contextlib

from domu.device import DEVICE_BYTES, FAILED, RX, Device, Operations, Record, device_at, rx_poll, set_operations, tx_pending
from hyp.atomics import call_operation, memcpy
from hyp.engine import Engine
from hyp.kernels import compiled, entry, i64, operation

EXCHANGE = -1
"""The message to a loop; `take_up` carries it out."""


@compiled
def take_up(device: int) -> None:
    """In a loop, at the top of a round: have the record that is to come."""
    memcpy(device, device_at(device).next, DEVICE_BYTES)


# --- nobody behind the device -----------------------------------------------------------------------------------------


@operation(i64(i64, i64))
def _nothing(device: int, what: int) -> int:
    return 0


@operation(i64(i64, i64))
def _something(device: int, what: int) -> int:
    return 1


@operation(i64(i64, i64))
def _failed(device: int, what: int) -> int:
    return FAILED


@operation(i64(i64, i64))
def _arm_received(device: int, what: int) -> int:
    return call_operation(device_at(device).behind_arm, device, what & RX)


@entry(i64(i64))
def _received(device: int) -> int:
    return rx_poll(device, 1)


@entry(i64(i64))
def _pending(device: int) -> int:
    return tx_pending(device)


_DETACHED = Operations(_nothing, _nothing, _something, _nothing, _nothing, _nothing)
_LOST = Operations(_failed, _failed, _failed, _failed, _failed, _failed)


# --- control plane ----------------------------------------------------------------------------------------------------


async def detach(device: Device, engine: Engine) -> bool:
    """Have the loop let go of the front end; it has when this returns. False: the device has been lost."""
    return await _exchange(device, engine, _without_front(device, _DETACHED))


async def attach(device: Device, engine: Engine, record: Record) -> bool:
    """Let the loop go on with `record`, a DEVICE: what it points at the caller has put into `device.keep`. False as above."""
    for told in device.told:
        told(record)
    return await _exchange(device, engine, record.copy())


def receiving_only(record: Record) -> Record:
    """A DEVICE like `record`, by which nothing can be sent."""
    receiving = record.copy()
    row = receiving[0]
    row["behind_arm"] = row["op_arm"]
    row["op_tx_reserve"], row["op_arm"] = _nothing.address, _arm_received.address
    return receiving


async def quiet(device: Device, engine: Engine, record: Record) -> bool:
    """Let the loop go on with `record`, and send nothing any more. False: the device has been lost."""
    return await _exchange(device, engine, receiving_only(record))


def has_received(record: Record) -> int:
    """Of a device that no loop drives, of which `record` is the DEVICE: 1 if there is something to be taken, 0, or FAILED."""
    return int(_received(int(record.ctypes.data)))


def is_sending(record: Record) -> int:
    """Of such a device: how many buffers are not done with, or FAILED."""
    return int(_pending(int(record.ctypes.data)))


async def lose(device: Device, engine: Engine) -> None:
    """Nobody is behind the device, nor will be. What is called of the program's is told so by the next operation."""
    if not device.lost:
        device.lost = True
        async with device.changing:
            await _give(device, engine, _without_front(device, _LOST))


def _without_front(device: Device, operations: Operations) -> Record:
    record = device.record.copy()
    set_operations(record[0], operations)
    record[0]["front"] = record[0]["interrupts"] = 0
    return record


async def _exchange(device: Device, engine: Engine, record: Record) -> bool:
    async with device.changing:
        if not device.lost:
            await _give(device, engine, record)
    return not device.lost


async def _give(device: Device, engine: Engine, record: Record) -> None:
    """Let the loop take the record up."""
    device.coming = record
    device.record[0]["next"] = record.ctypes.data
    if engine.running:
        with contextlib.suppress(RuntimeError):  # it has ended without taking it
            await engine.post(EXCHANGE)
            return
    device.record[:] = record
