"""A guest process, from its boot to its end, whatever program it runs upon its device.

The boot: ask the hypervisor who one is → let the front end connect → start the program → ready.
"""

from collections.abc import Callable
from typing import Any, Protocol

from domu.guest import Guest
from domu.move import Moving
from hyp.process import Process


class Program(Protocol):
    """What runs in a guest: a loop on the guest's engine, and operations on its console."""

    def start(self) -> None:
        """Start the loop."""

    def stop(self) -> None:
        """Let go of what is not the loop's; the engine is stopped by the boot."""


async def run_program(process: Process, config: dict[str, Any], program: Callable[[Guest], Program]) -> None:
    """Be the guest until the keeper says stop. `program` makes its program once the device is connected."""
    guest = Guest(process, config)
    await guest.boot()
    await guest.connect()
    Moving(guest)
    running = program(guest)
    running.start()
    process.ready()
    await process.stopped.wait()
    running.stop()
    for queue in guest.running:
        await queue.engine.stop()
