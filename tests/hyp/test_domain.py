"""What a domain had is gone with its end, and not only with the object that stands for it, which others may hold for long."""

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
