"""What the page can change, by the operations that the command line and the API use. Each call returns a sentence that says what
was done, or raises `Refused` with one that says why not.

    traffic {guest, to, frame, pps}   endless frames from a guest with the traffic program to another, or to the wire; in place of
                                      what the page has it send already. pps 0: as fast as they are taken
    quiet {guest}                     end that
    stop, continue {process}          SIGSTOP, SIGCONT
    kill {process}                    SIGKILL; the keeper starts it again, or not (docs/faults.md)
    move {guest, path}                split ↔ bypass (docs/faults.md)
    offloads {guest, on}              whether a TAP guest's kernel leaves checksums and segmentation to the device
    price {name, value}               what an operation costs in addition, in its unit (docs/model.md)

Owned here, and ended by `close`: the streams, and every process that was stopped from here and not continued. If this process is
killed instead, what is stopped stays so until somebody continues it (a page says which; so does ``kill -CONT``).
"""

import asyncio
import contextlib
import inspect
import itertools
import operator
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from domu.programs.table import program_of
from hyp import linux
from hyp.abi.frame import HEADER_ONLY, MIN_TEST_FRAME
from hyp.control import Channel, ControlError, close_all
from hyp.control.words import printable
from hyp.model.operations import OPERATIONS
from lab.command.clients import ClientError, connect
from lab.command.move import move_guest
from lab.errors import LabError
from lab.owner import open_console
from lab.rundir import RunDir
from lab.stopping import standing_still
from lab.view.attach import Watch
from lab.view.ways import HYP, WIRE

ANSWER_S = 10.0
END_S = 2.0
TAP = "tap"
LARGEST_FRAME = 1514
MOST_PPS = 100_000_000
MOST_PRICE = 1_000_000
ENDLESS = 1 << 60


class Refused(Exception):
    """It was not done; the message says why."""


