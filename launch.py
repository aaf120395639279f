#!/usr/bin/env python3
"""The Xen-bypass I/O lab's command. No data path in it.

    launch.py                              the demo
    launch.py run FILE.toml [--json OUT]   run a topology: its workloads, or until Ctrl-C if it has none
    launch.py exec GUEST -- PROGRAM ...    run a program in a TAP guest of a running topology
    launch.py forward GUEST:PORT [PORT]    serve a TCP port of a TAP guest on loopback: for a browser on this machine
    launch.py web [NAME] [--port P]        the page of a running topology, on loopback (docs/web.md)
    launch.py status [--json]              what is running, who is cut off, and what guests move
    launch.py top [NAME]                   what each hop of a running topology does now
    launch.py trace [NAME | FROM TO]       follow frames from hop to hop
    launch.py explain FILE                 where the time of a trace's frames went
    launch.py capture [GUEST]              write frames as they are seen at each hop, for Wireshark's tools
    launch.py move GUEST --path PATH       move a running guest to the other path
    launch.py store ls|read|write|rm|watch the store of a running topology, as Domain 0
    launch.py stop [NAME] [--all [--yes]]  take a running topology down, or all of them once you have said so
    launch.py check FILE.toml              is the topology sound, and does it fit this machine?
    launch.py new FILE.toml                write a commented topology to start from
    launch.py explain-topology FILE.toml   draw a topology: by which hops its guests' frames go, and what happens there
    launch.py clean                        remove what dead topologies left
    launch.py completion bash|zsh|fish     a script that completes commands, guests and files in that shell

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

import math
from typing import Annotated

import typer

from lab.command.completing.examples import show_examples
from lab.command.doing import FAILED, USAGE, Json, Topology, ask, check_every, check_output, drive, fail, load_topology, say
from lab.command.encoding import speak_any_encoding
from lab.command.ending import SURROUNDINGS, silence
from lab.command.store_app import store

LONGEST_S = 3600.0
WEB_PORT = 8420

app = typer.Typer(
    add_completion=False,
    help="The Xen-bypass I/O lab: split drivers through Dom0 beside Xen-bypass I/O, as processes. Without a command: demo.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Without a command: the demo."""
    if context.invoked_subcommand is None:
        demo()


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="Length of each measurement; there are three of each.")] = 0.4,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    page_out: Annotated[Path | None, typer.Option("--page", help="Leave the page here, and not in demo.html.")] = None,
    confined: Annotated[bool, typer.Option("--confined", help="Confine all guests (docs/isolation.md).")] = False,
) -> None:
    """Split and bypass side by side, the proof, real programs.

    It leaves a page that shows all of it.
    """
    if not (math.isfinite(seconds) and 0 < seconds <= LONGEST_S):
        fail(f"--seconds {seconds:g}: more than 0, and at most {LONGEST_S:g}", USAGE)
    check_output(json_out)
    check_output(page_out, "--page")
    from lab.command.demo.run import run_demo

    drive(lambda: run_demo(seconds, json_out, page_out, confined=confined))


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Topology file (docs/topology.md).")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the workloads' records to this file.")] = None,
    trace_out: Annotated[Path | None, typer.Option("--trace", help="Write frames' ways to this file, for Perfetto.")] = None,
    capture_out: Annotated[Path | None, typer.Option("--capture", help="Write frames at each hop to this pcapng file.")] = None,
    every: Annotated[int, typer.Option(help="Of --trace and --capture: one in so many frames, a power of two.")] = 1,
    web: Annotated[bool, typer.Option("--web", help="Serve its page meanwhile, as `launch.py web` does.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: any that is free.")] = WEB_PORT,
) -> None:
    """Run a topology: its workloads, or until Ctrl-C.

    SIGTERM, SIGHUP and `launch.py stop` take it down as Ctrl-C does.
    """
    check_every(every)
    topology = load_topology(file)
    check_output(json_out)
    from lab.command.session import run_topology
    from lab.command.web import check_packages

    if web:
        check_packages()
    page_port = port if web else None
    drive(lambda: run_topology(topology.plain(), json_out, trace=trace_out, capture=capture_out, every=every, page_port=page_port))


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
    as_json: Json = False,
) -> None:
    """Serve a TCP port of a guest on loopback, until Ctrl-C.

    On 127.0.0.1 and ::1. Guests' addresses are not routed from this machine: a browser is pointed at the address that this says.
    """
    from lab.command.clients import ClientError
    from lab.command.forward import Forward, listen
    from lab.execute.front import find_guest
    from lab.execute.sockets import GuestSockets

    name, _, number = target.rpartition(":")
    if not name or not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
        fail(f"forward: {target!r} is not GUEST:PORT, such as alice:8000", USAGE)
    guest = ask(find_guest(name, topology))
    try:
        listening = listen(int(number) if port is None else port)
        sockets = GuestSockets(guest)
    except ClientError as error:
        fail(str(error), FAILED)
    except OSError as error:
        fail(f"{name} cannot be entered: {error.strerror}", FAILED)
    os.close(guest.lifeline)
    url = f"http://localhost:{listening[0].getsockname()[1]}/"
    say({"url": url, "target": target}, f"{url} leads to {target}; Ctrl-C ends it", as_json=as_json)
    ask(Forward(sockets, guest, name, int(number)).serve(listening))


