"""`Lab`: what a user makes, and both ways of using it. The blocking verbs are the asynchronous ones, run on a thread's loop."""

import contextlib
import functools
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from lab.api.tables import Guests, Source, Table, topology_of
from lab.api.thread import LoopThread
from lab.api.verbs import AsyncLab, Record
from lab.errors import LabError
from lab.owner import Event, compiling
from lab.programs import AsyncProgram

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


def say_compiling(kind: str, details: Mapping[str, Any]) -> None:
    """The usual `on_event`: a line on standard error when the data path has to be compiled, which takes a minute or so."""
    if kind == "notice":
        print(f"xen-bypass-lab: {details['text']}", file=sys.stderr, flush=True)
    if kind == "compiling":
        print(f"xen-bypass-lab: {compiling(details)}", file=sys.stderr, flush=True)


def _named(wrapper: Callable[P, T], owner: str, verb: Callable[..., Any]) -> Callable[P, T]:
    """`wrapper` with signature and docstring of `verb`."""
    functools.update_wrapper(wrapper, verb)
    wrapper.__module__, wrapper.__qualname__ = __name__, f"{owner}.{verb.__name__}"
    return wrapper


def _blocking(verb: Callable[Concatenate[AsyncLab, P], Coroutine[Any, Any, T]]) -> "Callable[Concatenate[Lab, P], T]":
    """A verb of `AsyncLab` as one of `Lab`: the same but that it blocks until it is done."""

    def blocked(self: "Lab", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(lambda lab: verb(lab, *args, **kwargs))

    return _named(blocked, "Lab", verb)


def _handing_out(
    verb: Callable[Concatenate[AsyncLab, P], Coroutine[Any, Any, AsyncProgram]],
) -> "Callable[Concatenate[Lab, P], Program]":
    """The same for a verb that returns a handle, which blocks as well."""

    def blocked(self: "Lab", /, *args: P.args, **kwargs: P.kwargs) -> Program:
        return Program(self, self._run(lambda lab: verb(lab, *args, **kwargs)))

    return _named(blocked, "Lab", verb)


def _of_program(verb: Callable[Concatenate[AsyncProgram, P], Coroutine[Any, Any, T]]) -> "Callable[Concatenate[Program, P], T]":
    """A verb of `AsyncProgram` as one of `Program`."""

    def blocked(self: "Program", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._lab._run(lambda _: verb(self._program, *args, **kwargs))

    return _named(blocked, "Program", verb)


class Program:
    """A program that has been started in a guest (`Lab.start`)."""

    def __init__(self, lab: "Lab", program: AsyncProgram) -> None:
        self._lab, self._program = lab, program
        self.guest, self.argv = program.guest, program.argv

    @property
    def running(self) -> bool:
        """Whether it has not ended yet, or has not been read to its end."""
        return self._program.running

    wait = _of_program(AsyncProgram.wait)
    kill = _of_program(AsyncProgram.kill)
    end = _of_program(AsyncProgram.end)


class Lab:
    """A topology: up inside ``with Lab(...) as lab``, whose verbs block, and ``async with Lab(...) as lab``, whose are awaited.

    Where no block will do (the cells of a notebook): ``lab = Lab(...).open()``, and `close` at the end.
    """

    def __init__(
        self,
        topology: Source | None = None,
        /,
        *,
        name: str | None = None,
        guests: Guests | None = None,
        workloads: Sequence[Table] | None = None,
        memory: Table | None = None,
        nic: Table | None = None,
        dom0: Table | None = None,
        spin: Table | None = None,
        supervisor: Table | None = None,
        cpu: Table | None = None,
        model: Table | None = None,
        on_event: Event | None = say_compiling,
    ) -> None:
        """Describe a lab; nothing is started. TopologyError lists every problem.

        `topology` is the path of a TOML file, its tables as a dict, or a `lab.topology.Topology`. Else `guests` says who there is,
        ``{"anna": "split", "carl": {"path": "bypass", "memory": "8 MiB"}}``, and the other tables are as in a file
        (docs/topology.md). `name` is what the topology is called: by default as its file says, or as no other is.
        `on_event(kind, details)` is told of kernels that are compiled ("progress", "warm") and of deaths ("died"), from another
        thread if the lab blocks.
        """
        tables = {"workload": workloads, "memory": memory, "nic": nic, "dom0": dom0, "spin": spin, "cpu": cpu, "model": model}
        tables["supervisor"] = supervisor
        self._topology = topology_of(topology, name, guests, tables)
        self._on_event = on_event
        self._open: AsyncLab | None = None
        self._thread: LoopThread | None = None

    # -- life --

    def open(self) -> Self:
        """Start the topology; returns this object. LabError names what could not start; then nothing is left behind."""
        self._check_is_down()
        self._thread = LoopThread(f"lab {self.name}")
        try:
            self._open = self._thread.run(self._started())
        except BaseException:
            self._thread.close()
            self._thread = None
            raise
        return self

    async def _started(self) -> AsyncLab:
        lab = AsyncLab(self._topology, self._on_event)
        await lab.open()
        return lab

    def close(self) -> None:
        """Take the topology down and wait until nothing of it is left; nothing happens if it is down."""
        thread, lab, self._thread, self._open = self._thread, self._open, None, None
        if thread is None or lab is None:
            return
        try:
            thread.run(lab.close(), to_the_end=True)
        finally:
            thread.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> AsyncLab:
        self._check_is_down()
        self._open = await self._started()
        return self._open

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lab, self._open = self._open, None
        if lab is not None:
            await lab.close()

    def _check_is_down(self) -> None:
        if self._open is not None:
            raise LabError(f"topology {self.name} is up already")

    def _up(self) -> AsyncLab:
        if self._thread is None or self._open is None:
            raise LabError(f"topology {self.name} is not up: use `with Lab(...) as lab`, or open() first")
        return self._open

    def _run(self, verb: Callable[[AsyncLab], Coroutine[Any, Any, T]]) -> T:
        lab = self._up()
        assert self._thread is not None
        if self._thread.is_current:
            raise LabError("an on_event handler cannot wait for a verb of its own lab")
        return self._thread.run(verb(lab))

    # -- what it is --

    @property
    def name(self) -> str:
        """What the topology is called, on the command line too (``launch.py status``)."""
        return self._topology.name

    @property
    def topology(self) -> Record:
        """The topology as a file has it, every default filled in."""
        return self._topology.plain()

    @property
    def records(self) -> list[Record]:
        """The records of all workloads since it was opened, in order."""
        return [] if self._open is None else self._open.records

    def __repr__(self) -> str:
        guests = ", ".join(f"{guest.name} ({guest.path})" for guest in self._topology.guests)
        return f"<Lab {self.name}: {guests}; {'down' if self._open is None else 'up'}>"

    # -- the verbs, which are AsyncLab's --

    stream = _blocking(AsyncLab.stream)
    streams = _blocking(AsyncLab.streams)
    round_trips = _blocking(AsyncLab.round_trips)
    replay = _blocking(AsyncLab.replay)
    run_workloads = _blocking(AsyncLab.run_workloads)
    run = _blocking(AsyncLab.run)
    start = _handing_out(AsyncLab.start)
    counters = _blocking(AsyncLab.counters)
    ledger = _blocking(AsyncLab.ledger)
    balance = _blocking(AsyncLab.balance)
    status = _blocking(AsyncLab.status)
    pids = _blocking(AsyncLab.pids)
    stop = _blocking(AsyncLab.stop)
    cont = _blocking(AsyncLab.cont)
    kill = _blocking(AsyncLab.kill)
    move = _blocking(AsyncLab.move)
    price = _blocking(AsyncLab.price)
    ablate = _blocking(AsyncLab.ablate)
    spin = _blocking(AsyncLab.spin)

    @contextlib.contextmanager
    def stopped(self, *parts: str) -> Iterator[None]:
        """A context in which these processes are stopped."""
        context = self._up().stopped(*parts)
        self._run(lambda _: context.__aenter__())
        try:
            yield
        finally:
            self._run(lambda _: context.__aexit__(None, None, None))
