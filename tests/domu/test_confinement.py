"""Confined guests do their work, and nothing else: of each kind of program one that tries, beside bystanders that stream."""

import asyncio
import ctypes
import errno
import functools
import json
import mmap
import os
import shutil
import socket
import tempfile
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from domu.confinement import syscalls
from domu.confinement.confine import DATA_BYTES, FIRST_UID, PROCESSES, SHM_BYTES, Confinement, enter, furnish, lacking, seal
from hyp import linux
from hyp.kernels import store
from hyp.xenstore.client import XenstoreClient, XenstoreError
from lab import owner
from lab.placement import Placement
from lab.plan import MODULES
from lab.plan import plan as honest_plan
from lab.programs import run_in_guest
from lab.rundir import place
from lab.topology import TopologyError
from lab.workloads import Runner
from tests.lab.test_paths import check, running
from tests.support import attempts
from tests.support.labs import ROOT, run, topology, until, workload
from tests.support.xenstored_process import forked, succeeded

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("confinement", "taps")]

SYS_IOCTL = {"x86_64": 16, "aarch64": 29}[os.uname().machine]
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
MAP_GROWSDOWN, MAP_STACK, MAP_HUGETLB = 0x100, 0x2_0000, 0x4_0000
ROLE = "tests.support.confined_guest"
GUESTS = "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\n{more}'
    for name, path, more in (
        ("anna", "split", ""),
        ("carl", "bypass", ""),
        ("mallory", "bypass", "confined = true\n"),
        ("tess", "split", 'confined = true\nprogram = "tap"\naddress = "10.0.0.1/24"\n'),
        ("ulla", "bypass", 'confined = true\nprogram = "tap"\naddress = "10.0.0.2/24"\n'),
        ("owen", "bypass", "confined = true\nprogram = {{ argv = {argv} }}\n"),
    )
)
OWEN = 6
HARMLESS = {"EPERM", "EACCES", "ENOSYS", "ESRCH", "ENOENT"}


def interpreter() -> str:
    """A Python that any user can run."""
    return "/usr/bin/python3"


def judge(found: dict[str, Any]) -> None:
    """Nothing was to be had."""
    bombs = {name: found.pop(name) for name in ("filled", "memory", "processes")}
    assert bombs["filled"] <= SHM_BYTES
    assert 0 <= bombs["memory"] < 3 * DATA_BYTES  # beyond what its starter had
    assert 0 < bombs["processes"] < PROCESSES
    assert found.pop("shm") == []
    hidden = {name for name, outcome in found.items() if name.startswith("list ") and outcome == "[]"}
    had = {name: outcome for name, outcome in found.items() if outcome not in HARMLESS and name not in hidden}
    had = {name: outcome for name, outcome in had.items() if not (name.startswith("write ") and outcome == "EROFS")}
    assert had == {}


@asynccontextmanager
async def confined_lab(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, wanted: dict[str, Any]) -> AsyncIterator[Runner]:
    def plan(tables: dict[str, Any]) -> list[dict[str, Any]]:
        processes = honest_plan(tables)
        for process in processes:
            process["module"] = ROLE if process["name"] == "mallory" else process["module"]
        return processes

    program = folder / "attempts.py"
    program.write_text(Path(attempts.__file__).read_text())
    argv = json.dumps([interpreter(), str(program), json.dumps(wanted), "--store"])
    monkeypatch.setattr(owner, "plan", plan)
    monkeypatch.setattr(owner, "MODULES", [*MODULES, ROLE])
    text = 'memory.backing = "sealed"\n' + GUESTS.replace("{{", "{").replace("}}", "}").replace("{argv}", argv)
    async with running(folder, name, text) as runner:
        yield runner


async def by_owen(runner: Runner) -> dict[str, Any]:
    """What came of the own program's attempts."""
    with runner.lab._rundir.socket_address(runner.lab.store_path) as address:
        dom0 = await XenstoreClient.connect(address)
    async with dom0:
        home = f"/local/domain/{OWEN}/data/attempts"

        async def ended() -> bool:
            try:
                return "end" in await dom0.directory(home)
            except XenstoreError:
                return False

        await until(ended, "owen's attempts")
        parts = sorted(int(name) for name in await dom0.directory(home) if name != "end")
        outcome: dict[str, Any] = json.loads("".join([await dom0.read(f"{home}/{k}") for k in parts]))
        return outcome