@app.command()
def web(
    name: Annotated[str | None, typer.Argument(help="Which topology; not needed if there is one.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of loopback; 0: any that is free.")] = WEB_PORT,
) -> None:
    """The page of a running topology, on loopback.

    It shows where frames go, and has controls for who knows the whole address that this prints; until Ctrl-C, or the topology's
    end. docs/web.md.
    """
    from lab.command.web import check_packages, serve_page

    check_packages()
    print(ask(serve_page(name, port)))


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
    as_json: Json = False,
) -> None:
    """Move a running guest to the other path, under traffic.

    docs/faults.md says how, and what it takes.
    """
    from lab.command.move import move_guest

    moved = ask(move_guest(topology, guest, path))
    say(moved, f"{guest} is on {path}; it sent nothing for {1000 * moved['pause_s']:.1f} ms", as_json=as_json)


@app.command()
def status(as_json: Json = False) -> None:
    """What is running, who is cut off, and what guests move."""
    from lab.command.clients import RATES_S, living
    from lab.command.tables import status_lines

    found = ask(living(RATES_S))
    text = "\n".join(line for topology in found for line in status_lines(topology)) or "no topology is running"
    say(found, text, as_json=as_json)


@app.command()
def top(
    name: Annotated[str | None, typer.Argument(help="Which topology; not needed if there is one.")] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One table, and no more; as where output is no terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A record for each look, a line each.")] = False,
) -> None:
    """What each hop of a running topology does now.

    For each guest and hop: frames and bits a second, frames under way, notifications left out, wake-ups, drops, faults; CPU of each
    process. Keys: q quit, j and k or the arrows pick a guest, Enter looks at it alone, Esc at all, s sorts, space pauses.
    """
    from lab.command.top.command import top

    if not (math.isfinite(interval) and 0.1 <= interval <= LONGEST_S):
        fail(f"--interval {interval:g}: 0.1 at least, and at most {LONGEST_S:g}", USAGE)
    raise typer.Exit(ask(top(name, interval, once=once, as_json=as_json)))


@app.command()
def trace(
    ends: Annotated[list[str] | None, typer.Argument(metavar="[NAME | FROM TO]", help="A topology; or two guests.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to watch.")] = 2.0,
    every: Annotated[int, typer.Option(help="One in so many frames, a power of two.")] = 1024,
    frames: Annotated[int, typer.Option(help="Of FROM TO: how many frames are sent.")] = 1,
    length: Annotated[int, typer.Option(help="Of FROM TO: bytes of each.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Write a trace for Perfetto to this file.")] = None,
    topology: Topology = None,
    as_json: Json = False,
) -> None:
    """Follow frames of a running topology from hop to hop.

    FROM TO sends frames from a guest to another, or to or from the "wire", and tells each one's way. Else it says where time goes.
    """
    from lab.command.trace import trace

    check_every(every)
    if not (math.isfinite(seconds) and 0 < seconds <= LONGEST_S and 1 <= frames <= 1000):
        fail(f"--seconds {seconds:g}, --frames {frames}: up to {LONGEST_S:g} s, up to 1000 frames", USAGE)
    found, lines = ask(trace(ends or [], topology, seconds, every, frames, length, out))
    say(found, "\n".join(lines), as_json=as_json)


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="A trace that was written with --out or --trace.")], as_json: Json = False
) -> None:
    """Where the time of a trace's frames went, hop by hop.

    That of the median and of the 99th-percentile frame.
    """
    from lab.command.trace import explain

    found, lines = ask(explain(file))
    say(found, "\n".join(lines), as_json=as_json)


@app.command()
def capture(
    guest: Annotated[str | None, typer.Argument(help="Frames from and to this guest alone.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file, pcapng; else standard output.")] = None,
    seconds: Annotated[float | None, typer.Option(help="How long; else until Ctrl-C.")] = None,
    snap: Annotated[int, typer.Option(help="Bytes of each frame.")] = 65535,
    topology: Topology = None,
) -> None:
    """Write frames of a running topology to a capture file.

    As they are seen at each hop, with an interface for each: for Wireshark's tools. Where it can't follow, frames are missing, and
    it says how many.
    """
    from lab.command.trace import capture

    if out is None and sys.stdout.isatty():
        fail("capture: --out FILE, or pipe it: launch.py capture | tshark -r -", USAGE)
    for line in ask(capture(topology, guest, out, seconds, snap)):
        print(line, file=sys.stderr)


