"""A guest's own hostname, processes, mounts and names: in forked children, with privilege and without, and where refused."""

import encodings.idna  # noqa: F401  which names are looked up with; it may be in a folder that only this user reads
import json
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domu import netns
from domu.machine import Machine
from hyp import linux
from tests.support.children import (
    become_nobody,
    in_child,
    private_mounts,
    read_only_sysctls,
    root_of_nothing,
    tun_device,
)

MAC, HOSTS = "02:00:00:00:00:0a", {"10.1.2.3": "alice", "10.1.2.4": "bob", "fd00::4": "bob"}

needs_root = pytest.mark.needs("root")


def unprivileged() -> None:
    if os.geteuid() == 0:
        tun_device(0o666)
        become_nobody()


def furnished() -> Machine:
    """The machine of a guest, alice, whose process this is."""
    netns.create(MAC, netns.Addresses("10.1.2.3/24"), 1500)
    lifeline, inits = socket.socketpair()
    machine = Machine("alice", HOSTS, lifeline.detach(), inits.detach())
    machine.furnished()
    return machine


def entered(init: int, body: Callable[[], Any]) -> Any:
    """The result (JSON) of `body` in a program in the guest, as a supervisor starts it."""
    reader, writer = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        try:
            linux.enter_namespaces(init)
            program = os.fork()
            if program == 0:
                os.write(writer, json.dumps(body()).encode())
            else:
                os.waitpid(program, 0)
        except BaseException:
            os.write(writer, json.dumps(traceback.format_exc()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        answer = pipe.read()
    os.waitpid(supervisor, 0)
    return json.loads(answer)


def look() -> list[Any]:
    """What a program sees of the machine that it runs on."""
    processes = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    names = {name: socket.gethostbyname(name) for name in ("alice", "bob", "localhost")}
    mac = Path("/sys/class/net/eth0/address").read_text().strip()
    return [socket.gethostname(), processes, os.getpid(), sorted(os.listdir("/sys/class/net")), mac, names]


def macs() -> list[str]:
    """Of the interfaces that /sys shows."""
    return [path.read_text().strip() for path in Path("/sys/class/net").glob("*/address")]


SEEN = ["alice", [1, 2], 2, ["eth0", "lo"], MAC, {"alice": "10.1.2.3", "bob": "10.1.2.4", "localhost": "127.0.0.1"}]


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda: None, id="root", marks=needs_root),
        pytest.param(unprivileged, id="nobody", marks=pytest.mark.needs("taps")),
    ],
)
def test_what_a_program_sees_is_the_guests(prepare: Callable[[], None]) -> None:
    def body() -> list[Any]:
        prepare()
        before = Path("/proc/self/mountinfo").read_text(), socket.gethostname(), os.listdir("/sys/class/net")
        machine = furnished()
        os.chdir("/usr")
        seen = entered(machine.init, look), entered(machine.init, os.getcwd)
        after = Path("/proc/self/mountinfo").read_text(), socket.gethostname(), os.listdir("/sys/class/net")
        return [*seen, machine.missing, after == before]

    assert in_child(body) == [SEEN, "/usr", [], True]


@pytest.mark.needs("taps")
def test_a_user_without_privilege_enters_what_is_its_own() -> None:
    """From outside the user namespace that the guest's process has made, as `launch.py exec` does."""

    def body() -> list[Any]:
        unprivileged()
        ours, theirs = socket.socketpair()
        guest = os.fork()
        if guest == 0:
            machine = furnished()
            socket.send_fds(theirs, [b"!"], [machine.init, machine.lifeline])
            signal.pause()
        _, (init, lifeline), _, _ = socket.recv_fds(ours, 1, 2)
        seen: list[Any] = entered(init, look)
        os.kill(guest, signal.SIGKILL)
        os.waitpid(guest, 0)
        os.close(lifeline)
        return seen

    assert in_child(body) == SEEN


@needs_root
def test_control_groups_are_found_where_they_were() -> None:
    """Programs look there for their limits."""

    def body() -> list[Any]:
        private_mounts()
        linux.mount("tmpfs", "/sys/fs/cgroup", "tmpfs")
        Path("/sys/fs/cgroup/mark").touch()
        return entered(furnished().init, lambda: os.listdir("/sys/fs/cgroup"))

    assert in_child(body) == ["mark"]


@pytest.mark.needs("taps")
def test_init_ends_when_nobody_holds_its_lifeline_and_all_that_runs_with_it() -> None:
    def body() -> list[bool]:
        machine = furnished()
        supervisor = os.fork()
        if supervisor == 0:
            linux.enter_namespaces(machine.init)
            program = os.fork()
            if program == 0:
                if os.fork() == 0:
                    os.execvp("sleep", ["sleep", "1000"])  # whom nobody but init waits for
                os._exit(0)
            os.waitpid(program, 0)
            os._exit(0)
        os.waitpid(supervisor, 0)
        init = select.poll()
        init.register(machine.init, select.POLLIN)
        was_alive = not init.poll(0)
        os.close(machine.lifeline)
        init.poll()  # the child's alarm bounds the wait; init is not gone before all in it are
        return [was_alive]

    assert in_child(body) == [True]


@pytest.mark.needs("taps")
def test_programs_cannot_kill_their_init() -> None:
    def body() -> list[Any]:
        machine = furnished()
        return [entered(machine.init, lambda: os.kill(1, signal.SIGKILL)), entered(machine.init, os.getpid)]

    assert in_child(body) == [None, 3]


# --- refused ---------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("limit", "missing"),
    [
        ("pid", "process ids are the host's (No space left on device)"),
        ("uts", "hostname is the host's (No space left on device)"),
        ("mnt", "mounts, and with them /proc, /sys and /etc/hosts, are the host's (No space left on device)"),
    ],
)
def test_what_is_refused_is_named_and_the_rest_is_there(limit: str, missing: str) -> None:
    def body() -> list[Any]:
        tun_device(0o666)
        hostname = socket.gethostname()
        root_of_nothing()
        Path(f"/proc/sys/user/max_{limit}_namespaces").write_text("0")
        machine = furnished()
        seen = entered(machine.init, lambda: [socket.gethostname(), os.getpid() < 10, MAC in macs()])
        return [machine.missing, seen[0] == hostname, *seen[1:]]

    own = [limit != "uts", limit != "pid", limit != "mnt"]
    assert in_child(body) == [[missing], not own[0], *own[1:]]


@needs_root
def test_a_masked_proc_is_done_without() -> None:
    """As in a container: the kernel lets no user namespace mount what would show more than is seen."""

    def body() -> list[Any]:
        tun_device(0o666)
        read_only_sysctls()
        root_of_nothing()
        machine = furnished()
        return [machine.missing, entered(machine.init, os.getpid), entered(machine.init, socket.gethostname)]

    assert in_child(body) == [["/proc is the host's (Operation not permitted)"], 2, "alice"]
