"""examples/c_netfront in a topology: built, started with `serve`, and told what to do by the store, as it says in its README.md."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.peers.c_netfront import Jobs, Report
from hyp.xenstore.client import XenstoreClient, XenstoreError
from lab.workloads import Runner
from tests.lab.test_paths import running
from tests.support.labs import until, workload
from tests.support.patience import patient

JOB_S = 60.0


def guest(name: str, *argv: str | Path, path: str = "split") -> str:
    """A guest's table whose program is `argv`."""
    return f'[[guest]]\nname = "{name}"\npath = "{path}"\nprogram = {{ argv = {json.dumps([str(word) for word in argv])} }}\n'


class Netfronts:
    """The C guests of a lab that serve, and everybody else. ``await fronts.job("cc", "send --to wire --frames 100")``."""

    def __init__(self, runner: Runner, dom0: XenstoreClient) -> None:
        self.runner, self.lab, self.dom0, self._jobs = runner, runner.lab, dom0, Jobs(dom0)
        guests = self.lab.topology["guest"]
        self.domids = {str(one["name"]): domid for domid, one in enumerate(guests, 1)}
        self.macs = {str(one["name"]): str(one["mac"]) for one in guests} | {"wire": str(self.lab.topology["nic"]["wire"]["mac"])}
        self._refused: dict[str, int] = {}  # slots, by guest, that were refused and should have been
        self._streams = itertools.count(0x2000)

    def stream(self) -> int:
        """One that nothing else has, and of a tracker of its own."""
        return next(self._streams)

    async def tell(self, name: str, words: str) -> int:
        """Give a guest a job; its id. ``--to NAME`` has its MAC address."""
        parts = words.split()
        if "--to" in parts:
            at = parts.index("--to") + 1
            parts[at] = self.macs.get(parts[at], parts[at])
        return await self._jobs.tell(self.domids[name], " ".join(parts))

    async def report(self, name: str, number: int, seconds: float = JOB_S) -> Report:
        """Wait for a job's report."""
        return await self._jobs.report(self.domids[name], number, patient(seconds))

    async def job(self, name: str, words: str, seconds: float = JOB_S) -> Report:
        """A job, and its report."""
        return await self.report(name, await self.tell(name, words), seconds)

    async def send(self, name: str, words: str, frames: int) -> tuple[int, Report]:
        """Send on a stream of its own; (stream, report), and nothing has gone wrong."""
        stream = self.stream()
        report = await self.job(name, f"send --stream {stream} --frames {frames} {words}")
        assert report["error"] is None
        assert report["sent"] == frames
        refused = report["device"]["tx_error"] + report["device"]["tx_dropped"]
        assert refused == self._refused.get(name, 0)
        return stream, report

    async def spoil(self, name: str, words: str) -> Report:
        """Send what is none that a front end should send."""
        report = await self.job(name, f"spoil {words}")
        self._refused[name] = report["device"]["tx_error"] + report["device"]["tx_dropped"]
        return report

    async def announce(self, name: str) -> None:
        """Let bridges know where a guest is: what is for others than that is flooded, and flooding makes nobody wait for room."""
        if self.is_c(name):
            await self.send(name, "--to ff:ff:ff:ff:ff:ff", 1)
        else:
            await self.runner.run(workload("stream", "wire", name, frames=1))

    async def received(self, name: str, stream: int) -> Report:
        """What has arrived of a stream, at the wire or at a guest, C or not."""
        if name == "wire":
            return dict((await self.lab.call("nic", "wire_report", stream=stream))["received"])
        if self.is_c(name):
            return dict((await self.job(name, f"report --stream {stream}"))["received"])
        return dict(await self.lab.call(name, "received", stream=stream))

    def is_c(self, name: str) -> bool:
        """Whether a guest is this program."""
        return any(one["name"] == name and isinstance(one["program"], dict) for one in self.lab.topology["guest"])

    def pid(self, name: str) -> int:
        """The program's process."""
        stand_in = self.runner.pids[name]
        children = Path(f"/proc/{stand_in}/task/{stand_in}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def printed(self, name: str = "cc") -> str:
        """What a guest has printed."""
        log = self.lab._rundir.guest_log(name)
        return log.read_text(errors="replace") if log.exists() else ""

    async def arrived(self, name: str, stream: int, frames: int) -> Report:
        """Wait until so many frames (of TCP's, units) of a stream have arrived, whole and once each; what the receiver says."""
        found: Report = {}

        async def have() -> bool:
            found.update(await self.received(name, stream))
            return int(found["frames"]) >= frames

        try:
            await until(have, f"{frames} frames of stream {stream} at {name}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None
        assert (found["frames"], found["lost"], found["duplicated"], found["corrupt"]) == (frames, 0, 0, 0), found
        return found

    async def stream_to(self, name: str, sender: str, frame: int, frames: int) -> int:
        """A stream from the wire or a guest of the lab's, sent; its number."""
        stream, job = self.stream(), {"mac": self.macs[name], "frame": frame, "frames": frames}
        process, op = ("nic", "wire_generate") if sender == "wire" else (sender, "send_stream")
        await self.lab.call(process, op, stream=stream, **job)
        return stream

    async def has(self, node: str) -> bool:
        """Whether a node is there."""
        try:
            await self.dom0.read(node)
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise
            return False
        return True


@asynccontextmanager
async def netfronts(tmp_path: Path, name: str, text: str) -> AsyncIterator[Netfronts]:
    """A topology with C guests in it, up and connected."""
    async with running(tmp_path, name, text) as runner:
        with runner.lab._rundir.socket_address(runner.lab.store_path) as address:
            dom0 = await XenstoreClient.connect(address)
        async with dom0:
            fronts = Netfronts(runner, dom0)
            for guest in runner.lab.topology["guest"]:
                await fronts.announce(str(guest["name"]))
            yield fronts
