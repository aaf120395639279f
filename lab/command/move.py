"""``launch.py move``: a guest of a running topology changes its path."""

from typing import Any

from hyp.control import Channel, ControlError
from lab.command.clients import ClientError, connect, the_one
from lab.move import Moved, move
from lab.owner import open_console


async def move_guest(topology: str | None, guest: str, path: str) -> dict[str, Any]:
    """Move it; returns what came of it, as the API's `move` does. ClientError if it stays where it is, and why."""
    run = the_one(topology)
    keeper, consoles = await connect(run), dict[str, Channel]()

    async def call(process: str, op: str, /, **args: Any) -> Any:
        if process not in consoles:
            consoles[process] = await open_console(keeper, process)
        return (await consoles[process].call(op, **args)).value

    try:
        guests = [one["name"] for one in (await keeper.call("status")).value["guests"]]
        if guest not in guests:
            raise ClientError(f"topology {run.name} has no guest {guest!r}; there are {', '.join(guests)}")
        try:
            pause_s = await move(call, guest, 1 + guests.index(guest), path)
        except Moved as error:
            await keeper.call("moved", guest=guest, path=path)
            raise ClientError(str(error)) from error
        await keeper.call("moved", guest=guest, path=path)
    except ControlError as error:
        raise ClientError(f"{guest} stays where it is: {error}") from error
    finally:
        for channel in (*consoles.values(), keeper):
            channel.close()
    return {"name": guest, "path": path, "pause_s": pause_s}
