"""One sampler for all viewers: looks at the topology each second, keeps what charts need, and gives each viewer the last look.

A *view* is what the page is made of, as JSON has it::

    {"kind": "whole", "picture", "drawings": {"wide", "narrow"}, "marks", "history", …all of a "sample" view}
    {"kind": "sample", "sample", "costs", "status", "events": [those that are new to this viewer], …settings}
    {"kind": "ended", "reason"}

A viewer gets the whole at first, and again when the picture has changed (a guest has moved, a topology has come up).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from lab.page.drawing import NARROW, WIDE, draw
from lab.view.attach import Ended, Watch
from lab.view.picture import Picture
from lab.view.samples import Sample
from lab.view.ways import ABOUT
from lab.web.costs import costs

View = dict[str, Any]
INTERVAL_S = 1.0
KEPT = 120
"""Samples of history."""
MOST_VIEWERS = 32


class TooMany(Exception):
    """There are `MOST_VIEWERS` already."""


class Hub:
    """Looks, and tells. `run` ends with the topology."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.sample: Sample | None = None
        self.ended: str | None = None
        self.settings: Callable[[], dict[str, Any]] = dict
        """What was set on the page (`lab.web.controls.Controls.settings`)."""
        self.viewers = 0
        self._picture: Picture | None = None
        self._whole: View = {}
        self._number = 0  # of the sample
        self._version = 0  # of the picture
        self._history: deque[View] = deque(maxlen=KEPT)
        self._news = asyncio.Condition()

    async def run(self) -> str:
        """Look until the topology ends; why."""
        try:
            async for sample in self.watch.samples(INTERVAL_S):
                await self._take(sample)
        except Ended as error:
            self.ended = str(error)
        finally:
            self.ended = self.ended or f"the page of {self.watch.name} has ended"
            async with self._news:
                self._news.notify_all()
        return self.ended

    async def _take(self, sample: Sample) -> None:
        picture = self.watch.picture
        if picture is not self._picture:
            self._picture, self._version = picture, self._version + 1
            drawings = {size.name: draw(picture, size) for size in (WIDE, NARROW)} if picture["nodes"] else {}
            marks = {mark.value: about for mark, about in ABOUT.items()}
            self._whole = {"picture": picture, "drawings": drawings, "marks": marks, "name": self.watch.name}
        self.sample = sample
        self._number += 1
        self._history.append(_brief(sample))
        async with self._news:
            self._news.notify_all()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self.viewers >= MOST_VIEWERS:
            raise TooMany
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def views(self) -> AsyncGenerator[View, None]:
        """What one viewer is shown, until the topology ends: at each turn the last there is. TooMany."""
        with self._counted():
            number = version = events = 0
            while True:
                async with self._news:
                    await self._news.wait_for(lambda: self.ended is not None or self._number > number)  # noqa: B023
                if self.sample is not None and self._number > number:
                    number = self._number
                    yield self._view(whole=version != self._version, events=events)
                    version, events = self._version, self.watch.log.number
                if self.ended is not None:
                    yield {"kind": "ended", "reason": self.ended}
                    return

    def _view(self, *, whole: bool, events: int) -> View:
        assert self.sample is not None
        assert self._picture is not None
        status = self.watch.status
        shown = {key: status.get(key) for key in ("state", "up_s", "dead", "notices", "processes")}
        view = {
            "kind": "sample",
            "sample": self.sample,
            "costs": costs(self._picture, self.sample),
            "status": shown,
            "events": self.watch.log.since(events),
            **self.settings(),
        }
        return {**view, **self._whole, "kind": "whole", "history": list(self._history)} if whole else view


def _brief(sample: Sample) -> View:
    """What charts keep of a sample."""
    guests = {name: [guest["tx"]["fps"], guest["rx"]["fps"]] for name, guest in sample["guests"].items()}
    return {"time": sample["time"], "guests": guests, "cpu": {name: one["cpu"] for name, one in sample["processes"].items()}}