@pytest.mark.needs("ping")
def test_a_confined_guest_that_tries_gets_nothing_and_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all = tempfile.TemporaryDirectory(dir="/tmp")  # as pytest's are not; an own program is started in its topology's folder
    os.chmod(open_to_all.name, 0o755)
    secret = tmp_path / "secret"
    secret.write_text("canary")
    closed = tmp_path / "closed"
    closed.touch(0o700)
    os.chmod(secret, 0o600)
    folders = [str(place()), *([str(store.folder)] if store.folder else [])]
    wanted: dict[str, Any] = {"pids": [], "files": [str(secret), "/etc/shadow"], "folders": folders, "sockets": []}
    wanted["fixed"] = ["/etc", "/tmp", str(ROOT)]

    async def main() -> None:
        async with confined_lab(Path(open_to_all.name), monkeypatch, "confined", wanted) as runner:
            done = asyncio.Event()

            async def stream() -> int:
                streams = 0
                while not done.is_set():
                    record = await runner.run(workload("stream", "anna", "carl", 200, frames=20_000))
                    check(record)
                    assert (record["frames"], record["lost"]) == (20_000, 0)
                    streams += 1
                return streams

            streams = asyncio.create_task(stream())
            rundir = runner.lab._rundir
            pids = [runner.pids[name] for name in ("anna", "hyp")]
            what = {**wanted, "pids": pids, "sockets": [str(rundir.socket_path), str(rundir.store_path)]}
            judge(await runner.lab.call("mallory", "attempt", what=what))
            assert await runner.lab.call("mallory", "memory") == {"shrink": "EPERM", "grow": "EPERM", "punch": "ENOSYS"}
            contexts = await runner.lab.call("mallory", "hypercalls", other=1, contexts=5)
            assert sorted(contexts.values()).count("done") <= 1, contexts  # its own context
            status, output = await run_in_guest(runner.lab, "tess", "ping -c 2 -i 0.2 10.0.0.2")
            assert status == 0, output
            status, output = await run_in_guest(runner.lab, "tess", [closed])
            why = "tess is confined, and is nobody outside: it can run what everybody may read, of the system and of this lab"
            assert (status, output) == (126, f"tess: {closed}: Permission denied ({why})\n")
            status, output = await run_in_guest(runner.lab, "tess", "mktemp")
            assert (status, output.startswith("/dev/shm/")) == (0, True), output  # programs have a place for temporary files
            program = [interpreter(), "-", json.dumps(what)]
            status, output = await run_in_guest(runner.lab, "tess", program, stdin=Path(attempts.__file__).read_text())
            assert status == 0, output
            judge(json.loads(output))
            judge(await by_owen(runner))
            done.set()
            assert await streams > 0
            if os.geteuid() == 0:
                uids = {os.stat(f"/proc/{runner.pids[name]}").st_uid for name in ("mallory", "tess", "ulla", "owen")}
                assert len(uids) == 4
                assert min(uids) >= FIRST_UID

    with open_to_all:
        run(main())
    assert secret.read_text() == "canary"


def test_confined_takes_sealed_memory(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"confined: takes memory.backing = \"sealed\""):
        topology(tmp_path, "posix", 'confined = true\n[[guest]]\nname = "anna"\npath = "split"\n')
    text = 'confined = true\nmemory.backing = "sealed"\n[[guest]]\nname = "anna"\npath = "split"\n'
    assert topology(tmp_path, "sealed", text)["guest"][0]["confined"]


def in_a_child(body: Callable[[], object]) -> str:
    """What `body` says, in a process of its own."""
    reader, writer = os.pipe()
    pid = forked(lambda: os.write(writer, str(body()).encode()))
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    assert succeeded(pid)
    return said


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("landlock_create_ruleset", "give up files (Landlock)"),
        ("unshare", "create namespaces of its own"),
        ("mount", "have mounts of its own"),
        ("capset", "give up capabilities"),
        ("seccomp", "filter system calls (seccomp)"),
    ],
)
def test_what_the_kernel_refuses_is_named(call: str, named: str) -> None:
    """A filter around the lab, as a container's, lets it not be done: there is no confinement by half."""

    def body() -> str | None:
        seccomp = syscalls.library()
        around = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
        around.add_rule(seccomp.ERRNO(errno.EPERM), call)
        if call == "seccomp":  # libseccomp has prctl(2) for it, too
            around.add_rule(seccomp.ERRNO(errno.EPERM), "prctl", seccomp.Arg(0, seccomp.EQ, 22))
        around.load()
        return lacking()

    assert named in in_a_child(body)


USER: Final = 12345


def be_a_user() -> None:
    """Be USER from now on, who is not root."""
    syscalls.library()
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    linux.set_dumpable()


@pytest.mark.needs("root")
def test_who_is_not_root_can_confine_too() -> None:
    def body() -> str | None:
        be_a_user()
        return lacking()

    assert in_a_child(body) == "None"


