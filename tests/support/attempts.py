"""What a guest that is confined tries. Python's standard library alone, so that any interpreter can run it as a program.

``python attempts.py TARGETS`` (JSON, see `attempt`) prints what came of it; as a guest's own program, with ``--store`` after it, it
writes that to ``data/attempts/0``, ``…/1``, … and ``…/end`` in xenstore, and waits.
"""

import ctypes
import errno
import fcntl
import json
import os
import platform
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

MANY, CHUNK = 1000, 32 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_BYTES = ctypes.create_string_buffer(8)
_VECTOR = (ctypes.c_size_t * 2)(ctypes.addressof(_BYTES), 8)
"""A struct iovec."""


def call(name: str, *arguments: Any) -> int:
    """A function of libc's. OSError."""
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def attempt(what: dict[str, Any]) -> dict[str, Any]:
    """Try everything. `what`: "pids" of others', "files" to read, "folders" to list and write to, "fixed" ones
    to write to, "sockets" to connect to.

    Returns for each attempt the errno's name, or what there was to be had.
    """
    tries: dict[str, Callable[[], Any]] = {}
    for pid in what["pids"]:
        tries[f"signal {pid}"] = lambda pid=pid: os.kill(pid, signal.SIGKILL)  # type: ignore[misc]
        tries[f"ptrace {pid}"] = lambda pid=pid: call("ptrace", 16, pid, 0, 0)  # type: ignore[misc]
        tries[f"read {pid}"] = lambda pid=pid: call("process_vm_readv", pid, _VECTOR, 1, _VECTOR, 1, 0)  # type: ignore[misc]
        tries[f"mem {pid}"] = lambda pid=pid: os.open(f"/proc/{pid}/mem", os.O_RDWR)  # type: ignore[misc]
        tries[f"fd {pid}"] = lambda pid=pid: os.listdir(f"/proc/{pid}/fd")  # type: ignore[misc]
    for path in what["files"]:
        tries[f"file {path}"] = lambda path=path: open(path, "rb").read(1)  # type: ignore[misc]  # noqa: SIM115
    for path in what["folders"]:
        tries[f"list {path}"] = lambda path=path: os.listdir(path)  # type: ignore[misc]
    for path in (*what["folders"], *what["fixed"]):
        tries[f"write {path}"] = lambda path=path: os.open(f"{path}/left-behind", os.O_CREAT | os.O_WRONLY)  # type: ignore[misc]
    for path in what["sockets"]:
        tries[f"connect {path}"] = lambda path=path: socket.socket(socket.AF_UNIX).connect(path)  # type: ignore[misc]
    tries["unshare"] = lambda: call("unshare", 0x10000000)
    tries["mount"] = lambda: call("mount", b"none", b"/sys", b"tmpfs", 0, None)
    tries["umount"] = lambda: call("umount2", b"/dev/shm", 2)
    tries["first to be killed"] = lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"0")
    tries["a pair of another family"] = lambda: socket.socketpair(30, socket.SOCK_SEQPACKET)  # AF_TIPC
    tries["a protocol of a module's"] = lambda: socket.socket(socket.AF_INET, 6)  # SOCK_DCCP
    tries["a line discipline"] = lambda: fcntl.ioctl(0, 0x5423, struct.pack("i", 1))  # TIOCSETD
    tries["whom to share a core with"] = lambda: call("prctl", 62, 0, 0, 0, 0)  # PR_SCHED_CORE
    tries["a lease"] = lambda: fcntl.fcntl(os.open("/dev/null", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
    numbers = {"io_uring": 425, "bpf": 321, "perf": 298, "memfd": 319, "userfaultfd": 323, "inotify": 294}
    for name, number in numbers.items() if platform.machine() == "x86_64" else ():
        tries[name] = lambda number=number: call("syscall", number, 0, 0, 0, 0, 0)  # type: ignore[misc]
    found = {name: _outcome(do) for name, do in tries.items()}
    found["shm"] = [name for name in os.listdir("/dev/shm") if name.startswith("xbl.")]
    return {**found, "filled": _fill(), "memory": _memory_bomb(), "processes": _fork_bomb()}


def _outcome(do: Callable[[], Any]) -> Any:
    try:
        return str(do())
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")


def _fill() -> int:
    """How many bytes there is room for in /dev/shm."""
    path, written = "/dev/shm/full", 0
    with open(path, "wb", buffering=0) as file:
        try:
            for _ in range(MANY):
                written += file.write(bytes(1 << 20))
        except OSError:
            pass
    os.unlink(path)
    return written


def _memory_bomb() -> int:
    """How many bytes there are to be had, in a child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        held: list[bytearray] = []
        try:
            while len(held) < MANY:
                held.append(bytearray(CHUNK))
        except MemoryError:
            os.write(writer, str(len(held) * CHUNK).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        had = pipe.read()
    os.waitpid(child, 0)
    return int(had or -1)


def _fork_bomb() -> int:
    """How many processes there are to be had."""
    children: list[int] = []
    try:
        while len(children) < MANY:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(children)


def _tell_store(node: str, text: str) -> None:
    """Write a node below ``data/attempts`` by xenstore's wire protocol, on descriptor 4."""
    payload = f"data/attempts/{node}\0{text}".encode()
    os.write(4, struct.pack("<IIII", 11, 1, 0, len(payload)) + payload)
    os.read(4, 4096)


if __name__ == "__main__":
    outcome = json.dumps(attempt(json.loads(sys.argv[1])))
    if "--store" not in sys.argv:
        print(outcome)
    else:
        for start in range(0, len(outcome), 1500):
            _tell_store(str(start // 1500), outcome[start : start + 1500])
        _tell_store("end", "")
        signal.pause()
