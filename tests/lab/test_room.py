"""RAM that is too small is refused by `check`, and the smallest that is not refused boots, on every path."""

from pathlib import Path
from typing import Any

import pytest

from domu.frontends import split
from hyp import paths as room
from hyp.abi.sizes import FRAME_BUFFER, PAGE, SPLIT_SLOTS
from hyp.paths import PATHS
from hyp.ram import Ram, place_queues
from lab.owner import Lab
from lab.schema.values import MAX_RAM, MIN_RAM
from lab.topology import TopologyError, load
from tests.support.labs import run, topology_file, unique

QUEUES = (64, 256, 4096)


def text(queue: int, memory: dict[str, int], dom0: int) -> str:
    """A guest on each path, with so much RAM."""
    guests = "".join(f'[[guest]]\nname = "{path}"\npath = "{path}"\nmemory = {size}\n' for path, size in memory.items())
    return f"nic.queue = {queue}\ndom0.memory = {dom0}\n{guests}"


def smallest(queue: int) -> tuple[dict[str, int], int]:
    return {path: max(MIN_RAM, PATHS[path].ram(queue)) for path in PATHS}, max(MIN_RAM, room.dom0_needs(queue))


def test_the_rings_have_as_many_slots_as_fit_into_a_page() -> None:
    assert split.TX_SLOTS == split.RX_SLOTS == SPLIT_SLOTS


class _Bare:
    """As much of a Mapping as Ram looks at."""

    address, size = 0, MAX_RAM


@pytest.mark.parametrize("queue", QUEUES)
def test_the_needs_are_exact(queue: int) -> None:
    """What a context's driver allocates, counted by the allocator itself, to the byte."""
    bare: Any = _Bare()
    ram, record = Ram(bare), {"sq_size": queue}
    place_queues(ram, record)
    for _ in range(2):
        ram.allocate(queue * FRAME_BUFFER)
    assert ram.allocate(0) == PATHS["bypass"].ram(queue)


@pytest.mark.parametrize("queue", QUEUES)
def test_a_page_less_is_refused_under_its_key(tmp_path: Path, queue: int) -> None:
    memory, dom0 = smallest(queue)
    load(topology_file(tmp_path, "fits", text(queue, memory, dom0)))
    short = {path: size - PAGE for path, size in memory.items() if size > MIN_RAM}
    file = topology_file(tmp_path, "short", text(queue, memory | short, dom0 - PAGE))
    with pytest.raises(TopologyError) as caught:
        load(file)
    expected = {f"guest[{index}].memory": memory[path] for index, path in enumerate(memory) if path in short}
    expected["dom0.memory"] = dom0
    reasons = dict(caught.value.problems)
    assert reasons.keys() == expected.keys()
    for key, size in expected.items():
        assert f"nic.queue = {queue}" in reasons[key]
        assert reasons[key].endswith(f'needs at least "{size >> 10} KiB"') or size % (1 << 20) == 0


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("queue", QUEUES)
def test_the_smallest_ram_that_is_accepted_boots(tmp_path: Path, queue: int) -> None:
    plain = load(topology_file(tmp_path, f"room{queue}", text(queue, *smallest(queue)))).plain()
    assert plain["name"] == unique(f"room{queue}")

    async def boot() -> list[str]:
        async with Lab(plain) as lab:
            return [process["state"] for process in (await lab.keeper("status")).value["processes"]]

    assert set(run(boot())) == {"ready"}
