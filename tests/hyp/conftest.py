"""What tests of event channels share."""

from collections.abc import Iterator

import pytest

from hyp.monitor.event_channels import EventChannels, Upcall


@pytest.fixture
def table() -> EventChannels:
    return EventChannels()


@pytest.fixture
def upcalls() -> Iterator[list[Upcall]]:
    made = [Upcall() for _ in range(3)]
    yield made
    for upcall in made:
        upcall.close()
