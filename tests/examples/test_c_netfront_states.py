"""examples/c_netfront parts and comes back, is taken away, is killed, and misbehaves; the others' verified traffic goes on."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from hyp.xenstore.client import Transaction
from hyp.xenstore.xenbus import XenbusState, backend_path, wait_for_state
from lab.stopping import stop
from tests.support.c_netfront import Netfronts, guest, netfronts
from tests.support.labs import run, until, workload
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("gcc", "xen-headers")]

HEAD: Final = "[nic]\npause_us = 1_000_000\n[dom0]\nageing_s = 86400\n"
BYSTANDERS: Final = '[[guest]]\nname = "anna"\npath = "split"\n[[guest]]\nname = "bert"\npath = "split"\n'
CYCLES: Final = 100


def of(
    program: Path, name: str, tmp_path: Path, body: Callable[[Netfronts], Awaitable[None]], *argv: str, head: str = HEAD
) -> None:
    """Run a body in a topology with a C guest and two of the lab's."""

    async def main() -> None:
        text = head + guest("cc", program, "serve", *argv) + BYSTANDERS
        async with netfronts(tmp_path, name, text) as fronts:
            await body(fronts)

    run(main())


@contextlib.asynccontextmanager
async def bystanders(fronts: Netfronts) -> AsyncIterator[None]:
    """anna sends to bert and bert to anna, all the time; nothing of it is lost."""
    streams = {name: fronts.stream() for name in ("anna", "bert")}
    other = {"anna": "bert", "bert": "anna"}
    jobs = {
        name: asyncio.ensure_future(
            fronts.lab.call(name, "send_stream", mac=fronts.macs[other[name]], frame=200, stream=stream, seconds=3600.0)
        )
        for name, stream in streams.items()
    }

    async def go_on() -> bool:
        return all([(await fronts.received(other[name], stream))["frames"] > 0 for name, stream in streams.items()])

    await until(go_on, "the bystanders to have begun")
    yield
    for name in streams:
        await fronts.lab.call(name, "end_job")
    for name, stream in streams.items():
        sent = (await jobs[name])["sent"]
        await fronts.arrived(other[name], stream, sent)


def descriptors(fronts: Netfronts) -> dict[str, int]:
    """How many are open, of everybody that a connection takes some of."""
    pids = {name: fronts.runner.pids[name] for name in ("dom0", "hyp", "xenstored")} | {"cc": fronts.pid("cc")}
    return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()}


async def at_rest(fronts: Netfronts) -> dict[str, int]:
    """The fewest: a process that looks at its memory, or measures what is fair, has some more for milliseconds."""
    found, over_at = [descriptors(fronts)], time.monotonic() + 0.25
    while time.monotonic() < over_at:
        found.append(descriptors(fronts))
        await asyncio.sleep(0)
    return {name: min(one[name] for one in found) for name in found[0]}


async def works(fronts: Netfronts) -> None:
    """Frames go both ways."""
    stream, _ = await fronts.send("cc", "--to wire", 300)
    await fronts.arrived("wire", stream, 300)
    await fronts.arrived("cc", await fronts.stream_to("cc", "wire", 200, 300), 300)


WAYS: Final = ["--way close --rings fresh", "--way restart --rings fresh", "--way close --rings kept", "--way restart --rings kept"]


@pytest.mark.long
@pytest.mark.parametrize("words", WAYS)
def test_it_reconnects_a_hundred_times_beside_others(program: Path, tmp_path: Path, words: str) -> None:
    """5 → 5, 6 → 6, 1 → 2, 4 → 4, or 1 → 2 at once as after kexec; rings anew, or taken up where they are. It loses nothing."""

    async def body(fronts: Netfronts) -> None:
        await works(fronts)
        start = (await fronts.job("cc", "report"))["indices"]["tx"]
        before, stream, frames = await at_rest(fronts), fronts.stream(), 70
        async with bystanders(fronts):
            job = f"reconnect {words} --times {CYCLES} --to wire --stream {stream} --frames {frames}"
            report = await fronts.job("cc", job, seconds=80)
        assert (report["error"], report["cycles"], report["sent"]) == (None, CYCLES, CYCLES * frames)
        assert report["device"]["unanswered"] == 0
        await fronts.arrived("wire", stream, CYCLES * frames)
        assert report["indices"]["tx"] == (start + CYCLES * frames if "kept" in words else frames)
        await works(fronts)

        async def as_before() -> bool:
            return descriptors(fronts) == before

        with contextlib.suppress(AssertionError):  # which would not say what differs: see `at_rest`
            await until(as_before, "what was open to be closed")
        assert descriptors(fronts) == before

    of(program, f"again-{WAYS.index(words)}", tmp_path, body)


