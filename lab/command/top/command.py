"""`launch.py top`: what a running topology's hops do now, on the terminal. What it costs who is looked at: lab/view/attach.py.

On a terminal it has the screen for itself until "q", Ctrl-C or the topology's end. Else, or with `--once`, it prints one table;
with `--json` a record a line, as `lab.view.samples` has them, with the topology's name, state and what has happened since the
last.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from lab.command.clients import ClientError
from lab.command.tables import duration
from lab.command.top.keys import OwnScreen
from lab.command.top.table import SORTS, Group, Line, Look, detail, drawn, groups, table, window
from lab.view.attach import Ended, Watch
from lab.view.events import Event
from lab.view.samples import Sample

INTERVAL_S = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EVENTS = 3
"""Lines at the bottom."""
HELP = "q quit  j/k pick  Enter alone  Esc all  s sort  space pause"
BRIEF_HELP = "q quit j/k pick Enter alone s sort"


async def top(name: str | None, interval_s: float, *, once: bool, as_json: bool) -> int:
    """Show it; returns the exit status. ClientError if there is no such topology."""
    async with Watch.of(name) as watch:
        if as_json:
            return await _records(watch, interval_s, once=once)
        if once or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
            await _once(watch, interval_s)
            return 0
        with OwnScreen() as terminal:
            status = await _Top(watch, terminal, interval_s).run()
    if isinstance(status, str):
        raise ClientError(status)
    return status


async def _records(watch: Watch, interval_s: float, *, once: bool) -> int:
    """A line for each sample but the first, which has no rates; one with `once`."""
    told = 0
    async for sample in watch.samples(interval_s):
        if not sample["seconds"]:
            continue
        record = {"topology": watch.name, "state": watch.status["state"], **sample, "events": watch.log.since(told)}
        told = watch.log.number
        print(json.dumps(record), flush=True)
        if once:
            break
    return 0


async def _once(watch: Watch, interval_s: float) -> None:
    samples = watch.samples(interval_s)
    await anext(samples)
    sample = await anext(samples)
    print(heading(watch, sample))
    for text, _ in table(groups(watch.picture, sample)):
        print(text.rstrip())
    for one in watch.log.since()[-EVENTS:]:
        print(said(one, sample))


def heading(watch: Watch, sample: Sample) -> str:
    """Which topology, since when, and of what time the figures are."""
    up = f" {duration(watch.up_s)}" if watch.up_s is not None else ""
    return f"{watch.name}: {watch.status['state']}{up}; figures of {sample['seconds']:.2f} s"


def said(one: Event, sample: Sample) -> str:
    """An event on a line, with how long ago it was."""
    return f"{duration(max(sample['time'] - one['time'], 0))} ago: {one['who']} {one['kind']}: {one['what']}"


class _Top:
    """The full screen: what is shown, what the user has chosen, and how it ends."""

    def __init__(self, watch: Watch, terminal: OwnScreen, interval_s: float) -> None:
        self._watch, self._terminal, self._interval_s = watch, terminal, interval_s
        self._sample: Sample | None = None
        self._sort, self._picked, self._alone, self._paused = "topology", "", False, False
        self._colours = not os.environ.get("NO_COLOR")
        self._end: asyncio.Future[int | str] = asyncio.get_running_loop().create_future()

    async def run(self) -> int | str:
        """Until it ends; returns the exit status, or why there is nothing to show any more."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._ends, 128 + number)
        loop.add_signal_handler(signal.SIGWINCH, self._draw)
        loop.add_signal_handler(signal.SIGTSTP, self._terminal.suspend, self._draw)
        if self._terminal.has_keys:
            loop.add_reader(sys.stdin.fileno(), self._typed)
        looking = loop.create_task(self._look())
        try:
            waits: list[asyncio.Future[Any]] = [looking, self._end]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return self._end.result() if self._end.done() else looking.result()
        finally:
            looking.cancel()
            if self._terminal.has_keys:
                loop.remove_reader(sys.stdin.fileno())

    async def _look(self) -> str:
        try:
            async for sample in self._watch.samples(self._interval_s):
                if not self._paused:
                    self._sample = sample
                    self._draw()
        except Ended as ended:
            return str(ended)
        raise AssertionError("samples end by Ended")

    def _ends(self, status: int | str) -> None:
        if not self._end.done():
            self._end.set_result(status)

    # -- keys --

    def _typed(self) -> None:
        actions: dict[str, Callable[[], None]] = {
            "q": lambda: self._ends(0), "\x04": lambda: self._ends(0), "s": self._next_sort, "space": self._pause, "p": self._pause,
            "up": lambda: self._pick(-1), "k": lambda: self._pick(-1), "down": lambda: self._pick(1), "j": lambda: self._pick(1),
            "page up": lambda: self._pick(-10), "page down": lambda: self._pick(10),
            "enter": lambda: self._look_at(alone=True), "escape": lambda: self._look_at(alone=False),
        }  # fmt: skip
        for key in self._terminal.read():
            actions.get(key, lambda: None)()
        self._draw()

    def _next_sort(self) -> None:
        names = list(SORTS)
        self._sort = names[(names.index(self._sort) + 1) % len(names)]

    def _pause(self) -> None:
        self._paused = not self._paused

    def _pick(self, by: int) -> None:
        guests = {path["guest"] for path in self._watch.picture["paths"]}
        shown = [group.name for group in self._shown() if group.name in guests]
        if shown:
            at = shown.index(self._picked) + by if self._picked in shown else (0 if by > 0 else len(shown) - 1)
            self._picked = shown[min(max(at, 0), len(shown) - 1)]

    def _look_at(self, *, alone: bool) -> None:
        self._alone = alone and self._picked != ""

    # -- drawing --

    def _shown(self) -> list[Group]:
        return groups(self._watch.picture, self._sample, self._sort) if self._sample is not None else []

    def _draw(self) -> None:
        if self._sample is None or self._end.done():
            return
        columns, rows = self._terminal.size()
        events: list[Line] = [(said(one, self._sample), Look.QUIET) for one in self._watch.log.since()[-EVENTS:]]
        top = f"{heading(self._watch, self._sample)}; by {self._sort}{'; PAUSED' if self._paused else ''}"
        room = max(rows - 2 - len(events), 0)
        body = self._body(columns, room)
        blank: list[Line] = [("", Look.USUAL)] * (room - len(body))
        foot = HELP if columns >= len(HELP) else BRIEF_HELP
        lines = [(top, Look.USUAL), *body, *blank, *events, (foot, Look.QUIET)]
        self._terminal.draw([drawn(line, columns, self._colours) for line in lines[:rows]])

    def _body(self, columns: int, room: int) -> list[Line]:
        assert self._sample is not None
        if self._alone and (one := detail(self._watch.picture, self._sample, self._picked, columns)):
            return one[:room]
        shown = self._shown()
        at = 1
        for group in shown:
            if group.name == self._picked:
                break
            at += 1 + len(group.hops)
        return window(table(shown, columns, self._picked), at if self._picked else 1, room)
