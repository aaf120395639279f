"""The warm fork server: imports everything and loads all compiled code once, then forks a process in milliseconds.

It has one task (a process with threads could not enter a user namespace) and no state. It forks twice, so that
the new process becomes the keeper's child. Protocol, on its socket (the frames of hyp/control/, served one at a time)::

    event  compiling {kernels, kept}                           how many there are to compile, before that begins; for the cache?
    event  progress {kernel, index, total, seconds}            one was compiled
    event  notice {text}                                       something that its user ought to know
    event  warm {seconds}; or failed {cause}, and the end
    fork   {name, role, module, config, cpus, spins, purposes, title} + descriptors → {pid}, or an error that names the limit met

`purposes` name the descriptors in order: sockets, and `output`, which is to be standard output and error. `title` is the command
line that ps shows; `cpus` is where it may run (None: anywhere), and `spins` whether its loops may spin. A guest whose `config` says
so is confined (domu/confinement/confine.py).
"""

import array
import errno
import gc
import importlib
import os
import select
import socket
import sys
import time
import traceback
from dataclasses import replace
from typing import Any, NoReturn

import msgpack

from domu.confinement.confine import ENVIRONMENT, Confinement, confinement_of, enter, furnish, seal
from hyp import limits, linux
from hyp.control import MAX_FDS, MAX_MESSAGE, close_all, describe
from hyp.net.steps import SetupError

MAX_CAUSE = 1000


def serve(sock: socket.socket, modules: list[str]) -> None:
    """Load, then fork on request until the keeper closes the socket."""
    linux.set_name("forkserver")
    linux.die_with_parent()
    sock.setblocking(True)
    _load(sock, modules)
    request = bytearray(MAX_MESSAGE)
    while True:
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        size, ancillary, _, _ = sock.recvmsg_into([request], space, socket.MSG_CMSG_CLOEXEC)
        if size == 0:
            return
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        try:
            sock.send(_answer(memoryview(request)[:size], list(fds)))
        finally:
            close_all(fds)
            request[:size] = bytes(size)  # whoever is forked next is to find nothing of it


def _load(sock: socket.socket, modules: list[str]) -> None:
    def tell(op: str, **args: Any) -> None:
        sock.send(msgpack.packb({"op": op, "args": args}))

    start = time.perf_counter()
    try:
        from hyp import kernels  # after the fork from the keeper, which has no compiled code

        for module in modules:
            importlib.import_module(module)
        if absent := kernels.missing():
            tell("compiling", kernels=len(absent), kept=kernels.store.is_writable())
        for name, index, total, compiled, seconds in kernels.load_all(together=True):
            if compiled:
                tell("progress", kernel=name, index=index, total=total, seconds=seconds)
    except Exception as error:
        tell("failed", cause=f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_CAUSE])
        raise
    if kernels.store.trouble is not None:
        tell("notice", text=f"compiled code is not kept ({kernels.store.trouble}); XBL_CACHE can name another folder for it")
    gc.freeze()  # what is loaded is there for good: whoever is forked does not look through it, in the turn of whom it serves
    tell("warm", seconds=time.perf_counter() - start)


def _answer(request: memoryview, fds: list[int]) -> bytes:
    """Fork a grandchild that becomes the keeper's child; returns the reply.

    The child reads the request, so that nothing of it is left here, where others are forked later, unless there is no child.
    """
    try:
        reader, writer = os.pipe()
        try:
            try:
                child = os.fork()
                if child == 0:
                    _fork_once_more(writer, request, fds)
            finally:
                os.close(writer)  # else there is no end of it where the child was killed
            os.waitpid(child, 0)
            return os.read(reader, select.PIPE_BUF) or _refusal(request, OSError(errno.ECHILD, os.strerror(errno.ECHILD)))
        finally:
            os.close(reader)
    except OSError as error:
        return _refusal(request, error)


def _refusal(request: memoryview, error: OSError) -> bytes:
    """The reply that there is no such process, naming the limit if it is one."""
    asked = msgpack.unpackb(request)
    try:
        with limits.told_of_processes(asked["args"]["name"]):
            raise error
    except OSError as told:
        return bytes(msgpack.packb({"id": asked["id"], "gen": 1, "error": describe(told)}))


def _fork_once_more(writer: int, request: memoryview, fds: list[int]) -> NoReturn:
    """In the child: fork the grandchild, tell its pid or why there is none, exit."""
    told = b""
    try:
        asked = msgpack.unpackb(request)
        args = asked["args"]
        if len(fds) < len(args["purposes"]):
            raise limits.TooFew(errno.EMFILE, limits.descriptor_reason())
        confinement, refusal, me = confinement_of(args["config"]), None, os.pidfd_open(os.getpid())
        if confinement is not None:
            try:
                enter(confinement)
            except SetupError as error:  # the grandchild tells
                refusal = error
        grandchild = os.fork()
        if grandchild == 0:
            _become(me, args, fds, confinement, refusal)
        told = msgpack.packb({"id": asked["id"], "gen": 1, "ok": {"pid": grandchild}})
    except OSError as error:
        told = _refusal(request, error)
    except BaseException:
        traceback.print_exc()
    finally:  # whatever it is: nobody but the fork server goes on serving
        os.write(writer, told)
        os._exit(0)


def _become(
    parent: int, args: dict[str, Any], fds: list[int], confinement: Confinement | None, refusal: SetupError | None
) -> NoReturn:
    """In the grandchild: wait to be adopted, keep only one's own descriptors, run the role, exit. `parent`: a pidfd."""
    status = 1
    try:
        select.select([parent], [], [])  # it is exiting; then the keeper is the parent, and its death must be ours
        linux.die_with_parent()
        sockets = dict(zip(args["purposes"], fds, strict=True))
        if (output := sockets.pop("output", None)) is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
            fds.remove(output)
        keep = sorted({0, 1, 2, *fds})
        for low, high in zip(keep, [*keep[1:], 1 << 20], strict=True):
            os.closerange(low + 1, high)
        from hyp.events import never_spin
        from hyp.process import run_role

        if args["role"] == "domu":
            os.setpgid(0, 0)  # the group, which all others are in, it could signal and make nicer, in whatever namespace it is
            limits.lower_descriptor_limit()
        if args["cpus"] is not None:
            os.sched_setaffinity(0, args["cpus"])
        if not args["spins"]:
            never_spin()
        linux.set_title(*args["title"])
        if confinement is not None:
            _confine(confinement, refusal, args, sockets)
        status = run_role(args["name"], args["role"], args["module"], args["config"], sockets)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _confine(confinement: Confinement, refusal: SetupError | None, args: dict[str, Any], sockets: dict[str, int]) -> None:
    """Confine the guest that this process is, its program's preparations made. What is refused is told to the keeper."""
    module, config = importlib.import_module(args["module"]), args["config"]
    try:
        if refusal is not None:
            raise refusal
        from hyp.kernels import store  # here, as in `_load`

        cache = () if store.folder is None else (str(store.folder),)
        furnish(replace(confinement, hidden=(*confinement.hidden, *cache)))
        if hasattr(module, "prepare"):
            config["prepared"] = module.prepare(args["name"], config, sockets)
        seal(confinement)
        os.environ.update(ENVIRONMENT)
    except (SetupError, OSError) as error:
        cause = f"it cannot be confined: {error}"[:MAX_CAUSE]
        socket.socket(fileno=sockets["console"]).send(msgpack.packb({"op": "failed", "args": {"cause": cause}}))
        raise
