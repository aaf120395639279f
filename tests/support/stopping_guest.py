"""The role of a guest whose traffic program can be told that the owner of one of its queues stops. Operation of its console:

stop_queue {queue}    the loop of this queue ends, and does nothing more with its rings; its device stays as it is
"""

from typing import Any

from domu.boot import run_program
from domu.guest import Guest
from domu.programs.traffic import Traffic
from hyp.process import Process


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the guest."""

    def program(guest: Guest) -> Traffic:
        async def stop_queue(queue: int) -> None:
            await guest.queues[queue].engine.stop()

        process.serve("stop_queue", stop_queue)
        return Traffic(guest)

    await run_program(process, config, program)
