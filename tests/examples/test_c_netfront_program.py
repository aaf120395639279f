"""What examples/c_netfront is made of: its parts held against ours, its command line, its README and its topology."""

import asyncio
import ctypes
import json
import os
import random
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from bench.peers.c_netfront import EXAMPLE
from lab.owner import Lab
from lab.topology import load
from tests.support.c_netfront import guest
from tests.support.drivers import compose
from tests.support.labs import launch, run, staying_up, topology, topology_file, until, wait_until
from tests.support.packets import ones_sum
from tests.support.patience import patient

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("gcc", "xen-headers")]

TO, OWN = "02:00:00:00:ff:01", "02:00:00:00:00:07"
ENDS: Final = bytes.fromhex((TO + OWN).replace(":", ""))
SEED: Final = 7


# --- parts ------------------------------------------------------------------------------------------------------------


class Unpacker(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("end", ctypes.c_void_p))


class Shape(ctypes.Structure):
    _fields_ = (("v6", ctypes.c_bool), ("units", ctypes.c_uint), ("unit", ctypes.c_uint))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """msgpack.c and frames.c as a library."""
    library = tmp_path_factory.mktemp("parts") / "parts.so"
    sources = [EXAMPLE / name for name in ("msgpack.c", "frames.c")]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", library, *sources], check=True, timeout=patient(60))
    loaded = ctypes.CDLL(str(library))
    for name in ("unpack_value", "unpack_number", "unpack_string", "unpack_skip", "verify"):
        getattr(loaded, name).restype = ctypes.c_bool
    loaded.write_tcp_frame.restype = ctypes.c_size_t
    return loaded


def unpacker(packet: bytes) -> tuple[Unpacker, Any]:
    """One on a packet, and what keeps that where it is."""
    kept = ctypes.create_string_buffer(packet, len(packet))
    return Unpacker(ctypes.addressof(kept), ctypes.addressof(kept) + len(packet)), kept


def anything(chance: random.Random, depth: int = 0) -> Any:
    """A value of any kind that msgpack has."""
    number = chance.choice([0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1])
    plain = [
        None,
        True,
        False,
        1.5,
        -1,
        -33,
        -40000,
        -(2**40),
        number,
        "x" * chance.choice([0, 31, 32, 255, 256]),
        b"y" * chance.choice([0, 300]),
    ]
    if depth == 4 or chance.random() < 0.5:
        return chance.choice(plain)
    count = chance.choice([0, 1, 3, 15, 16])
    if chance.random() < 0.5:
        return [anything(chance, depth + 1) for _ in range(count)]
    return {f"k{k}": anything(chance, depth + 1) for k in range(count)}


def test_any_message_is_read_and_none_that_is_cut_off(parts: ctypes.CDLL) -> None:
    print(f"seed {SEED}")
    chance, numbers = random.Random(SEED), 0
    for _ in range(300):
        message = {f"key {k}": anything(chance) for k in range(chance.randrange(20))}
        packet = msgpack.packb(message)
        whole, kept = unpacker(packet)
        for key, value in message.items():
            found, number = Unpacker(), ctypes.c_uint64()
            assert parts.unpack_value(ctypes.byref(whole), key.encode(), ctypes.byref(found))
            is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            assert parts.unpack_number(ctypes.byref(found), ctypes.byref(number)) == is_number
            if is_number:
                assert number.value == value
                numbers += 1
        assert not parts.unpack_value(ctypes.byref(whole), b"none such", ctypes.byref(Unpacker()))
        assert parts.unpack_skip(ctypes.byref(whole))
        assert whole.at == whole.end
        cut, kept_too = unpacker(packet[: chance.randrange(len(packet))])
        assert not parts.unpack_skip(ctypes.byref(cut))
        del kept, kept_too
    assert numbers > 100


def test_its_test_frame_is_ours(parts: ctypes.CDLL) -> None:
    buffer = ctypes.create_string_buffer(9100)
    for length, stream, sequence in [
        (48, 1, 0), (49, 7, 3), (64, 0x3FFF, 2**40), (1514, 12, 99), (1511, 1, 1), (9014, 5, 2), (1514, 0x4001, 8),
    ]:  # fmt: skip
        parts.write_test_frame(buffer, ctypes.c_size_t(length), ENDS, ctypes.c_uint16(stream), ctypes.c_uint64(sequence))
        seen = 64 if stream & 0x4000 else length  # what is behind that is not written
        assert buffer.raw[:seen] == compose(TO, OWN, length, stream, sequence)[:seen]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("blank", [False, True])
