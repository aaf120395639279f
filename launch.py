#!/usr/bin/env python3
"""The Xen-bypass I/O lab's command. No data path in it.

    launch.py                              the demo
    launch.py run FILE.toml [--json OUT]   run a topology: its workloads, or until Ctrl-C if it has none
    launch.py exec GUEST -- PROGRAM ...    run a program in a TAP guest of a running topology
    launch.py forward GUEST:PORT [PORT]    serve a TCP port of a TAP guest on loopback: for a browser on this machine
    launch.py web [NAME] [--port P]        the page of a running topology, on loopback (docs/web.md)
    launch.py status [--json]              what is running, who is cut off, and what guests move
    launch.py store ls|read|write|rm|watch the store of a running topology, as Domain 0
    launch.py stop [NAME] [--all [--yes]]  take a running topology down, or all of them once you have said so
    launch.py check FILE.toml              is the topology sound, and does it fit this machine?
    launch.py clean                        remove what dead topologies left

Exit status: 0 all is well; 1 a workload lost, duplicated or corrupted frames, a process died, or nobody takes the output; 2 the
topology or the command line is wrong; 3 the topology could not be started; 130 Ctrl-C, 143 SIGTERM or `stop`, 129 SIGHUP, after
everything has been taken down. `exec` exits with the program's own status; 127 if there is none such, 126 if it cannot be executed.
"""

import os
import signal

from lab.execute import inherited

inherited.note()
for _signal in (signal.SIGINT, signal.SIGTERM):  # until there is something to be taken down
    signal.signal(_signal, lambda number, _: os._exit(128 + number))

import sys
from pathlib import Path

from lab.environment import interpreter

interpreter.settle([str(Path(__file__).resolve()), *sys.argv[1:]])

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvloop

from lab.command.encoding import speak_any_encoding
from lab.command.ending import SURROUNDINGS, run_in_order, silence, unwritable

FAILED, USAGE, NOT_STARTED = 1, 2, 3
LONGEST_S = 3600.0
WEB_PORT = 8420
T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    help="The Xen-bypass I/O lab: split drivers through Dom0 beside Xen-bypass I/O, as processes. Without a command: demo.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


store = typer.Typer(
    help="The store of a running topology, as Domain 0. Xen's own tools work too, with XENSTORED_PATH set to what `status` shows.",
    rich_markup_mode=None,
)
app.add_typer(store, name="store", short_help="The store of a running topology, as Domain 0.")
Topology = Annotated[str | None, typer.Option("--topology", help="Which one, if several are running.")]


def fail(message: str, status: int) -> NoReturn:
    """Say why on standard error and exit."""
    print(message, file=sys.stderr)
    raise typer.Exit(status)


def drive(main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command that starts topologies; signals and a lost reader let it take them down first."""
    raise typer.Exit(run_in_order(main))


def ask(main: Coroutine[Any, Any, T]) -> T:
    """Run a command that talks to running topologies; exits with the reason if they do not do what was asked."""
    from lab.command.clients import ClientError

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    except ClientError as error:
        fail(str(error), FAILED)


def check_output(json_out: Path | None) -> None:
    """Exit unless the results can be written, before anything is started."""
    if json_out is not None and (reason := unwritable(json_out)):
        fail(f"--json {json_out}: {reason}", USAGE)


def load_topology(file: Path) -> Any:
    """The topology, checked against itself and the machine; exits with the reasons if it will not do."""
    from lab.topology import TopologyError, check_machine, load

    try:
        topology = load(file)
        check_machine(topology)
    except TopologyError as error:
        fail(str(error), USAGE)
    return topology


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Without a command: the demo."""
    if context.invoked_subcommand is None:
        demo()


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="Length of each measurement; there are three of each.")] = 0.4,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    confined: Annotated[bool, typer.Option("--confined", help="Confine all guests (docs/isolation.md).")] = False,
) -> None:
    """Split and bypass side by side, the proof, real programs."""
    if not (math.isfinite(seconds) and 0 < seconds <= LONGEST_S):
        fail(f"--seconds {seconds:g}: more than 0, and at most {LONGEST_S:g}", USAGE)
    check_output(json_out)
    from lab.command.demo import run_demo

    drive(lambda: run_demo(seconds, json_out, confined=confined))


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Topology file (docs/topology.md).")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the workloads' records to this file.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve its page meanwhile, as `launch.py web` does.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: any that is free.")] = WEB_PORT,
) -> None:
    """Run a topology: its workloads, or until Ctrl-C.

    SIGTERM, SIGHUP and `launch.py stop` take it down as Ctrl-C does.
    """
    topology = load_topology(file)
    check_output(json_out)
    from lab.command.session import run_topology

    if web:
        check_web()
    drive(lambda: run_topology(topology.plain(), json_out, port if web else None))


