"""What commands have in common: how one says that it cannot, runs to its end, asks running topologies, reads a file."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvloop

from lab.command.ending import run_in_order, unwritable

FAILED, USAGE, NOT_STARTED = 1, 2, 3
"""Exit statuses."""
PATIENT_S = 2.0
"""How long a command may say nothing to who sits at a terminal."""
T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
Topology = Annotated[str | None, typer.Option("--topology", help="Which one, if several are running.")]


def fail(message: str, status: int) -> NoReturn:
    """Say why on standard error and exit."""
    print(message, file=sys.stderr)
    raise typer.Exit(status)


def say(result: Any, text: str, *, as_json: bool) -> None:
    """Print a result: `text`, or with --json the result itself."""
    print(json.dumps(result, indent=2) if as_json else text, flush=True)


def drive(main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command that starts topologies; signals and a lost reader let it take them down first."""
    raise typer.Exit(run_in_order(main))


def ask(main: Coroutine[Any, Any, T], while_it_lasts: str | None = None) -> T:
    """Run a command that talks to running topologies; exits with the reason if they do not do what was asked.

    Who sits at a terminal is told `while_it_lasts` if it takes longer than `PATIENT_S`. The limit on descriptors is raised: a
    command may take many, and send some while a guest of the same user's parks as many in sockets as it can.
    """
    from hyp.limits import raise_descriptor_limit
    from lab.command.clients import ClientError

    raise_descriptor_limit()

    async def told() -> T:
        if while_it_lasts is not None and sys.stderr.isatty():
            asyncio.get_running_loop().call_later(PATIENT_S, lambda: print(while_it_lasts, file=sys.stderr))
        return await main

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(told())
    except ClientError as error:
        fail(str(error), FAILED)


def check_output(json_out: Path | None, option: str = "--json") -> None:
    """Exit unless the results can be written, before anything is started."""
    if json_out is not None and (reason := unwritable(json_out)):
        fail(f"{option} {json_out}: {reason}", USAGE)


def check_every(every: int) -> None:
    """Exit unless one in so many frames can be watched."""
    if not 1 <= every <= 1 << 40 or every & (every - 1):
        fail(f"--every {every}: a power of two", USAGE)


def load_topology(file: Path, *, fits: bool = True) -> Any:
    """The topology, checked against itself and, with `fits`, the machine; exits with the reasons if it will not do."""
    from lab.topology import TopologyError, check_machine, load

    try:
        topology = load(file)
        if fits:
            check_machine(topology)
    except TopologyError as error:
        fail(str(error), USAGE)
    return topology