@pytest.mark.needs("root")
def test_files_that_are_its_users_are_not_changed_in_mode_and_time_either() -> None:
    """Landlock knows nothing of these; who is not root has no uid of the guest's own to give it."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))  # where its user may go
    try:
        secret = folder / "secret"
        secret.write_text("x")
        for path in (folder, secret):
            os.chown(path, USER, USER)
        before = [(os.stat(path).st_mode, os.stat(path).st_mtime) for path in (folder, secret)]

        def attempts() -> str:
            furnish(spec)
            seal(spec)
            tries: list[Callable[[], object]] = [
                *(functools.partial(os.chmod, path, 0o4777) for path in (folder, secret)),
                lambda: os.utime(secret, (1, 1)),
                lambda: os.chown(secret, USER, -1),
                lambda: os.setxattr(secret, "user.x", b"x"),
                lambda: os.chmod("/dev/shm", 0o777),  # is its own
            ]
            return " ".join(outcome(attempt) for attempt in tries)

        def body() -> str | None:
            be_a_user()
            enter(spec)
            return linux.asked_of_a_child(attempts)

        spec = Confinement(None, (), (), network=False)
        assert in_a_child(body) == "EROFS EROFS EROFS EROFS ENOSYS done"
        assert before == [(os.stat(path).st_mode, os.stat(path).st_mtime) for path in (folder, secret)]
    finally:
        shutil.rmtree(folder)


def outcome(attempt: Callable[[], object]) -> str:
    """ "done", or the errno's name."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def test_no_datagrams_to_sockets_that_are_the_hosts() -> None:
    """As to the system's log, which anybody may write to."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(f"{folder}/log")

        def body() -> str:
            syscalls.restrict(network=False)
            kinds = (socket.SOCK_DGRAM, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.SOCK_RAW, socket.SOCK_STREAM)
            found = [outcome(functools.partial(socket.socketpair, socket.AF_UNIX, kind)) for kind in kinds]
            for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
                one, _ = socket.socketpair(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
                for attempt in (lambda one=one: one.connect(f"{folder}/log"), lambda one=one: one.sendto(b"x", f"{folder}/log")):
                    found.append(outcome(attempt))
            return " ".join(found)

        said = in_a_child(body).split()
        assert said[:4] == ["ENOSYS", "ENOSYS", "ENOSYS", "done"]
        log.setblocking(False)
        with pytest.raises(BlockingIOError):
            log.recv(10)


def test_nobody_chooses_cpus() -> None:
    """Whether the topology places it or not: who moves to and fro stops who runs there, each time."""

    def body() -> str:
        syscalls.restrict(network=False)
        with pytest.raises(PermissionError):
            os.sched_setaffinity(0, os.sched_getaffinity(0))
        return "refused"

    assert in_a_child(body) == "refused"


def test_there_are_no_mappings_of_huge_pages_nor_such_as_grow() -> None:
    """Whatever else is asked for; what programs map is there."""

    def body() -> str:
        syscalls.restrict(network=False)
        libc, found = ctypes.CDLL(None, use_errno=True), []
        libc.mmap.restype = ctypes.c_void_p
        private, shared = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        for flags in (private | MAP_HUGETLB, shared | MAP_HUGETLB | 30 << 26, private | MAP_GROWSDOWN, private | MAP_STACK, shared):
            at = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, flags, -1, ctypes.c_long(0))
            found.append("mapped" if at != ctypes.c_void_p(-1).value else errno.errorcode[ctypes.get_errno()])
        return " ".join(found)

    assert in_a_child(body) == "ENOMEM ENOMEM ENOMEM mapped mapped"


@pytest.mark.needs("two-cpus")
def test_confined_guests_leave_the_nic_the_core_that_the_topology_says_is_its_own(tmp_path: Path) -> None:
    first, last = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    text = f'confined = true\nmemory.backing = "sealed"\ncpu.nic = [{last}]\ncpu.programs = [{first}]\n' + "".join(
        f'[[guest]]\nname = "{name}"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.{number}/24"\n'
        for number, name in enumerate(("tess", "ulla"), 1)
    )
    tries = f"import os\ntry: os.sched_setaffinity(0, [{last}])\nexcept OSError as no: print(no.strerror, os.sched_getaffinity(0))"

    async def main() -> None:
        async with running(tmp_path, "placed", text) as runner:
            status, output = await run_in_guest(runner.lab, "tess", [interpreter(), "-c", tries])
            assert (status, output) == (0, f"Operation not permitted {{{first}}}\n")

    run(main())


@pytest.mark.needs("two-cpus")
def test_a_workload_places_confined_guests_which_cannot_do_so_themselves(tmp_path: Path) -> None:
    text = 'confined = true\nmemory.backing = "sealed"\n' + "".join(
        f'[[guest]]\nname = "{name}"\npath = "bypass"\n' for name in ("anna", "bert")
    )

    async def main() -> None:
        async with running(tmp_path, "unplaced", text) as runner:
            check(await runner.run(workload("stream", "anna", "bert", frames=1000), placement=Placement.SENDERS))
            for name in ("anna", "bert"):
                tasks = [int(task) for task in os.listdir(f"/proc/{runner.pids[name]}/task")]
                assert [sorted(os.sched_getaffinity(task)) for task in tasks] == [runner._pinned[name]] * len(tasks)
            assert len(runner._pinned["anna"]) == 1

    run(main())


def test_nobody_types_for_who_sits_at_the_terminal() -> None:
    """Of a request the kernel reads 32 bits; what is not refused finds that a pipe is no terminal."""

    def body() -> str:
        syscalls.restrict(network=False)
        reader, _ = os.pipe()
        libc, found = ctypes.CDLL(None, use_errno=True), []
        for request in (TIOCSTI, TIOCSTI | 1 << 32, TIOCLINUX, TIOCLINUX | -1 << 32, termios.TIOCGWINSZ):
            libc.syscall(SYS_IOCTL, reader, ctypes.c_long(request), ctypes.c_long(0))
            found.append(errno.errorcode[ctypes.get_errno()])
        return " ".join(found)

    assert in_a_child(body) == "ENOSYS ENOSYS ENOSYS ENOSYS ENOTTY"


SYSCTLS: Final = """
import os
for name in ("core/rps_default_mask", "core/somaxconn", "ipv4/ip_forward"):
    try:
        with open(f"/proc/sys/net/{name}", "rb", 0) as now:
            value = now.read()
        os.write(os.open(f"/proc/sys/net/{name}", os.O_WRONLY), value)
        print(name, "written")
    except OSError as error:
        print(name, error.strerror)
