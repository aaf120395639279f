"""What is fuzzed: functions of bytes that return if all is well, whatever the bytes, and raise if a promise was broken.

A target builds its input out of the bytes by itself (`Dice`), so that hypothesis and atheris share it, and a case that was found is
a line of a file.
"""

import asyncio
import os
import socket
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack
import uvloop

from dom0.xenstore.server import Xenstored
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Message, MessageType, WireError
from hyp.control import Channel, ControlError, Refused, socketpair
from hyp.monitor.arguments import Integer, boolean
from hyp.xenstore.client import XenstoreClient
from lab.plan import plan
from lab.topology import TopologyError, parse

MOST: Final = 4096
PATIENCE_S: Final = 60.0


class Dice:
    """Choices that bytes make; out of bytes, it is always the first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        """0 to 255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def left(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def number(self) -> int:
        """Any number: small, negative, huge, or at a limit of 8, 16, 32 or 64 bits."""
        kind = self.byte()
        if kind < 128:
            return kind
        base = (0, 1 << 8, 1 << 16, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, -(1 << 63))[kind & 7]
        return base + self.byte() % 16 - 8 if kind & 8 else base

    def take(self, most: int = 64) -> bytes:
        """So many bytes at most."""
        count = self.byte() % (most + 1)
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def choose(self, among: Sequence[Any]) -> Any:
        """One of them."""
        return among[self.byte() % len(among)]


def _run(main: Callable[[], Any]) -> None:
    """Run a coroutine to its end; what nobody handled is an error."""
    unhandled: list[Any] = []

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(PATIENCE_S):
            await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())
    assert unhandled == []


# --- control frames ---------------------------------------------------------------------------------------------------


def _value(dice: Dice, depth: int = 0) -> Any:
    kind = dice.byte() % (9 if depth < 3 else 7)
    if kind == 7:
        return [_value(dice, depth + 1) for _ in range(dice.byte() % 5)]
    if kind == 8:
        return {dice.choose(("id", "op", "args", "a", "b", 5)): _value(dice, depth + 1) for _ in range(dice.byte() % 5)}
    word = dice.take().decode("utf-8", "replace")
    number = max(-(1 << 63), min(dice.number(), (1 << 64) - 1))
    return (None, True, number, word, dice.take(), 1.5, dice.choose(("add", "refuse", "none", "__init__")))[kind]


def _packet(dice: Dice) -> bytes:
    """A packet of the control protocol, or nearly one, or none."""
    kind = dice.byte() % 4
    if kind == 0:
        return dice.take(200)
    message: dict[Any, Any] = {"op": dice.choose(("add", "refuse", "later")), "args": {"a": _value(dice), "b": _value(dice)}}
    if kind == 1:
        message["id"] = dice.number() % (1 << 63)
    if kind == 3:
        message[dice.choose(("id", "op", "args", "gen", "ok", "error"))] = _value(dice)
    return bytes(msgpack.packb(message))


def control(data: bytes) -> None:
    """A hostile peer of a control channel: it ends its own channel at most. A bystander's call is answered."""

    def add(a: Any, b: Any) -> Any:
        return a + b

    def refuse(a: Any = None, b: Any = None) -> None:
        raise Refused("EPERM", repr(a))

    async def later(a: Any = None, b: Any = None) -> Any:
        await asyncio.sleep(0)
        return [a, b]

    async def body() -> None:
        dice, handlers = Dice(data), {"add": add, "refuse": refuse, "later": later}
        (ours, theirs), (ours2, theirs2) = socketpair(), socketpair()
        served = [Channel(one, dict(handlers), name="hostile") for one in (ours, ours2)]
        bystander = Channel(theirs2, name="server")
        before = len(os.listdir("/proc/self/fd"))
        try:
            for _ in range(40):
                if not dice.left():
                    break
                try:
                    if dice.byte() % 8 == 0:
                        socket.send_fds(theirs, [_packet(dice)], [0] * (dice.byte() % 4))
                    else:
                        theirs.send(_packet(dice))
                except OSError:
                    break
                await asyncio.sleep(0)
            assert (await bystander.call("add", a=20, b=22)).value == 42
            assert len(os.listdir("/proc/self/fd")) <= before, "descriptors were kept"
        finally:
            for channel in (*served, bystander):
                channel.close()
            theirs.close()

    _run(body)


# --- the store --------------------------------------------------------------------------------------------------------

_PATHS: Final = (
    "/local/domain/5/data",
    "/local/domain/5",
    "/local/domain/0/secret",
    "data",
    "",
    "/",
    "@releaseDomain",
    "/local/domain/5/data/a/b",
)
_PERMISSIONS: Final = ("n5", "b0", "r5", "w7", "x1", "n0")


def _request(dice: Dice) -> bytes:
    """A request to the store, or nearly one, or none."""
    kind = dice.byte()
    if kind % 16 == 0:
        return dice.take(40)
    type_ = dice.choose(list(MessageType)) if kind % 16 > 1 else dice.byte()
    parts = [dice.choose(_PATHS), *(dice.choose((*_PERMISSIONS, *_PATHS)) for _ in range(dice.byte() % 3))]
    payload = b"\0".join(part.encode() for part in parts) + (b"\0" if dice.byte() % 4 else b"") + dice.take(20)
    length = len(payload) if kind % 16 > 2 else dice.number() % (1 << 32)
    return xs_wire.HEADER.pack(int(type_), dice.byte(), dice.byte() % 4, length) + payload


