"""examples/c_netfront, a front end on Xen's own headers, against our netback: every frame verified, in both directions."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from hyp.abi.counters import Count
from hyp.abi.ring import REQ_PROD
from lab.stopping import stop
from tests.support.c_netfront import Netfronts, guest, netfronts
from tests.support.labs import run, until

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("gcc", "xen-headers")]

JUST_BELOW_WRAP: Final = 0xFFFF_FFF0
OTHERS: Final = "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\nmtu = 9000\noffloads = ["sg", "csum", "tso"]\n'
    for name, path in (("anna", "split"), ("bypa", "bypass"))
)
HEAD: Final = "[nic]\nmtu = 9000\npause_us = 1_000_000\n[dom0]\nageing_s = 86400\n"
FRAMES: Final = 600
PLAIN: Final = ("--length 48", "--length 64", "--length 1514", "--length 3137")
CHAINS: Final = (
    "--length 4097",
    "--length 9014",
    "--length 9000 --slot 500",
    "--length 1514 --slot 100",
    "--length 2001 --slot 1999",
)
TCP: Final = ("--frame tcp4 --length 1502", "--frame tcp4 --length 65535", "--frame tcp4 --length 20000 --unit 536 --slot 1200")
TCP6: Final = tuple(words.replace("tcp4", "tcp6") for words in (TCP[0].replace("1502", "1522"), *TCP[1:]))


def of(program: Path, name: str, text: str, tmp_path: Path, body: Callable[[Netfronts], Awaitable[None]]) -> None:
    """Run a body in a topology: `text` after the head and before the lab's guests, {program} for a C guest's."""

    async def main() -> None:
        async with netfronts(tmp_path, name, HEAD + text + OTHERS) as fronts:
            await body(fronts)

    run(main())


def test_streams_from_c_arrive_whole_everywhere(program: Path, tmp_path: Path) -> None:
    """One slot and chains of up to 18, at any place of a page; TCP's with its checksum blank and with a GSO extra info."""

    async def body(fronts: Netfronts) -> None:
        for to in ("wire", "anna", "bypa", "cd"):
            for words in (*PLAIN, *CHAINS, *TCP, *(TCP6 if to == "cd" else ())):
                print(to, words)
                stream, report = await fronts.send("cc", f"--to {to} {words}", FRAMES)
                await fronts.arrived(to, stream, FRAMES * report["units"])
        device = report["device"]
        assert device["tx_okay"] == device["tx_slots"] > device["tx_frames"] > 0
        assert device["tx_null"] == device["tx_extras"] > 0

    of(program, "from-c", guest("cc", program, "serve") + guest("cd", program, "serve"), tmp_path, body)


