#!/usr/bin/env python3
"""The Xen-bypass I/O lab's command. No data path in it.

    launch.py                              the demo
    launch.py run FILE.toml [--json OUT]   run a topology: its workloads, or until Ctrl-C if it has none
    launch.py exec GUEST -- PROGRAM ...    run a program in a TAP guest of a running topology
    launch.py status [--json]              what is running
    launch.py check FILE.toml              is the topology sound, and does it fit this machine?
    launch.py clean                        remove what dead topologies left

Exit status: 0 all is well; 1 a workload lost, duplicated or corrupted frames, or a process died; 2 the topology or the command
line is wrong; 3 the topology could not be started; 130 Ctrl-C. `exec` exits with the program's own status.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
if importlib.util.find_spec("numba") is None or importlib.util.find_spec("typer") is None:
    if not VENV_PYTHON.exists() or Path(sys.prefix) == VENV_PYTHON.parent.parent:
        sys.exit("the lab's packages are not installed for this Python: run `make setup` first")
    os.execv(VENV_PYTHON, [str(VENV_PYTHON), str(Path(__file__).resolve()), *sys.argv[1:]])

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn

import typer
import uvloop

FAILED, USAGE, NOT_STARTED, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    add_completion=False,
    help="The Xen-bypass I/O lab: split drivers through Dom0 beside Xen-bypass I/O, as processes on one Linux machine.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def fail(message: str, status: int) -> NoReturn:
    """Say why on standard error and exit."""
    print(message, file=sys.stderr)
    raise typer.Exit(status)


def drive(main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run an async command; Ctrl-C lets it clean up, then exits with 130."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(main())
    except KeyboardInterrupt:
        fail("interrupted; everything has been taken down", INTERRUPTED)
    raise typer.Exit(status)


def load_topology(file: Path) -> Any:
    """The topology, checked against itself and the machine; exits with the reasons if it will not do."""
    from hyp.topology import TopologyError, check_machine, load

    try:
        topology = load(file)
        check_machine(topology)
    except TopologyError as error:
        fail(str(error), USAGE)
    return topology


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """With no command: the demo."""
    if context.invoked_subcommand is None:
        demo()


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="Length of each stream, in seconds.")] = 1.0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Two guests on split, two on bypass: streams, round trips, the proof, real programs."""
    from bench.demo import run_demo

    drive(lambda: run_demo(seconds, json_out))


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Topology file (docs/topology.md).")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the workloads' records to this file.")] = None,
) -> None:
    """Run a topology: its workloads one after the other; without workloads, until Ctrl-C."""
    from bench.session import run_topology

    topology = load_topology(file)
    drive(lambda: run_topology(topology.plain(), json_out))


@app.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    guest: Annotated[str, typer.Argument(help='A guest with program = "tap".')],
    argv: Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGS]...", help="The program and its arguments.")],
    topology: Annotated[str | None, typer.Option(help="Which topology, if several have such a guest.")] = None,
) -> None:
    """Run a program inside a guest of a running topology, on this terminal."""
    from bench.clients import ClientError, execute

    if argv[0] == "--":
        del argv[0]
    if not argv:
        fail("exec: which program?", USAGE)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(execute(guest, argv, topology))
    except ClientError as error:
        fail(str(error), FAILED)
    raise typer.Exit(status)


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """What is running: topologies, their processes and guests."""
    from bench.clients import ClientError, living

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(living())
    except ClientError as error:
        fail(str(error), FAILED)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("no topology is running")
    for topology in found:
        print(f"{topology['name']}: {topology.get('state', 'starting')}")
        guests = {guest["name"]: guest for guest in topology.get("guests", [])}
        for process in topology["processes"]:
            guest = guests.get(process["name"])
            what = f"{guest['path']}, {guest['program']}, {guest['mac']} {guest['address'] or ''}" if guest else ""
            print(
                f"  {process['name']:<16} {process['role']:<10} {process['state']:<10} {process['pid'] or '–':<8} {what}".rstrip()
            )


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Topology file.")]) -> None:
    """Is the topology sound, and does it fit this machine? Nothing is started."""
    topology = load_topology(file)
    size = topology.shared_memory_bytes() / 2**20
    parts = f"{len(topology.guests)} guests, {len(topology.workloads)} workloads, {size:.0f} MiB of shared memory"
    print(f"{file}: topology {topology.name!r} is sound: {parts}")


@app.command()
def clean() -> None:
    """Remove what dead topologies left behind. A living one is never touched."""
    from bench.peers import hugepages
    from hyp.rundir import clean as sweep

    removed = sweep() + hugepages.sweep()
    for item in removed:
        print(f"removed {item}")
    if not removed:
        print("nothing to remove")


def main() -> None:
    """Entry point."""
    app(prog_name="launch.py")


if __name__ == "__main__":
    main()