def test_its_tcp_frames_have_right_headers_and_sums(parts: ctypes.CDLL, v6: bool, blank: bool) -> None:
    buffer, shape = ctypes.create_string_buffer(65536), Shape(v6, 40, 1448)
    header = 74 if v6 else 54
    for number, first, count in ((0, 0, 40), (1, 0, 1), (7, 39, 1), (2**31, 3, 20)):
        arguments = [ctypes.c_uint16(9), ctypes.c_uint32(number), first, count, ctypes.c_bool(blank)]
        length = parts.write_tcp_frame(buffer, ENDS, ctypes.byref(shape), *arguments)
        frame = buffer.raw[:length]
        assert length == header + count * 1448
        assert frame[:12] == ENDS
        if v6:
            assert frame[12:14] == b"\x86\xdd"
            assert int.from_bytes(frame[18:20], "big") == length - 54
            pseudo = frame[22:54] + (length - 54).to_bytes(4, "big") + (6).to_bytes(4, "big")
        else:
            assert frame[12:14] == b"\x08\x00"
            assert int.from_bytes(frame[16:18], "big") == length - 14
            assert ones_sum(frame[14:34]) == 0xFFFF
            pseudo = frame[26:34] + (6).to_bytes(2, "big") + (length - 34).to_bytes(2, "big")
        tcp = frame[header - 20 :]
        if blank:
            assert int.from_bytes(tcp[16:18], "big") == ones_sum(pseudo)
        else:
            assert ones_sum(pseudo + tcp) == 0xFFFF


@pytest.mark.parametrize("kind", ["test", "tcp4", "tcp6"])
def test_it_sees_every_byte_that_is_wrong(parts: ctypes.CDLL, kind: str) -> None:
    print(f"seed {SEED}")
    chance, buffer, trackers = random.Random(SEED), ctypes.create_string_buffer(4000), ctypes.create_string_buffer(64 * 128)
    if kind == "test":
        length, begin = 1511, 16
        parts.write_test_frame(buffer, ctypes.c_size_t(length), ENDS, ctypes.c_uint16(3), ctypes.c_uint64(0))
    else:
        shape = Shape(kind == "tcp6", 2, 1000)
        header = 74 if shape.v6 else 54
        arguments = [ctypes.c_uint16(3), ctypes.c_uint32(0), 0, 2, ctypes.c_bool(False)]
        length, begin = parts.write_tcp_frame(buffer, ENDS, ctypes.byref(shape), *arguments), header
    good = buffer.raw[:length]

    def verified(frame: bytes) -> bool:
        return bool(parts.verify(trackers, frame, ctypes.c_size_t(length), ctypes.c_bool(False), ctypes.c_int64(1)))

    for _ in range(300):
        at = chance.randrange(begin, length)
        assert not verified(good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :]), at
    assert verified(good)
    assert not verified(good), "twice"


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "said"), [
    ("", "which job? send, ping"),
    ("sent", "job sent: it should be report or send or ping"),
    ("send", "send : it should be with --to"),
    ("send --to 1:2:3", "--to 1:2:3: it should be a MAC address"),
    ("send --to 02:00:00:00:00:01 --length 20", "--length 20: it should be 48 to 65535"),
    ("send --to 02:00:00:00:00:01 --length -1", "--length -1: it should be"),
    ("send --to 02:00:00:00:00:01 --length 9015", "--length of a test frame: it should be 9014 at most"),
    ("send --to 02:00:00:00:00:01 --frame tcp6 --length 1500", "--length of a TCP frame: it should be so long"),
    ("send --to 02:00:00:00:00:01 --length 9000 --slot 499", "--slot : it should be so large that a frame has 18 slots"),
    ("send --to 02:00:00:00:00:01 --frames 5x", "--frames 5x: it should be"),
    ("send --to 02:00:00:00:00:01 --frames", "--frames : it should be followed by its value"),
    ("send --to 02:00:00:00:00:01 --unit 1001 --frame tcp4 --length 3000", "--unit : it should be a multiple of 8"),
    ("ping --to 02:00:00:00:00:01 --frame tcp4 --length 3000", "--frame tcp4: it should be test"),
    ("reconnect --frames 5", "reconnect : it should be with --to"),
    ("reconnect --rings old", "--rings old: it should be fresh or kept"),
    ("serve --without sg,tso", "--without sg,tso: it should be of sg,csum,gso"),
    ("serve --colour red", "option --colour: it should be one that README.md names"),
    ("spoil --to 02:00:00:00:00:01 --fault nothing", "--fault nothing: it should be cut-off or no-last"),
])  # fmt: skip
def test_it_says_what_is_wrong_with_a_command_line(program: Path, words: str, said: str) -> None:
    done = subprocess.run([program, *words.split()], capture_output=True, text=True, timeout=patient(10))
    assert done.returncode == 2
    assert done.stderr.startswith("c_netfront: ")
    assert said in done.stderr


def test_outside_of_a_topology_it_says_so(program: Path) -> None:
    done = subprocess.run([program, "serve"], capture_output=True, text=True, timeout=patient(10))
    assert done.returncode == 1
    assert done.stderr.startswith("c_netfront: descriptor 3 should be the hypercall socket: ")