def store(data: bytes) -> None:
    """A hostile guest of xenstored: what it may not write stays as it is, what it may not read it does not get."""

    async def body() -> None:
        dice, server = Dice(data), Xenstored()
        ours, theirs = socket.socketpair()
        mine, dom0 = socket.socketpair()
        for end in (ours, theirs, mine, dom0):
            end.setblocking(False)
        server.add_connection(0, mine)
        client = await XenstoreClient.open(dom0)
        try:
            server.introduce(5)
            await client.write("/local/domain/5/data", "")
            await client.set_perms("/local/domain/5/data", ["n5"])
            await client.write("/local/domain/0/secret", "the secret")
            server.add_connection(5, ours)
            heard = b""
            for _ in range(60):
                if not dice.left():
                    break
                try:
                    theirs.send(_request(dice))
                    await asyncio.sleep(0)
                    heard += theirs.recv(1 << 16)
                except BlockingIOError:
                    continue
                except OSError:
                    break
            assert await client.read("/local/domain/0/secret") == "the secret"
            assert b"the secret" not in heard
            assert await client.get_perms("/local/domain/0/secret") == ["n0"]
        finally:
            await client.close()
            theirs.close()
            for connection in list(server.connections.values()):
                server.remove_connection(connection)

    _run(body)


def wire(data: bytes) -> None:
    """The decoder of the store's messages: any cut of the bytes into pieces gives the same messages, or WireError."""
    whole, pieces = xs_wire.Decoder(), xs_wire.Decoder()

    def decode(decoder: xs_wire.Decoder, parts: Sequence[bytes]) -> tuple[list[Message], bool]:
        found: list[Message] = []
        try:
            for part in parts:
                found += decoder.feed(part)
        except WireError:
            return found, False
        return found, True

    at_once, fine = decode(whole, [data])
    in_pieces, also_fine = decode(pieces, [data[k : k + 7] for k in range(0, len(data), 7)])
    assert fine == also_fine
    assert not fine or at_once == in_pieces


# --- topology files ---------------------------------------------------------------------------------------------------

_TABLES: Final = {
    "memory": ("backing", "size"), "nic": ("engines", "queue", "mtu", "pause_us", "wire", "speed"), "dom0": ("memory", "ageing_s"),
    "spin": ("limit_us",), "model": ("profile", "price"), "cpu": ("hyp", "nic", "guests", "spin", "dom0"), "name": (),
}  # fmt: skip
_GUEST: Final = (
    "name", "path", "mac", "memory", "program", "address", "address6", "mtu", "queues", "offloads", "rate", "grants", "iommu",
    "link_local", "gateway", "batches", "confined", "trunk",
)  # fmt: skip
_VALUES: Final = (
    "", "auto", "posix", "sealed", "split", "bypass", "trapped", "cdna", "native", "tap", "traffic", "16 MiB", "4 GiB", "1500",
    "anna",
    "10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", "02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "strict", "copy", "map", "sg",
    "10 Mbit/s",
    "xen-4.x",
)  # fmt: skip


def _setting(dice: Dice, depth: int = 0) -> Any:
    kind = dice.byte() % (8 if depth < 2 else 6)
    if kind == 6:
        return [_setting(dice, depth + 1) for _ in range(dice.byte() % 4)]
    if kind == 7:
        return {
            dice.choose(("mode", "to", "mac", "frame", "pps", "argv", "anna", "hypercall_ns")): _setting(dice, depth + 1)
            for _ in range(3)
        }
    return (
        dice.choose(_VALUES),
        dice.number(),
        dice.choose(_VALUES),
        dice.byte() / 8,
        dice.byte() % 2 == 1,
        dice.take(20).decode("latin-1"),
    )[kind]


def topology(data: bytes) -> None:
    """A topology file of any content is refused with reasons, or can be planned."""
    dice = Dice(data)
    if dice.byte() % 8 == 0:
        try:
            tables: Any = tomllib.loads(data.decode("utf-8", "replace"))
        except tomllib.TOMLDecodeError:
            return
    else:
        tables = {}
        for _ in range(dice.byte() % 5):
            name = dice.choose(list(_TABLES))
            keys = _TABLES[name]
            tables[name] = (
                {dice.choose(keys): _setting(dice) for _ in range(dice.byte() % 4)} if keys and dice.byte() % 8 else _setting(dice)
            )
        tables["guest"] = [
            {"name": f"g{k}", "path": "bypass"} | {dice.choose(_GUEST): _setting(dice) for _ in range(dice.byte() % 4)}
            for k in range(dice.byte() % 4)
        ]
        if dice.byte() % 4 == 0:
            tables["workload"] = [
                {dice.choose(("kind", "from", "to", "frame", "frames", "seconds")): _setting(dice) for _ in range(5)}
            ]
    try:
        checked = parse(tables)
    except TopologyError as error:
        if not error.problems:
            raise RuntimeError("refused without a reason") from error
        return
    assert plan(checked.plain())


# --- hypercalls' arguments --------------------------------------------------------------------------------------------


class _Call:
    """As much of a call as an argument's check needs."""

    def __init__(self) -> None:
        self.checked: dict[str, Any] = {}

    def refused(self, sentence: str) -> Refused:
        return Refused("EINVAL", sentence)


def arguments(data: bytes) -> None:
    """An argument of a hypercall is refused, or what it is declared to be."""
    dice = Dice(data)
    low, high = sorted((dice.number(), dice.number()))
    value, call = _value(dice), _Call()
    for kind, fits in ((Integer(low, high), lambda v: type(v) is int and low <= v <= high), (boolean, lambda v: type(v) is bool)):
        try:
            assert fits(kind(call, "value", value))  # type: ignore[arg-type]
        except Refused:
            assert not fits(value)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target for target in (control, store, wire, topology, arguments)
}
"""By name."""
__all__ = ["TARGETS", "ControlError", "Dice"]