@app.command()
def stop(
    name: Annotated[str | None, typer.Argument(help="Which topology; not needed if there is one.")] = None,
    all_of_them: Annotated[bool, typer.Option("--all", help="All that are running; asks first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --all: do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Take a running topology down."""
    from lab.command.clients import not_running, stop
    from lab.rundir import living

    running = {run.name: run for run in living()}
    if name is not None and all_of_them:
        fail("stop: either a name or --all", USAGE)
    if name is not None and name not in running:
        fail(not_running(name, running), FAILED)
    if name is None and not all_of_them and len(running) > 1:
        fail(f"topologies {', '.join(running)} are running: say which, or --all", USAGE)
    if running and all_of_them and not yes:
        confirm(list(running))
    stopped = [running[name]] if name is not None else list(running.values())
    for run in stopped:
        ask(stop(run), f"waiting for {run.name} to be gone …")
        if not as_json:
            print(f"{run.name} has been taken down")
    if as_json or not stopped:
        say([run.name for run in stopped], "no topology is running", as_json=as_json)


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


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Topology file.")], as_json: Json = False) -> None:
    """Is a topology sound, and does it fit this machine?

    Nothing is started.
    """
    from lab.demand import most_descriptors, processes
    from lab.figures import plural
    from lab.schema.words import show_size

    topology = load_topology(file)
    plain = topology.plain()
    found = {
        "file": str(file),
        "name": topology.name,
        "guests": len(topology.guests),
        "workloads": len(topology.workloads),
        "shared_memory_bytes": topology.shared_memory_bytes(),
        "processes_and_threads": processes(plain),
        "descriptors": most_descriptors(plain)[1],
    }
    parts = f"{plural(found['guests'], 'guest')}, {plural(found['workloads'], 'workload')}, "
    parts += f"{show_size(found['shared_memory_bytes'])} of shared memory, {found['processes_and_threads']} processes and threads, "
    parts += f"{found['descriptors']} descriptors in one"
    say(found, f"{file}: topology {topology.name!r} is sound: {parts}", as_json=as_json)


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="Where to write it; - is standard output.")] = Path("topology.toml"),
    paths: Annotated[str, typer.Option(help="By which paths guests go, with commas between them.")] = "split,bypass",
    guests: Annotated[int, typer.Option(min=1, max=16, help="How many on each path.")] = 2,
    workloads: Annotated[str, typer.Option(help="stream, rr, both with a comma between them, or none.")] = "stream,rr",
    program: Annotated[str, typer.Option(help="traffic: the lab's own; tap: an eth0 for any program.")] = "traffic",
    as_json: Json = False,
) -> None:
    """Write a commented topology to start from.

    A file that is there is never overwritten.
    """
    from lab.command.new import new

    new(file, paths, guests, workloads, program, as_json=as_json)


@app.command(name="explain-topology")
def explain_topology(file: Annotated[Path, typer.Argument(help="Topology file.")], as_json: Json = False) -> None:
    """Draw a topology: by which hops its guests' frames go.

    Copies, wake-ups, hypercalls and traps are marked where they happen, with the source file that does it. Nothing is started.
    """
    import shutil

    from lab.command.explain import explained
    from lab.view.picture import picture

    plain = load_topology(file, fits=False).plain()
    shown = picture(plain["name"], plain["guest"], plain["nic"])
    say(shown, "\n".join(explained(shown, shutil.get_terminal_size((100, 24)).columns)), as_json=as_json)


@app.command()
def clean(as_json: Json = False) -> None:
    """Remove what dead topologies left behind.

    A living one is never touched.
    """
    from bench.peers import hugepages
    from lab.rundir import clean as sweep

    removed = sweep() + hugepages.sweep()
    say(removed, "\n".join(f"removed {item}" for item in removed) or "nothing to remove", as_json=as_json)


@app.command()
def completion(shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="Which shell.")]) -> None:
    """A script that completes commands, guests and files.

    It completes `launch.py` (as a command: ./launch.py) and `xen-bypass-lab`.
    """
    from lab.command.completing.scripts import SCRIPTS

    if shell not in SCRIPTS:
        fail(f"completion: {shell!r} is none of {', '.join(SCRIPTS)}", USAGE)
    print(SCRIPTS[shell], end="")


@app.command(hidden=True, context_settings={"ignore_unknown_options": True})
def complete(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """What the last word can be completed to; for the scripts."""
    from lab.command.completing.scripts import lines

    for line in lines(typer.main.get_command(app), words or [""]):
        print(line)


app.add_typer(store, name="store", short_help="The store of a running topology, as Domain 0.")
show_examples(app)


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
