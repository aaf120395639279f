"""What a domain had is gone with its end, and not only with the object that stands for it, which others may hold for long."""

import fcntl
import os

import pytest

from hyp.abi.nic import PAGE
from hyp.monitor.domain import Domain
from tests.support.labs import unique


@pytest.mark.parametrize("backing", ["posix", "sealed"])
def test_its_end_leaves_no_descriptor(backing: str) -> None:
    before = os.listdir("/proc/self/fd")
    domain = Domain(3, "anna", unique("domain"), backing, 16 * PAGE)
    for region in (domain.ram, domain.counters, domain.iommu_region()):
        assert region.fd >= 0
    assert len(os.listdir("/proc/self/fd")) > len(before) + 3  # a mapping has one of its own
    domain.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("backing", ["posix", "sealed"])
def test_nobody_gets_a_lease_on_the_table_that_the_nic_is_given_again(backing: str) -> None:
    """A guest that maps for itself has the table open for writing: it would hold up whoever opens the table anew."""
    domain = Domain(3, "anna", unique("lease"), backing, 16 * PAGE)
    try:
        theirs = os.dup(domain.iommu_region().fd)
        with pytest.raises(OSError, match=r"temporarily unavailable|Invalid argument"):
            fcntl.fcntl(theirs, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.close(theirs)
        assert os.fstat(domain.iommu_to_read()) == os.fstat(domain.iommu_region().fd)
        assert fcntl.fcntl(domain.iommu_to_read(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    finally:
        domain.close()
