"""The role of a guest that turns on those who serve it, as a test tells it to on its console. It has no device.

send {where, packets, descriptor}   raw packets, each with how often, on its "console", "hypercalls" or "xenstore"; what came of the
                                    last one, which has a descriptor ("lingering": its last close lasts; "": none)
ask {op, args, times}               a hypercall, so many at a time: how often which error, or "ok", and one of the messages
deaf {}                             asks for descriptors until there is no more room for it, and takes no answers; how often
hears {}                            takes them again
pairs {}                            event channels with itself until there are no more: how many, and the error
region {what}                       "seal", "cut" or "lease" its RAM or counters; what came of it
table {}                            cut off its grant table, or seal it; what came of either
prints {text, times}                on its standard output
orphans {count}                     children of children, which end
end {status}                        the process ends
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections import Counter
from typing import Any

import msgpack

from hyp.control import Channel, Refused, close_all
from hyp.process import Process
from tests.support.control_ends import lingering

F_SEAL_FUTURE_WRITE = 0x10
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Hostile:
    """What the guest does."""

    def __init__(self, process: Process) -> None:
        self._process, self._hyp = process, process.hypercalls()
        self._kept = contextlib.ExitStack()  # other ends of what it has sent: as long as it lives
        for operation in (
            self.send, self.ask, self.deaf, self.hears, self.pairs, self.region, self.table, self.prints, self.orphans, self.end,
        ):  # fmt: skip
            process.serve(operation.__name__, operation)

    def _socket(self, where: str) -> socket.socket:
        channels: dict[str, Channel] = {"console": self._process.console, "hypercalls": self._hyp}
        number = channels[where]._sock.fileno() if where in channels else self._process.sockets["xenstore"]
        return socket.socket(fileno=os.dup(number))

    async def send(self, where: str, packets: list[tuple[bytes, int]], descriptor: str) -> str:
        *before, last = [packet for packet, times in packets for _ in range(times)]
        with self._socket(where) as sock:
            for packet in before:
                await self._send(sock, packet, [])
            fds = [self._kept.enter_context(lingering())] if descriptor else []
            try:
                await self._send(sock, last, fds)
            except OSError as error:  # its own close would be the last one
                return errno.errorcode[error.errno or 0]
            close_all(fds)
            return "sent"

    @staticmethod
    async def _send(sock: socket.socket, packet: bytes, fds: list[int]) -> None:
        while True:
            try:
                socket.send_fds(sock, [packet], fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0)

    async def ask(self, op: str, args: dict[str, Any], times: int) -> dict[str, Any]:
        async def once() -> str:
            try:
                for fd in (await self._hyp.call(op, **args)).fds:
                    os.close(fd)
                return "ok"
            except Refused as error:
                told.append(str(error))
                return error.name

        told: list[str] = []
        return {"came": Counter(await asyncio.gather(*(once() for _ in range(times)))), "told": told[-1] if told else ""}

    async def deaf(self) -> int:
        asyncio.get_running_loop().remove_reader(self._hyp._sock.fileno())
        sent = turns_full = 0
        with self._socket("hypercalls") as sock:
            while turns_full < 100:
                try:
                    sock.send(msgpack.packb({"id": 0, "op": "domain_info", "args": {}}))
                    sent, turns_full = sent + 1, 0
                except BlockingIOError:
                    turns_full += 1
                await asyncio.sleep(0)
        return sent

    def hears(self) -> None:
        asyncio.get_running_loop().add_reader(self._hyp._sock.fileno(), self._hyp._readable)

    async def pairs(self) -> dict[str, Any]:
        me = (await self._hyp.call("domain_info")).value["domid"]
        upcall = (await self._hyp.call("upcall_create")).value["upcall"]
        made = 0
        while True:
            try:
                port = (await self._hyp.call("evtchn_alloc_unbound", remote=me, upcall=upcall)).value["port"]
                os.close(await self._bound(me, port, upcall))
                made += 1
            except Refused as error:
                return {"made": made, "error": error.name, "told": str(error)}

    async def _bound(self, me: int, port: int, upcall: int) -> int:
        """The eventfd of a port, bound to another one. While it is too dear to notify, as on a busy machine, it asks again."""
        while True:
            try:
                return (await self._hyp.call("evtchn_bind_interdomain", remote=me, remote_port=port, upcall=upcall)).fds[0]
            except Refused as error:
                if error.name != "EBUSY":
                    raise

    async def region(self, what: str) -> str:
        ram, counters, _ = (await self._hyp.call("domain_info")).fds
        try:
            if what == "seal":
                fcntl.fcntl(ram, fcntl.F_ADD_SEALS, SEALS)
            elif what == "cut":
                os.ftruncate(ram, 0)
                os.ftruncate(counters, 0)
            else:
                for fd in (ram, counters):
                    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "done"

    async def table(self) -> list[str]:
        (table,) = (await self._hyp.call("gnttab_setup", frames=1)).fds
        came = []
        for spoil in (lambda: os.ftruncate(table, 0), lambda: fcntl.fcntl(table, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)):
            try:
                spoil()
                came.append("done")
            except OSError as error:
                came.append(errno.errorcode[error.errno or 0])
        return came

    def prints(self, text: str, times: int) -> None:
        for _ in range(times):
            sys.stdout.write(text)
        sys.stdout.flush()

    def orphans(self, count: int) -> None:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                os.fork()
                os._exit(0)
            os.waitpid(child, 0)

    def end(self, status: int) -> None:
        os._exit(status)


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the guest."""
    hostile = Hostile(process)
    process.ready()
    await process.stopped.wait()
    del hostile