def test_streams_to_c_arrive_whole_from_everywhere(program: Path, tmp_path: Path) -> None:
    async def body(fronts: Netfronts) -> None:
        for sender in ("wire", "anna", "bypa"):
            for frame in (64, 1514, 4000, 9014, *(() if sender == "wire" else (65536,))):
                print(sender, frame)
                stream = await fronts.stream_to("cc", sender, frame, FRAMES)
                sent = FRAMES * (1 if frame < 65536 else (65535 - 54) // 8952)
                await fronts.arrived("cc", stream, sent)
        device = (await fronts.job("cc", "report"))["device"]
        assert device["rx_chains"] > 0
        assert device["rx_gso"] == device["rx_extras"] == 2 * FRAMES  # whole, from either guest
        assert device["rx_error"] == 0

    of(program, "to-c", guest("cc", program, "serve"), tmp_path, body)


WITHOUT: Final = [  # what is left out; whether GSO frames come, and blank checksums
    ("none", True, True), ("gso", False, True), ("gso,csum", False, False), ("sg", False, True), ("sg,csum,gso", False, False),
]  # fmt: skip


def test_what_c_does_not_accept_netback_does(program: Path, tmp_path: Path) -> None:
    """Segments and checksums, over IPv4 and IPv6; and to send it takes less, and cuts and sums up itself. Agreed anew each time."""

    async def body(fronts: Netfronts) -> None:
        for without, gso, blank in WITHOUT:
            print("without", without)
            before = (await fronts.job("less", f"reconnect --without {without}"))["device"]
            await fronts.announce("less")
            for frame in ("tcp4", "tcp6"):
                for one, other in (("cc", "less"), ("less", "cc")):
                    stream, report = await fronts.send(one, f"--to {other} --frame {frame} --length 30000", FRAMES)
                    await fronts.arrived(other, stream, FRAMES * report["units"])
            after = (await fronts.job("less", "report"))["device"]
            more = {name for name, count in after.items() if count > before[name]}
            seen = tuple(name in more for name in ("rx_gso", "rx_extras", "rx_chains", "tx_extras", "rx_blank", "rx_error"))
            assert seen == (gso, gso, gso, gso, blank, False)
        long = await fronts.job("less", "send --to wire --length 9000")
        assert long["error"] == "a frame of several slots takes feature-sg"
        stream, _ = await fronts.send("less", "--to wire --length 4096", 100)
        await fronts.arrived("wire", stream, 100)

    of(program, "less", guest("cc", program, "serve") + guest("less", program, "serve"), tmp_path, body)


def test_round_trips(program: Path, tmp_path: Path) -> None:
    """C asks and is asked; each wakes the other for every frame."""

    async def body(fronts: Netfronts) -> None:
        await fronts.lab.call("nic", "wire_mode", mode="reflect")
        for to in ("wire", "anna", "bypa", "cd"):
            for length in (64, 1514) if to != "cd" else (64, 1514, 9014):
                report = await fronts.job("cc", f"ping --to {to} --length {length} --stream {fronts.stream()} --frames 300")
                assert (report["error"], report["sent"], report["answered"]) == (None, 300, 300)
                assert report["round_trip_ns"]["min"] <= report["round_trip_ns"]["p50"] <= report["round_trip_ns"]["max"]
        for sender in ("anna", "bypa"):
            asked = await fronts.lab.call(
                sender, "round_trips", mac=fronts.macs["cc"], frame=64, stream=fronts.stream(), frames=300
            )
            assert asked["answered"] == 300

    of(program, "trips", guest("cc", program, "serve") + guest("cd", program, "serve"), tmp_path, body)


def test_indices_wrap(program: Path, tmp_path: Path) -> None:
    async def body(fronts: Netfronts) -> None:
        for words in ("--length 64", "--length 9000 --slot 500", "--frame tcp4 --length 20000"):
            await fronts.job("cc", f"reconnect --start {JUST_BELOW_WRAP}")
            stream, report = await fronts.send("cc", f"--to wire {words}", FRAMES)
            await fronts.arrived("wire", stream, FRAMES * report["units"])
            stream = await fronts.stream_to("cc", "anna", 9014, FRAMES)
            await fronts.arrived("cc", stream, FRAMES)
            indices = (await fronts.job("cc", "report"))["indices"]
            assert all(0 < index < JUST_BELOW_WRAP for index in indices.values()), indices

    of(program, "wrap", guest("cc", program, "serve", "--start", str(JUST_BELOW_WRAP)), tmp_path, body)


def shared(fronts: Netfronts, name: str) -> "np.ndarray[Any, Any]":
    """A guest's RAM."""
    return np.memmap(f"/dev/shm/xbl.{os.getuid()}.{fronts.lab.name}.{name}.ram", np.uint32, "r")


def test_c_notifies_only_who_has_asked(program: Path, tmp_path: Path) -> None:
    """A back end that does not run has asked once, at most: of four bursts that fill the ring, one is notified."""

    async def body(fronts: Netfronts) -> None:
        stream, ram, dom0 = fronts.stream(), shared(fronts, "cc"), fronts.runner.pids["dom0"]
        before = (await fronts.job("cc", "report"))["device"]
        produced = (4096 + REQ_PROD) // 4  # the transmit ring is page 1
        start = int(ram[produced])
        await stop(dom0)
        try:
            number = await fronts.tell("cc", f"send --to wire --stream {stream} --frames 256")

            async def filled() -> bool:
                return (int(ram[produced]) - start) % (1 << 32) == 256

            await until(filled, "C to have filled its ring")
        finally:
            os.kill(dom0, signal.SIGCONT)
        after = (await fronts.report("cc", number))["device"]
        assert after["tx_frames"] - before["tx_frames"] == 256
        assert after["notifications"] - before["notifications"] <= 1
        assert after["suppressed"] - before["suppressed"] >= 3
        await fronts.arrived("wire", stream, 256)

    of(program, "hold-off", guest("cc", program, "serve"), tmp_path, body)


def test_c_is_notified_only_when_it_has_asked(program: Path, tmp_path: Path) -> None:
    """A front end that does not run has asked once: however many frames come, it is sent one event."""

    async def body(fronts: Netfronts) -> None:
        counters, row, pid = await fronts.lab.counters(), f"dom0/vif{fronts.domids['cc']}:cc", fronts.pid("cc")

        def counts() -> dict[str, int]:
            return counters.read()[row]

        before, frames = (await fronts.runner._settled())[row], Count.RX_FRAMES.name.lower()
        await stop(pid)
        try:
            streams = [await fronts.stream_to("cc", "wire", 64, 50) for _ in range(4)]

            async def delivered() -> bool:
                return counts()[frames] - before[frames] == 200

            await until(delivered, "the frames to be in C's pages")
            events = counts()["notifications"] - before["notifications"]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert events <= 1
        for stream in streams:
            await fronts.arrived("cc", stream, 50)

    of(program, "asked", guest("cc", program, "serve"), tmp_path, body)


@pytest.mark.long
def test_everything_at_once(program: Path, tmp_path: Path) -> None:
    """Two C guests, one of each of the lab's, and the wire, each sending to its neighbour, all sizes, indices over the wrap."""

    async def body(fronts: Netfronts) -> None:
        rounds = ("--length 64", "--length 1514", "--length 9014", "--length 9000 --slot 500", "--frame tcp4 --length 65535")
        for words in rounds:
            sent = await asyncio.gather(
                fronts.send("cc", f"--to cd {words}", 5000), fronts.send("cd", f"--to anna {words}", 5000),
                fronts.stream_to("bypa", "anna", 1514, 5000), fronts.stream_to("cc", "bypa", 9014, 5000),
            )  # fmt: skip
            (one, first), (other, second), third, fourth = sent
            await fronts.arrived("cd", one, 5000 * first["units"])
            await fronts.arrived("anna", other, 5000 * second["units"])
            await fronts.arrived("bypa", third, 5000)
            await fronts.arrived("cc", fourth, 5000)

    text = guest("cc", program, "serve", "--start", str(JUST_BELOW_WRAP)) + guest("cd", program, "serve")
    of(program, "all", text, tmp_path, body)
