"""What a domain had is gone with its end, and not only with the object that stands for it, which others may hold for long."""

import os
import socket
import threading

import pytest

from hyp.abi.nic import PAGE
from hyp.control import Refused
from hyp.monitor import hypervisor
from hyp.monitor.domain import Domain
from tests.support.labs import unique
from tests.support.peers import Bench


@pytest.mark.parametrize("backing", ["posix", "sealed"])
def test_its_end_leaves_no_descriptor(backing: str) -> None:
    before = os.listdir("/proc/self/fd")
    domain = Domain(3, "anna", unique("domain"), backing, 16 * PAGE)
    for region in (domain.ram, domain.counters, domain.iommu_region()):
        assert region.fd >= 0
    assert len(os.listdir("/proc/self/fd")) > len(before) + 3  # a mapping has one of its own
    domain.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_there_is_no_next_life_while_something_of_the_last_one_can_not_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would leave more: who has ended may have left a process that holds the locks that closing takes."""
    monkeypatch.setattr(hypervisor, "LET_GO_S", 0.05)
    with Bench() as bench:
        anna, monitor, gate = bench.domain(), bench.hypervisor, threading.Event()
        last = monitor.system.domains[anna.domid]
        last.aside.later(gate.wait)
        bench.run(monitor.domain_destroy(anna.domid))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            fd = theirs.detach()
            with pytest.raises(Refused, match="its last life has left holds on") as refused:
                bench.run(monitor.domain_create(anna.domid, "anna", PAGE, [fd]))
            assert refused.value.name == "EBUSY"
            assert not os.path.exists(f"/proc/self/fd/{fd}")
            gate.set()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours:
                bench.run(monitor.domain_create(anna.domid, "anna", PAGE, [theirs.detach()]))
                assert monitor.system.domains[anna.domid] is not last