def log_of(lab: Lab, name: str = "cc") -> str:
    """What the guest has printed."""
    log = lab._rundir.guest_log(name)
    return log.read_text(errors="replace") if log.exists() else ""


def test_a_job_on_the_command_line_ends_the_program(program: Path, tmp_path: Path) -> None:
    """It closes its device, reports, and ends with status 0."""
    text = guest("cc", program, "send", "--to", TO, "--frames", "700", "--stream", "9")

    async def main() -> None:
        async with Lab(topology(tmp_path, "one-job", text)) as lab:

            async def arrived() -> bool:
                return bool((await lab.call("nic", "wire_report", stream=9))["received"]["frames"] == 700)

            await until(arrived, "its frames")

            async def ended() -> bool:
                status = (await lab.keeper("status")).value
                return {one["name"]: one["state"] for one in status["processes"]}["cc"] == "ended"

            await until(ended, "its end")
            assert lab.deaths == {}

            async def reported() -> bool:
                return '{"job": "send"' in log_of(lab)

            await until(reported, "its report")
            report = json.loads(next(line for line in log_of(lab).splitlines() if line.startswith('{"job": "send"')))
            assert (report["error"], report["sent"], report["device"]["tx_okay"]) == (None, 700, 700)

    run(main())


@pytest.mark.parametrize(("path", "memory", "said"), [
    ("bypass", "16 MiB", 'xenstore: device/vif: No such file or directory. Has this guest path = "split"?'),
    ("split", "4 MiB", ""),
])  # fmt: skip
def test_in_a_guest_that_will_not_do_it_says_so(program: Path, tmp_path: Path, path: str, memory: str, said: str) -> None:
    """The least memory that a guest may have is enough."""
    gate = tmp_path / "gate"  # not before all are ready: that would be a start that failed
    os.mkfifo(gate)
    script = f"read line < {gate}; exec {program} send --to {TO} --frames 10"
    text = guest("cc", "sh", "-c", script, path=path) + f'memory = "{memory}"\n'

    async def main() -> None:
        async with Lab(topology(tmp_path, "wrong", text)) as lab:
            await asyncio.to_thread(gate.write_text, "go\n")
            if said:
                assert "ended with status 1" in await lab.death_of({"cc"})

                async def printed() -> bool:
                    return said in log_of(lab)

                await until(printed, "its words")
                return

            async def reported() -> bool:
                return '{"job": "send"' in log_of(lab)

            await until(reported, "its report")

    run(main())


# --- what is written of it --------------------------------------------------------------------------------------------


def test_readme_names_all_there_is() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    for path in EXAMPLE.glob("*.c"):
        assert f"`{path.name}`" in readme
    names = (EXAMPLE / "job.c").read_text()
    assert set(re.findall(r'"(--[a-z]+)"', names)) <= set(re.findall(r"--[a-z]+", readme))
    faults = re.findall(r'"([a-z-]+)"', (EXAMPLE / "faults.c").read_text().partition("fault_names[] = {")[2].partition("NULL")[0])
    assert len(faults) == 15
    for name in faults:
        assert f"`{name}`" in readme


def test_readmes_commands_do_what_it_says(program: Path, tmp_path: Path) -> None:
    lines = re.findall(r"python ../../launch.py (store .*)", (EXAMPLE / "README.md").read_text())
    text = (EXAMPLE / "c-netfront.toml").read_text().replace("./c_netfront", str(program))
    file = topology_file(tmp_path, "readme", text)
    with staying_up(file):
        for line in lines:
            words = shlex.split(line.partition("#")[0])
            command = [*words[:2], "--topology", file.stem, *words[2:]]
            if words[1] == "write":
                done = launch(*command)
                assert done.returncode == 0, done.stdout + done.stderr
            else:
                wait_until(lambda command=command: sent(*command), "the frames to be sent")  # type: ignore[misc]
    assert [line.split()[1] for line in lines] == ["write", "read", "write"]


def sent(*command: str) -> bool:
    """Whether this command shows the report of 100000 frames that have been sent."""
    shown = launch(*command).stdout
    report = json.loads(shown) if shown.startswith("{") else {}
    return report.get("sent") == 100_000 and report["error"] is None


def test_its_topology_is_one() -> None:
    guests = load(EXAMPLE / "c-netfront.toml").plain()["guest"]
    assert [(one["name"], one["path"]) for one in guests] == [("carol", "split"), ("chris", "split"), ("anna", "split")]
    assert guests[0]["program"]["argv"][0] == "./c_netfront"


def test_all_layouts_are_xens() -> None:
    """No structure of its own that is shared with anybody, and no number where Xen has a name."""
    for path in EXAMPLE.glob("*.[ch]"):
        text = path.read_text()
        assert not re.search(r"\(packed|#pragma", text), path
        defined = re.findall(r"#\s*define\s+((?:NET[TR]XF|XEN_NETIF|GTF|XS|RING)_\w+)", text)
        assert defined in ([], ["RING_FINAL_CHECK_AHEAD"]), path
