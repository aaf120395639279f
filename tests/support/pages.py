"""Talking to the page's server as a browser does, and as one must not; a browser, and what is looked for on pages."""

import http.client
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.labs import staying_up, wait_until
from tests.support.patience import patient
from tests.support.tools import place

ANSWER_S = 30.0


@dataclass(frozen=True)
class Served:
    """A page that is served."""

    address: str
    port: int
    token: str

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request: status, headers, body. With the headers of its own page, but for what `headers` says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patient(ANSWER_S))
        try:
            connection.putrequest(method, path, skip_host=True)
            text = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            for name, value in ({"Host": f"127.0.0.1:{self.port}"} | (headers or {})).items():
                connection.putheader(name, value)
            if text or method == "POST":
                connection.putheader("Content-Length", str(len(text)))
            connection.endheaders(text or None)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def do(self, verb: str, headers: dict[str, str] | None = None, **arguments: Any) -> tuple[int, dict[str, Any]]:
        """A control, with the token unless `headers` says otherwise: status and what was said."""
        status, _, said = self.ask("POST", f"/do/{verb}", arguments, {"X-Lab-Token": self.token, **(headers or {})})
        return status, json.loads(said)

    @contextmanager
    def stream(self) -> "Iterator[Stream]":
        """A viewer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patient(ANSWER_S))
        try:
            connection.request("GET", "/stream")
            yield Stream(connection.getresponse())
        finally:
            connection.close()


class Stream:
    """The views that one viewer gets."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        assert answer.status == 200
        self._answer = answer

    def next(self) -> dict[str, Any]:
        """The next view."""
        while True:
            line = self._answer.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data: "):
                return dict(json.loads(line.removeprefix(b"data: ")))

    def until(self, condition: Any) -> dict[str, Any]:
        """The first view of which that is true."""
        while not condition(view := self.next()):  # bounded by the socket's time-out, and the test's
            pass
        return view


def served_at(lines: Sequence[str]) -> Served:
    """By what the command has printed."""
    pattern = re.compile(r"http://\S+:(\d+)/#token=(\S+)")
    found = wait_until(lambda: [match for line in lines for match in pattern.finditer(line)], "the page's address")[0]
    return Served(found[0], int(found[1]), found[2])


@contextmanager
def chromium() -> Iterator[Browser]:
    """A real browser."""
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=place("chromium"), args=["--no-sandbox"])  # tests may be root
        yield one
        one.close()


def words_apart(page: Page) -> int:
    """Look whether words of the drawing that is seen overlap: none may. How many there are."""
    boxes = page.locator("svg.drawing:visible text").evaluate_all(
        """texts => texts.filter(one => one.textContent).map(one => {
             const box = one.getBoundingClientRect(); return [one.textContent, box.x, box.y, box.width, box.height]; })"""
    )
    for k, (text, x, y, width, height) in enumerate(boxes):
        for other, a, b, w, h in boxes[:k]:
            apart = x >= a + w - 1 or a >= x + width - 1 or y >= b + h - 3 or b >= y + height - 3
            assert apart, (text, other)
    return len(boxes)


@contextmanager
def page_of(file: Path) -> Iterator[Served]:
    """The page of a topology that is up for it."""
    with staying_up(file, "--web", "--port", "0") as (_, lines):
        yield served_at(lines)
