"""A guest's RAM is mapped once, however often its contexts come and go: to map much of it keeps the NIC from everybody else."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyp import linux
from hyp.control import Refused, close_all
from hyp.memory import MappedOnce, create_region
from tests.support.guests import eventually
from tests.support.labs import unique
from tests.support.peers import Bench, well

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(params=["sealed", "posix"])
def forked(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with Bench(forked=True, backing=request.param, topology=unique(f"once-{request.param}")) as bench:
        yield bench


def mappings(bench: Bench, name: str) -> list[str]:
    """Where the NIC has a guest's RAM."""
    lines = Path(f"/proc/{bench.pid}/maps").read_text().splitlines()
    return [line.split()[0] for line in lines if f".{bench.contexts.topology}.{name}.ram" in line]


def test_contexts_of_a_guest_share_its_ram_until_it_ends(forked: Bench) -> None:
    several = forked.several(3)
    other = forked.guest()
    found = mappings(forked, "guest1")
    assert len(found) == 1
    for _ in range(5):
        several[0].call("context_close", context=several[0].context)
        assert mappings(forked, "guest1") == found
        for number in range(3):
            close_all(several[0].call("context_open", upcall=0, queue=number).fds)
    several[0].call("context_close", context=several[0].context)
    forked.run(several[0]._open(64, 0, 0))
    assert mappings(forked, "guest1") == found
    several[0].post_buffers(1)
    other.send(other.frame(several[0].mac))
    assert [frame for _, frame in several[0].take(1)] == [other.frame(several[0].mac)]
    forked.run(forked.hypervisor.domain_destroy(several[0].domid))
    eventually(lambda: mappings(forked, "guest1") == [], "the RAM of who has ended to go")
    assert len(mappings(forked, other.name)) == 1


def test_a_name_that_is_another_domains_now_is_not_mistaken() -> None:
    """Even if nobody has said that the one before has gone."""
    regions = [create_region("sealed", unique("mistaken"), "anna", "ram", 1 << 16) for _ in range(2)]
    once = MappedOnce()
    first, second = (once.map("anna", region.fd, 1 << 16) for region in regions)
    second.array[:] = 7
    assert set(os.pread(regions[1].fd, 1 << 16, 0)) == {7}
    assert set(first.array.tolist()) == {0}
    assert once.map("anna", regions[1].fd, 1 << 16) is second
    for region in regions:
        region.close()


def test_who_has_punched_holes_into_its_ram_has_no_device_any_more(forked: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Which is nobody's mistake but its own."""
    guest, other = forked.guest(), forked.guest()
    ram = forked.hypervisor.system.domains[guest.domid].ram
    linux.punch_hole(ram.fd, ram.size // 2, ram.size // 2)

    refused: list[Refused] = []

    def is_lost() -> bool:
        guest.call("context_close", context=guest.context)
        try:
            close_all(guest.call("context_open", upcall=0, queue=0).fds)
        except Refused as error:
            refused.append(error)
        return bool(refused)

    eventually(is_lost, "its device to be lost")
    assert "guest1 has cut off its RAM, or has punched holes into it: it has no device any more" in str(refused[0])
    assert refused[0].name == "ENODEV"
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    well(forked, other, forked.guest())