@pytest.mark.parametrize("rings", tiered(["fresh", "kept"], ["kept"]))
def test_frames_that_are_under_way_when_it_leaves(program: Path, tmp_path: Path, rings: str) -> None:
    """With rings anew they are dropped, and no more than are unanswered; with rings that were kept they are sent, once."""

    async def body(fronts: Netfronts) -> None:
        stream, frames = fronts.stream(), 250
        async with bystanders(fronts):
            job = f"reconnect --abrupt yes --way restart --rings {rings} --times {CYCLES} --frames {frames}"
            report = await fronts.job("cc", f"{job} --to wire --stream {stream}", seconds=80)
        assert (report["error"], report["sent"]) == (None, CYCLES * frames)
        unanswered = report["device"]["unanswered"]
        if rings == "kept":
            assert unanswered == 0
            await fronts.arrived("wire", stream, CYCLES * frames)
        else:
            await works(fronts)
            got = await fronts.received("wire", stream)
            assert got["duplicated"] == got["corrupt"] == 0
            assert CYCLES * frames - unanswered <= got["frames"] <= CYCLES * frames

    of(program, f"abrupt-{rings}", tmp_path, body)


@pytest.mark.long
def test_rings_that_are_kept_go_over_the_wrap_while_they_are(program: Path, tmp_path: Path) -> None:
    async def body(fronts: Netfronts) -> None:
        stream = fronts.stream()
        job = f"reconnect --rings kept --times 40 --to wire --stream {stream} --frames 33"
        report = await fronts.job("cc", job)
        assert report["error"] is None
        assert report["indices"]["tx"] < 40 * 33
        await fronts.arrived("wire", stream, 40 * 33)
        await works(fronts)

    of(program, "kept-wrap", tmp_path, body, "--start", "0xfffffc00")


CLOSES: Final = {"cut-off", "no-last", "overrun"}
"""What a back end cannot go on from: nobody knows where the next frame begins."""
FAULTS: Final = (
    "cut-off", "no-last", "extra-type", "extra-more", "gso-type", "gso-size", "empty", "over-page", "sizes", "header", "grant",
    "flags", "long", "late-extra", "overrun",
)  # fmt: skip


def test_what_no_sound_front_end_sends(program: Path, tmp_path: Path) -> None:
    """A spoiled frame is refused, each of its slots answered; or takes the vif down, which comes back when its front end does."""

    async def body(fronts: Netfronts) -> None:
        async with bystanders(fronts):
            for fault in FAULTS:
                print(fault)
                before = (await fronts.job("cc", "report"))["device"]
                stream = fronts.stream()
                report = await fronts.spoil("cc", f"--fault {fault} --to wire --stream {stream}")
                if fault in CLOSES:
                    assert report["error"] == "the back end has closed the device"
                    assert (await fronts.job("cc", "send --to wire --frames 1"))["error"] == report["error"]
                    assert (await fronts.job("cc", "reconnect"))["error"] is None
                else:
                    more = {name: count - before[name] for name, count in report["device"].items()}
                    assert report["error"] is None
                    assert more["tx_okay"] == 0
                    assert more["tx_error"] + more["tx_null"] == more["tx_slots"] + more["tx_extras"]
                await works(fronts)
                assert (await fronts.received("wire", stream))["frames"] == 0

    of(program, "spoilt", tmp_path, body)


async def toolstack(fronts: Netfronts, **values: int) -> None:
    """Write the back end's nodes, as xl does."""
    back = backend_path(0, "vif", fronts.domids["cc"], 0)

    async def write(transaction: Transaction) -> None:
        for name, value in values.items():
            await transaction.write(f"{back}/{name}", str(value))

    await fronts.dom0.retry(write)


def test_the_toolstack_takes_the_device_and_gives_it_again(program: Path, tmp_path: Path) -> None:
    async def body(fronts: Netfronts) -> None:
        back = backend_path(0, "vif", fronts.domids["cc"], 0)
        async with bystanders(fronts):
            for _ in range(3):
                await toolstack(fronts, online=0, state=5)
                await wait_for_state(fronts.dom0, back, [XenbusState.CLOSED], patient(20))
                assert (await fronts.job("cc", "send --to wire --frames 1"))["error"] == "the back end has closed the device"
                error = await fronts.dom0.read(f"/local/domain/{fronts.domids['cc']}/error/device/vif/0/error")
                assert error == "5 the back end has closed the device"
                await toolstack(fronts, online=1, state=1)
                assert (await fronts.job("cc", "reconnect --way restart"))["error"] is None
                await works(fronts)

    of(program, "detach", tmp_path, body)


def test_it_is_killed_beside_others(program: Path, tmp_path: Path) -> None:
    """While it sends and receives. Dom0 lets go of what it had, and its nodes go."""

    async def body(fronts: Netfronts) -> None:
        domid = fronts.domids["cc"]
        async with bystanders(fronts):
            stream = fronts.stream()
            await fronts.tell("cc", f"send --to wire --stream {stream} --seconds 3600")
            await fronts.lab.call("nic", "wire_generate", mac=fronts.macs["cc"], frame=64, stream=fronts.stream(), seconds=3600.0)

            async def sends() -> bool:
                return int((await fronts.received("wire", stream))["frames"]) > 1000

            await until(sends, "it to send")
            os.kill(fronts.pid("cc"), signal.SIGKILL)
            assert "was killed by signal 9" in await fronts.lab.death_of({"cc"})

            async def gone() -> bool:
                return not any([await fronts.has(f"/local/domain/{node}") for node in (str(domid), f"0/backend/vif/{domid}")])

            await until(gone, "its nodes to be gone")
        fronts.lab.deaths.pop("cc", None)

    of(program, "killed", tmp_path, body)