"""


def test_a_network_of_its_own_is_no_way_to_cpus_that_it_has_not(tmp_path: Path) -> None:
    """Receive packet steering has the kernel work for it on any CPU; what else there is to set is its administrator's, too."""
    guest = '[[guest]]\nname = "tess"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.1/24"\nconfined = true\n'

    async def main() -> None:
        async with running(tmp_path, "rps", f'memory.backing = "sealed"\n{guest}') as runner:
            status, printed = await run_in_guest(runner.lab, "tess", [interpreter(), "-c", SYSCTLS])
            assert status == 0, printed
            answers = [line.partition(" ")[2] for line in printed.splitlines()]
            assert set(answers) <= {"Permission denied", "No such file or directory"}
            assert len(answers) == 3

    run(main())


LIES: Final = """
import socket, struct
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("eth0", 0))
me, them = link.getsockname()[4], bytes.fromhex("THEM")
alice, bob = (socket.inet_aton(f"10.0.0.{number}") for number in (1, 2))
for kind, target in ((2, alice), (1, bob), (2, bob)):  # a reply; gratuitous ones
    said = struct.pack("!HHBBH", 1, 0x800, 6, 4, kind) + me + bob + them + target
    link.send(them + me + struct.pack("!H", 0x806) + said)
link.close()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"said", ("10.0.0.1", 9))
"""
HEARS: Final = """
import socket
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.bind(("", 9))
ear.recv(10)
print(open("/proc/net/arp").read())
"""


def test_nobody_takes_anothers_address_where_somebody_is_confined(tmp_path: Path) -> None:
    """Who has which one is not asked for by ARP, and not heard of."""
    text = "".join(
        f'[[guest]]\nname = "{name}"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.{number}/24"\n{more}'
        for number, (name, more) in enumerate((("alice", "confined = true\n"), ("bob", ""), ("mallory", "")), 1)
    )  # a confined guest's programs have no packet sockets; its own process sends what it likes

    async def main() -> None:
        async with running(tmp_path, "arp", f'memory.backing = "sealed"\n{text}') as runner:
            macs = {guest["name"]: guest["mac"] for guest in runner.lab.topology["guest"]}
            hears = asyncio.create_task(run_in_guest(runner.lab, "alice", [interpreter(), "-c", HEARS]))
            lies = LIES.replace("THEM", macs["alice"].replace(":", ""))
            while not hears.done():
                assert await run_in_guest(runner.lab, "mallory", [interpreter(), "-c", lies]) == (0, "")
            _, table = await hears
            known = {line.split()[0]: line.split()[2:4] for line in table.splitlines()[1:] if line}
            assert known == {"10.0.0.2": ["0x6", macs["bob"]], "10.0.0.3": ["0x6", macs["mallory"]]}, table

    run(main())