class Controls:
    """Of one topology, for all viewers. What is about a guest's frames is done one after the other; signals wait for nobody."""

    def __init__(self, run: RunDir, watch: Watch) -> None:
        self._run, self._watch = run, watch
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._streams: dict[str, _Stream] = {}
        self._stopped: set[str] = set()
        self._prices: dict[str, int] = {}
        self._plain: set[str] = set()
        self._numbers = itertools.cycle(range(HEADER_ONLY // 2, HEADER_ONLY))  # far from where workloads begin
        self.verbs: Mapping[str, Callable[..., Awaitable[str]]] = {
            "traffic": self.traffic, "quiet": self.quiet, "stop": self.stop, "continue": self.cont, "kill": self.kill,
            "move": self.move, "price": self.price, "offloads": self.offloads,
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """``{"streams": [{"guest", "to", "frame", "pps"}, …]: what the page has guests send, "prices": {name: value},
        "plain": [guests whose offloads the page has taken away]}``.
        """
        streams = [stream.said for stream in self._streams.values() if not stream.task.done()]
        return {"streams": streams, "prices": self._prices, "plain": sorted(self._plain)}

    async def do(self, verb: str, arguments: Any) -> str:
        """Carry one out. Refused."""
        if verb not in self.verbs or not isinstance(arguments, dict):
            raise Refused("there is no such control")
        control = self.verbs[verb]
        if arguments.keys() != inspect.signature(control).parameters.keys():
            raise Refused(f"{verb} takes {', '.join(inspect.signature(control).parameters)}")
        try:
            async with asyncio.timeout(ANSWER_S):
                if "guest" not in arguments:
                    return await control(**arguments)
                self._guest(arguments["guest"])
                async with self._turns[arguments["guest"]]:
                    return await control(**arguments)
        except TimeoutError as error:
            raise Refused(f"{verb}: not done after {ANSWER_S:g} s; is a process stopped that it needs?") from error
        except (ControlError, ClientError, LabError) as error:
            raise Refused(printable(str(error))) from error

    async def close(self) -> None:
        """End what was begun here."""
        for process in sorted(self._stopped):
            with contextlib.suppress(Refused, ControlError, ClientError):
                await self.cont(process)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await asyncio.gather(*(stream.end() for stream in self._streams.values()))

    # -- traffic --

    async def traffic(self, guest: str, to: str, frame: int, pps: int) -> str:
        """See above."""
        frame = _whole("frame", frame, MIN_TEST_FRAME, LARGEST_FRAME)
        pps = _whole("frames a second", pps, 0, MOST_PPS)
        tables = self._guests()
        table = self._guest(guest)
        if not program_of(table["program"]).workloads:
            raise Refused(f"{guest} has a program of its own, and sends what that does")
        if not isinstance(to, str) or to == guest or (to != WIRE and to not in tables):
            raise Refused(f"{guest} can send to the wire, and to {', '.join(name for name in tables if name != guest)}")
        mac = self._watch.status["nic"]["wire"]["mac"] if to == WIRE else tables[to]["mac"]
        await self._end(guest)
        said = {"guest": guest, "to": to, "frame": frame, "pps": pps}
        console = await self._console(guest)
        job = {"mac": mac, "frame": frame, "pps": pps, "stream": next(self._numbers), "frames": ENDLESS}
        self._streams[guest] = stream = _Stream(console, said, job)
        await asyncio.wait({stream.task}, timeout=0.05)  # a refusal comes at once
        if stream.task.done() and (error := stream.task.exception()) is not None:
            raise Refused(f"{guest}: {printable(str(error))}") from error
        return f"{guest} sends frames of {frame} bytes to {to}" + (f", {pps:,} a second" if pps else "")

    async def quiet(self, guest: str) -> str:
        """See above."""
        self._guest(guest)
        if not await self._end(guest):
            raise Refused(f"{guest} sends nothing that was started here")
        return f"{guest} is quiet"

    async def _end(self, guest: str) -> bool:
        stream = self._streams.pop(guest, None)
        if stream is None:
            return False
        await stream.end()
        return True

    # -- processes --

    async def stop(self, process: str) -> str:
        """See above."""
        pid = await self._signal(process, signal.SIGSTOP)
        self._stopped.add(process)
        await standing_still(pid)
        return f"{process} stands still"

    async def cont(self, process: str) -> str:
        """See above."""
        await self._signal(process, signal.SIGCONT)
        self._stopped.discard(process)
        return f"{process} goes on"

    async def kill(self, process: str) -> str:
        """See above."""
        await self._signal(process, signal.SIGKILL)
        self._stopped.discard(process)
        return f"{process} has been killed"

    async def _signal(self, process: str, number: signal.Signals) -> int:
        """Its pid."""
        keeper = await connect(self._run)
        try:
            reply = await keeper.call("pidfds")
        finally:
            keeper.close()
        try:
            living = dict(zip(reply.value, reply.fds, strict=True))
            if not isinstance(process, str) or process not in living:
                raise Refused("there is no living process of that name")
            with contextlib.suppress(ProcessLookupError):  # it died just now, which is told soon
                signal.pidfd_send_signal(living[process], number)
            return linux.pid_of(living[process])
        finally:
            close_all(reply.fds)

    # -- paths --

    async def move(self, guest: str, path: str) -> str:
        """See above."""
        self._guest(guest)
        if path not in ("split", "bypass"):
            raise Refused("a guest can move to split or bypass")
        moved = await move_guest(self._run.name, guest, path)
        return f"{guest} is on {path}; it sent nothing for {1000 * moved['pause_s']:.1f} ms"

    async def offloads(self, guest: str, on: bool) -> str:
        """See above."""
        if program_of(self._guest(guest)["program"]).name != TAP:
            raise Refused(f'{guest} has no kernel of its own: a guest with program = "tap" has')
        if not isinstance(on, bool):
            raise Refused("on: true or false")
        console = await self._console(guest)
        try:
            left: list[str] = (await console.call("offloads", on=on)).value
        finally:
            console.close()
        (self._plain.discard if on else self._plain.add)(guest)
        return f"{guest}'s kernel leaves to the device: {printable(', '.join(map(str, left))) or 'nothing'}"

    # -- prices --

    async def price(self, name: str, value: int) -> str:
        """See above."""
        if not isinstance(name, str) or name not in OPERATIONS:
            raise Refused("there is no such price")
        value = _whole(name, value, 0, MOST_PRICE)
        self._prices = await self._of_hypervisor(**{name: value})
        return f"{name} is {value:,}: {OPERATIONS[name].about}"

    async def learn(self) -> None:
        """Ask what has a price. Nobody knows it while there is no hypervisor to be asked."""
        with contextlib.suppress(TimeoutError, ControlError, ClientError):
            async with asyncio.timeout(END_S):
                self._prices = await self._of_hypervisor()

    async def _of_hypervisor(self, **prices: Any) -> dict[str, int]:
        console = await self._console(HYP)
        try:
            found: dict[str, int] = (await console.call("price", **prices)).value
            return found
        finally:
            console.close()

    # -- whom it is about --

    def _guests(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self._watch.status["guests"]}

    def _guest(self, name: str) -> dict[str, Any]:
        found = self._guests().get(name) if isinstance(name, str) else None
        if found is None:
            raise Refused("there is no guest of that name")
        return found

    async def _console(self, process: str) -> Channel:
        keeper = await connect(self._run)
        try:
            return await open_console(keeper, process)
        finally:
            keeper.close()


class _Stream:
    """One guest's frames, over a console of its own, which is closed with it."""

    def __init__(self, console: Channel, said: dict[str, Any], job: dict[str, Any]) -> None:
        self.said, self._console = said, console
        self.task = asyncio.ensure_future(console.call("send_stream", **job))
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # a guest that dies ends it

    async def end(self) -> None:
        """Have it end, and wait until it has."""
        try:
            if not self.task.done():
                await self._console.call("end_job")
                await asyncio.wait({self.task})
        except ControlError:
            pass  # the guest is gone, and its job with it
        finally:
            self.task.cancel()
            self._console.close()


def _whole(what: str, given: Any, least: int, most: int) -> int:
    """A whole number in range. Refused."""
    try:
        number = operator.index(given)
    except TypeError:
        raise Refused(f"{what}: a whole number is wanted") from None
    if isinstance(given, bool) or not least <= number <= most:
        raise Refused(f"{what}: from {least:,} to {most:,}")
    return number
