"""The warm fork server: imports everything and loads all compiled code once, then forks a process in milliseconds.

It has one task (a process with threads could not enter a user namespace) and no state. It forks twice, so that
the new process becomes the keeper's child. Protocol, on its socket (the frames of hyp/control.py, served one at a time)::

    event  compiling {kernels}                                 how many there are to compile, before that begins
    event  progress {kernel, index, total, seconds}            one was compiled
    event  notice {text}                                       something that its user ought to know
    event  warm {seconds}; or failed {cause}, and the end
    fork   {name, role, module, config, purposes, title} + descriptors → {pid}

`purposes` name the descriptors in order; `title` is the command line that ps shows.
"""

import array
import importlib
import os
import socket
import sys
import time
import traceback
from typing import Any

import msgpack

from hyp import linux
from hyp.control import MAX_FDS, MAX_MESSAGE

MAX_CAUSE = 1000


def serve(sock: socket.socket, modules: list[str]) -> None:
    """Load, then fork on request until the keeper closes the socket."""
    linux.set_name("forkserver")
    linux.die_with_parent()
    sock.setblocking(True)
    _load(sock, modules)
    while True:
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        packet, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        request = msgpack.unpackb(packet)
        pid = _fork_twice(request["args"], list(fds))
        for fd in fds:
            os.close(fd)
        sock.send(msgpack.packb({"id": request["id"], "gen": 1, "ok": {"pid": pid}}))


def _load(sock: socket.socket, modules: list[str]) -> None:
    def tell(op: str, **args: Any) -> None:
        sock.send(msgpack.packb({"op": op, "args": args}))

    start = time.perf_counter()
    os.environ.pop("NUMBA_DISABLE_JIT", None)  # there is no lab without compiled code
    try:
        from hyp import kernels  # after the fork from the keeper, which has no compiled code

        for module in modules:
            importlib.import_module(module)
        if absent := kernels.missing():
            tell("compiling", kernels=len(absent))
        for name, index, total, compiled, seconds in kernels.load_all(together=True):
            if compiled:
                tell("progress", kernel=name, index=index, total=total, seconds=seconds)
    except Exception as error:
        tell("failed", cause=f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_CAUSE])
        raise
    if kernels.store.trouble is not None:
        tell("notice", text=f"compiled code is not kept ({kernels.store.trouble}); XBL_CACHE can name another folder for it")
    tell("warm", seconds=time.perf_counter() - start)


def _fork_twice(args: dict[str, Any], fds: list[int]) -> int:
    """Fork a grandchild that becomes the keeper's child; returns its pid."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        intermediate = os.getpid()
        grandchild = os.fork()
        if grandchild == 0:
            _become(intermediate, args, fds)
        os.write(writer, grandchild.to_bytes(4, "little"))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    pid = int.from_bytes(os.read(reader, 4), "little")
    os.close(reader)
    return pid


def _become(intermediate: int, args: dict[str, Any], fds: list[int]) -> None:
    """In the grandchild: wait to be adopted, keep only one's own descriptors, run the role, exit."""
    status = 1
    try:
        while os.getppid() == intermediate:  # it is exiting; then the keeper is the parent, and its death must be ours
            os.sched_yield()
        linux.die_with_parent()
        keep = sorted({0, 1, 2, *fds})
        for low, high in zip(keep, [*keep[1:], 1 << 20], strict=True):
            os.closerange(low + 1, high)
        from hyp.process import run_role

        sockets = dict(zip(args["purposes"], fds, strict=True))
        linux.set_title(*args["title"])
        status = run_role(args["name"], args["role"], args["module"], args["config"], sockets)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