@app.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    guest: Annotated[str, typer.Argument(help='A guest with program = "tap".')],
    argv: Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGS]...", help="The program and its arguments.")],
    topology: Annotated[str | None, typer.Option(help="Which topology, if several have such a guest.")] = None,
) -> None:
    """Run a program in a guest of a running topology.

    It has this terminal, or whatever standard input and output are. --topology may stand after the guest, too.
    """
    from lab.command.clients import ClientError
    from lab.execute.front import find_guest, run_inside

    topology = take_topology(argv) or topology
    if not argv:
        fail("exec: which program?", USAGE)
    found = ask(find_guest(guest, topology))
    try:
        raise typer.Exit(run_inside(found, guest, [os.fsencode(word) for word in argv]))
    except ClientError as error:
        fail(str(error), FAILED)


@app.command()
def forward(
    target: Annotated[str, typer.Argument(metavar="GUEST:PORT", help='A guest with program = "tap", and a TCP port in it.')],
    port: Annotated[int | None, typer.Argument(min=0, max=65535, help="Of loopback; the same by itself; 0: any.")] = None,
    topology: Annotated[str | None, typer.Option(help="Which topology, if several have such a guest.")] = None,
) -> None:
    """Serve a TCP port of a guest on 127.0.0.1 and ::1, until Ctrl-C.

    Guests' addresses are not routed from this machine: a browser is pointed at the address that this says.
    """
    from hyp.limits import raise_descriptor_limit
    from lab.command.clients import ClientError
    from lab.command.forward import Forward, listen
    from lab.execute.front import find_guest
    from lab.execute.sockets import GuestSockets

    name, _, number = target.rpartition(":")
    if not name or not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
        fail(f"forward: {target!r} is not GUEST:PORT, such as alice:8000", USAGE)
    raise_descriptor_limit()
    guest = ask(find_guest(name, topology))
    try:
        listening = listen(int(number) if port is None else port)
        sockets = GuestSockets(guest)
    except ClientError as error:
        fail(str(error), FAILED)
    except OSError as error:
        fail(f"{name} cannot be entered: {error.strerror}", FAILED)
    os.close(guest.lifeline)
    print(f"http://localhost:{listening[0].getsockname()[1]}/ leads to {target}; Ctrl-C ends it", flush=True)
    ask(Forward(sockets, guest, name, int(number)).serve(listening))


@app.command()
def web(
    name: Annotated[str | None, typer.Argument(help="Which topology; not needed if there is one.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of loopback; 0: any that is free.")] = WEB_PORT,
) -> None:
    """Serve the page of a running topology, until Ctrl-C or its end.

    It shows where frames go, and has controls for who knows the whole address that this prints. docs/web.md.
    """
    from hyp.limits import raise_descriptor_limit
    from lab.command.web import serve_page

    check_web()
    raise_descriptor_limit()
    print(ask(serve_page(name, port)))


def check_web() -> None:
    """Exit unless the packages are there that the page takes."""
    from lab.command.web import lacking

    if (reason := lacking()) is not None:
        fail(reason, FAILED)


def take_topology(argv: list[str]) -> str | None:
    """Take "--topology NAME" and "--" from the front of what stands after the guest's name; returns NAME, if it is there."""
    name = None
    if argv[0] == "--topology":
        if len(argv) < 2:
            fail("exec: --topology needs a name", USAGE)
        name = argv[1]
        del argv[:2]
    elif argv[0].startswith("--topology="):
        name = argv.pop(0).partition("=")[2]
    if argv[:1] == ["--"]:
        del argv[0]
    return name


@app.command()
def move(
    guest: Annotated[str, typer.Argument(help="A guest on path split or bypass.")],
    path: Annotated[str, typer.Option(help="split or bypass: where it is to go.")],
    topology: Annotated[str | None, typer.Option(help="Which topology, if several are running.")] = None,
) -> None:
    """Move a running guest to the other path, under traffic.

    docs/faults.md says how, and what it takes.
    """
    from lab.command.move import move_guest

    print(ask(move_guest(topology, guest, path)))


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """What is running, who is cut off, and what guests move."""
    from hyp.limits import raise_descriptor_limit
    from lab.command.clients import RATES_S, living
    from lab.command.tables import status_lines

    raise_descriptor_limit()
    found = ask(living(RATES_S))
    if as_json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("no topology is running")
    else:
        print("\n".join(line for topology in found for line in status_lines(topology)))