@pytest.mark.parametrize("dead", tiered(["xenstored", "hyp"], ["xenstored"]))
def test_it_goes_on_without(program: Path, tmp_path: Path, dead: str) -> None:
    """A connected device needs neither: it answers who asks it for an echo."""

    async def body(fronts: Netfronts) -> None:
        await works(fronts)
        os.kill(fronts.runner.pids[dead], signal.SIGKILL)
        await fronts.lab.death_of({dead})
        job: dict[str, Any] = {"mac": fronts.macs["cc"], "frame": 300, "frames": 500}
        report = await fronts.lab.call("anna", "round_trips", stream=fronts.stream(), **job)
        assert report["answered"] == 500
        assert "cc" not in fronts.lab.deaths

    of(program, f"without-{dead}", tmp_path, body, head="[supervisor]\nrestart = false\n" + HEAD)


def test_it_is_told_to_end_in_the_middle(program: Path, tmp_path: Path) -> None:
    """SIGTERM: it reports, closes its device, and ends with status 0; nobody has to kill it."""

    async def body(fronts: Netfronts) -> None:
        stream, back = fronts.stream(), backend_path(0, "vif", fronts.domids["cc"], 0)
        states = await fronts.dom0.watch(f"{back}/state", "states")
        number = await fronts.tell("cc", f"send --to wire --stream {stream} --seconds 3600")

        async def sends() -> bool:
            return int((await fronts.received("wire", stream))["frames"]) > 1000

        await until(sends, "it to send")
        os.kill(fronts.pid("cc"), signal.SIGTERM)

        async def reported() -> bool:
            return f'"id": {number}, "stream": {stream}, "error": null' in fronts.printed()

        await until(reported, "its report")

        async def ended() -> bool:
            status = (await fronts.lab.keeper("status")).value
            return {one["name"]: one["state"] for one in status["processes"]}["cc"] == "ended"

        await until(ended, "its end")
        assert "cc" not in fronts.lab.deaths
        fronts.dom0.forget(states)
        await fronts.runner.run(workload("stream", "anna", "bert", frames=1000))

    of(program, "told", tmp_path, body)


def test_a_back_end_that_is_late_is_waited_for(program: Path, tmp_path: Path) -> None:
    """Dom0 stands still while the front end closes, and comes back."""

    async def body(fronts: Netfronts) -> None:
        front = f"/local/domain/{fronts.domids['cc']}/device/vif/0/state"
        for _ in range(3):
            await stop(fronts.runner.pids["dom0"])
            try:
                number = await fronts.tell("cc", "reconnect --rings fresh")

                async def asks() -> bool:
                    return await fronts.dom0.read(front) == "5"

                await until(asks, "it to close")
            finally:
                os.kill(fronts.runner.pids["dom0"], signal.SIGCONT)
            assert (await fronts.report("cc", number))["error"] is None
            await works(fronts)

    of(program, "late", tmp_path, body)


def test_a_new_job_ends_the_one_before(program: Path, tmp_path: Path) -> None:
    async def body(fronts: Netfronts) -> None:
        stream = fronts.stream()
        first = await fronts.tell("cc", f"send --to wire --stream {stream} --seconds 3600")

        async def sends() -> bool:
            return int((await fronts.received("wire", stream))["frames"]) > 100

        await until(sends, "it to send")
        second = await fronts.tell("cc", "report")
        await fronts.report("cc", second)

        async def told() -> bool:
            return f'"id": {first}, "stream": {stream}' in fronts.printed()

        await until(told, "the first one's report")
        await works(fronts)

    of(program, "next", tmp_path, body)


def test_a_job_that_is_none_is_answered(program: Path, tmp_path: Path) -> None:
    async def body(fronts: Netfronts) -> None:
        for words, said in (
            ("send --to wire --length 20", "--length 20: it should be 48 to 65535"),
            ("serve", "it serves already"),
            ("", "job --id: it should be report or send"),
            ("ping", "ping : it should be with --to, a MAC address"),
        ):
            report = await fronts.job("cc", words)
            assert report["error"].startswith(said), report["error"]
        await fronts.tell("cc", "report " + "--stream 1 " * 200)

        async def said_so() -> bool:
            return "the job is too long" in fronts.printed()

        await until(said_so, "what is wrong with a long job")
        await works(fronts)

    of(program, "none", tmp_path, body)


@pytest.mark.long
def test_jobs_one_upon_the_other_are_all_heard(program: Path, tmp_path: Path) -> None:
    """Each is told as soon as the report before is there, while the program may still be writing that."""

    async def body(fronts: Netfronts) -> None:
        for number in range(500):
            job = "send --to wire --frames 1" if number % 3 else "report"
            assert (await fronts.job("cc", job, seconds=5))["error"] is None

    of(program, "jobs", tmp_path, body)
