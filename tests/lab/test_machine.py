"""TAP guests as small machines, as their user sees them: names, processes, what the kernel refuses, and the end of init."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.labs import LAUNCH, ROOT, launch, left_behind, processes, staying_up, topology_file, unique, wait_until
from tests.support.patience import patient

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("taps")]

GUESTS = "".join(
    f'[[guest]]\nname = "{name}"\npath = "{path}"\nprogram = "tap"\n'
    f'address = "10.0.0.{number}/24"\naddress6 = "fd00::{number}/64"\n'
    for number, (name, path) in enumerate({"alice": "bypass", "bob": "split"}.items(), 1)
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two TAP guests, alice and bob, of which bob is killed; the topology's name."""
    name = unique("machine")
    with staying_up(topology_file(tmp_path_factory.mktemp("machine"), "machine", GUESTS)) as (process, _):
        yield name
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(30)) == 143
    assert left_behind(name) == []


def inside(lab: str, guest: str, script: str) -> "subprocess.CompletedProcess[str]":
    command = [*LAUNCH, "exec", "--topology", lab, guest, "--", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=patient(60), cwd=ROOT)


def status_of(lab: str) -> dict[str, Any]:
    return next(one for one in json.loads(launch("status", "--json").stdout) if one["name"] == lab)


def test_a_program_sees_the_guest(lab: str) -> None:
    script = "uname -n; ls /sys/class/net; cat /sys/class/net/eth0/address; cat /proc/1/comm; pwd; echo $$; ls -d /proc/[0-9]*"
    done = inside(lab, "bob", script)
    *seen, own, init, shell = done.stdout.splitlines()
    assert seen == ["bob", "eth0", "lo", "02:00:00:00:00:02", "init", str(ROOT)], done.stderr
    assert [init, shell] == ["/proc/1", f"/proc/{own}"]
    assert status_of(lab)["notices"] == []


@pytest.mark.needs("ping")
@pytest.mark.parametrize("version", [4, 6])
def test_guests_are_known_by_name(lab: str, version: int) -> None:
    done = inside(lab, "alice", f"ping -{version} -c 1 -W 5 bob && ping -{version} -c 1 localhost")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_program_leaves_is_the_inits(lab: str) -> None:
    # What $( ) runs in has ended when its output is read: nobody but the init is left to be the parent
    script = "orphan=$(sleep 1000 >/dev/null & echo $!); grep PPid: /proc/$orphan/status; kill $orphan && echo killed"
    done = inside(lab, "alice", script)
    assert done.stdout == "PPid:\t1\nkilled\n", done.stdout + done.stderr


@pytest.mark.long
def test_a_guest_whose_init_is_killed_is_dead(lab: str) -> None:
    init = next(pid for pid, line in processes(lab).items() if "init:bob" in line.split())
    os.kill(init, signal.SIGKILL)
    dead = wait_until(lambda: status_of(lab)["dead"], "bob to die")
    assert dead == ["bob died (its init, PID 1 of its programs, was killed)"]
    assert inside(lab, "bob", "true").returncode == 1
    assert inside(lab, "alice", "true").returncode == 0


@pytest.mark.long
@pytest.mark.needs("root", "mounts")
def test_what_the_kernel_refuses_is_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a user namespace with a /proc of which something is hidden, as in a container."""
    hide = 'mount --bind /proc/sys /proc/sys && exec unshare --user --map-root-user --mount "$@"'
    guest = GUESTS.partition('[[guest]]\nname = "bob"')[0]
    file = topology_file(tmp_path_factory.mktemp("refused"), "refused", guest)
    with staying_up(file, within=["unshare", "--mount", "sh", "-c", hide, "sh"]) as (process, lines):
        said = "alice: /proc is the host's (Operation not permitted)"
        assert any(said in line for line in lines), lines
        assert status_of(unique("refused"))["notices"] == [said]
        assert said in launch("status").stdout
        assert inside(unique("refused"), "alice", "uname -n; test $$ -lt 10 && echo few").stdout == "alice\nfew\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(patient(30)) == 143
    assert left_behind(unique("refused")) == []
