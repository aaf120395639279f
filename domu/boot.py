"""The guest process, from its boot to its end.

The boot: ask the hypervisor who one is → let the front end connect → start the program → ready.
"""

from typing import Any

from domu.guest import Guest
from domu.netns import create
from domu.programs.tap import TapProgram
from domu.programs.traffic import Traffic
from hyp.process import Process


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the guest until the keeper says stop."""
    guest = Guest(process, config)
    if config["program"] == "tap":
        guest.tap = create(str(config["mac"]), str(config["address"]), int(config["mtu"]))  # while there is one thread
    await guest.boot()
    await guest.connect()
    program = TapProgram(guest) if guest.tap is not None else Traffic(guest)
    program.start()
    process.ready()
    await process.stopped.wait()
    program.stop()
    await guest.engine.stop()