@app.command()
def stop(
    name: Annotated[str | None, typer.Argument(help="Which topology; not needed if there is one.")] = None,
    all_of_them: Annotated[bool, typer.Option("--all", help="All that are running; asks first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --all: do not ask.")] = False,
) -> None:
    """Take a running topology down."""
    from lab.command.clients import stop
    from lab.rundir import living

    running = {run.name: run for run in living()}
    if name is not None and all_of_them:
        fail("stop: either a name or --all", USAGE)
    if name is not None and name not in running:
        fail(f"no topology named {name!r} is running", FAILED)
    if name is None and not all_of_them and len(running) > 1:
        fail(f"topologies {', '.join(running)} are running: say which, or --all", USAGE)
    if not running:
        print("no topology is running")
    elif all_of_them and not yes:
        confirm(list(running))
    for run in [running[name]] if name is not None else running.values():
        ask(stop(run))
        print(f"{run.name} has been taken down")


def confirm(names: list[str]) -> None:
    """Say what would be stopped, and go on only if whoever sits at the terminal says yes; exits otherwise."""
    from lab.command.clients import living
    from lab.command.tables import brief

    statuses = {status["name"]: status for status in ask(living())}
    lines = [brief(statuses[name]) if name in statuses else name for name in names]
    told = "\n".join(["stop --all takes down:", *(f"  {line}" for line in lines)])
    if not sys.stdin.isatty():
        fail(f"{told}\nwithout a terminal to ask on, say --yes", USAGE)
    print(told)
    print("Go on? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        fail("nothing was stopped", FAILED)


@store.command()
def ls(
    path: Annotated[str, typer.Argument(help="What to begin below.")] = "/",
    full: Annotated[bool, typer.Option("-f", help="Whole paths.")] = False,
    permissions: Annotated[bool, typer.Option("-p", help="Permissions too.")] = False,
    topology: Topology = None,
) -> None:
    """Everything below a node."""
    from lab.command.store import ls

    ask(ls(topology, path, full=full, permissions=permissions))


@store.command()
def read(paths: Annotated[list[str], typer.Argument(metavar="PATH...")], topology: Topology = None) -> None:
    """Nodes' values, a line each."""
    from lab.command.store import read

    ask(read(topology, paths))


@store.command()
def write(
    pairs: Annotated[list[str], typer.Argument(metavar="PATH VALUE [PATH VALUE]...")],
    topology: Topology = None,
) -> None:
    """Set nodes' values: all of them, or none."""
    from lab.command.store import write

    if len(pairs) % 2:
        fail(f"store write: {pairs[-1]} has no value", USAGE)
    ask(write(topology, list(zip(pairs[::2], pairs[1::2], strict=True))))


@store.command()
def rm(paths: Annotated[list[str], typer.Argument(metavar="PATH...")], topology: Topology = None) -> None:
    """Remove nodes, and what is below them: all of them, or none."""
    from lab.command.store import remove

    ask(remove(topology, paths))


@store.command()
def watch(
    path: Annotated[str, typer.Argument()],
    count: Annotated[int | None, typer.Option("-n", min=1, help="End after so many events.")] = None,
    topology: Topology = None,
) -> None:
    """The paths that are written, a line each, until Ctrl-C; the watched one at first."""
    from lab.command.store import watch

    ask(watch(topology, path, count))


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Topology file.")]) -> None:
    """Is a topology sound, and does it fit this machine?

    Nothing is started.
    """
    from lab.demand import most_descriptors, processes
    from lab.figures import plural
    from lab.schema.values import show_size

    topology = load_topology(file)
    parts = f"{plural(len(topology.guests), 'guest')}, {plural(len(topology.workloads), 'workload')}, "
    plain = topology.plain()
    parts += f"{show_size(topology.shared_memory_bytes())} of shared memory, {processes(plain)} processes and threads, "
    parts += f"{most_descriptors(plain)[1]} descriptors in one"
    print(f"{file}: topology {topology.name!r} is sound: {parts}")


@app.command()
def clean() -> None:
    """Remove what dead topologies left behind.

    A living one is never touched.
    """
    from bench.peers import hugepages
    from lab.rundir import clean as sweep

    removed = sweep() + hugepages.sweep()
    for item in removed:
        print(f"removed {item}")
    if not removed:
        print("nothing to remove")


def main() -> None:
    """Entry point. What is wrong with this process's surroundings is told without a traceback."""
    speak_any_encoding()
    try:
        try:
            app(prog_name=Path(sys.argv[0]).name)  # launch.py, or what pip has installed
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        sys.exit(FAILED)
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            raise
        print(f"{error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        silence(sys.stdout)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
