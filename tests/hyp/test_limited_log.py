"""What a peer has us log, by requests or by what it does to memory: so much in so long, however often it does it."""

import asyncio
import logging
import subprocess
import sys
from typing import Any

import msgpack
import pytest

from hyp.abi.debts import CREDIT_NS, DEARNESS
from hyp.control import Channel, Refused, socketpair
from hyp.control import channel as channels
from hyp.control.debt import FAIR_NS, Bill, Debt
from hyp.control.limited_log import BURST, INTERVAL_S, LimitedLog
from tests.support.control_ends import close, run, serve
from tests.support.labs import ROOT
from tests.support.patience import patient

TIMES = 3 * BURST


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info]


def test_what_is_beyond_the_burst_is_counted_and_told_later(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    limited = LimitedLog(logging.getLogger("limited"), "anna", clock=lambda: now)
    for number in range(TIMES):
        limited.warning(f"line {number}")
    assert texts(caplog) == [f"anna: line {number}" for number in range(BURST)]
    now += INTERVAL_S + 1
    limited.warning("later")
    assert texts(caplog)[BURST:] == [f"anna: {TIMES - BURST} lines left out", "anna: later"]
    for _ in range(BURST):
        limited.warning("again")
    limited.end()
    limited.end()
    assert texts(caplog)[-2:] == ["anna: again", "anna: 1 lines left out"]


@pytest.mark.usefixtures("settled", "no_descriptor_is_left")
def test_our_mistakes_are_logged_so_often_and_each_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        _, ours, client = serve()
        for _ in range(TIMES):
            with pytest.raises(Refused, match="our own mistake") as refused:
                await client.call("fail")
            assert refused.value.name == "EFAULT"
        assert tracebacks(caplog) == ["the guest: operation fail failed"] * BURST
        close(ours, client)
        assert texts(caplog)[BURST:] == [f"the guest: {TIMES - BURST} lines left out"]

    run(main())
    caplog.clear()  # a traceback keeps what it shows


@pytest.mark.usefixtures("settled", "no_descriptor_is_left")
def test_a_message_that_is_never_sent_is_told_so_often(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        _, ours, client = serve()
        for _ in range(TIMES):
            ours.tell("note", value=bytes(channels.MAX_MESSAGE))
        assert len(texts(caplog)) == BURST
        assert "is too long" in texts(caplog)[0]
        close(ours, client)

    run(main())


@pytest.mark.usefixtures("settled", "no_descriptor_is_left")
def test_a_mistake_is_logged_where_it_was_made_and_not_where_it_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        _, nic, hypervisor = serve()
        near, far = socketpair()

        async def context_open() -> Any:
            return await hypervisor.call("fail")

        ours, guest = Channel(near, {"context_open": context_open}, untrusted=True, bills=True), Channel(far)
        with pytest.raises(Refused, match="our own mistake") as refused:
            await guest.call("context_open")
        assert refused.value.name == "EFAULT"
        assert tracebacks(caplog) == ["the guest: operation fail failed"]
        close(nic, hypervisor, ours, guest)

    run(main())
    caplog.clear()


@pytest.mark.parametrize("billed", [False, True])
@pytest.mark.usefixtures("settled", "no_descriptor_is_left")
def test_who_has_it_logged_pays_for_that(billed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose request it is, or who is to be billed for it."""
    now = used = 0
    cost = CREDIT_NS // DEARNESS + 2 * FAIR_NS

    class Dear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal used
            used += cost

    async def later() -> None:
        await asyncio.sleep(0)
        raise RuntimeError("our own mistake")

    def debt(**rest: Any) -> Debt:
        return Debt(lambda: now, lambda: used, **rest)

    monkeypatch.setattr(channels, "Debt", debt)
    monkeypatch.setattr(Bill, "__init__", lambda bill: Debt.__init__(bill, lambda: now, lambda: used))
    monkeypatch.setattr(channels.log, "handlers", [Dear()])

    async def main() -> None:
        near, far = socketpair()
        ours = Channel(near, {"later": later}, untrusted=not billed)
        far.send(msgpack.packb({"id": 1, "op": "later", "args": {}, **({"bill": True} if billed else {})}))
        while ours._inbox.tasks or used == 0:
            await asyncio.sleep(0)
        if billed:
            assert msgpack.unpackb(far.recv(1 << 16))["ns"] >= cost
        else:
            assert ours._debt.wait_s() > 0
        ours.close()
        far.close()
        await ours.closed

    run(main())


LOST_AGAIN = f"""
import asyncio, os
from hyp import lost_memory
from hyp.memory import create_region

told = []

async def main():
    lost_memory.guard(told.append)
    for number in range({TIMES}):
        region = create_region("posix", f"lost{{os.getpid()}}", "anna", "doorbell", 4096)
        try:
            mapping = region.map()
            os.ftruncate(region.fd, 0)
            mapping.array[0]
            while len(told) == number: await asyncio.sleep(0)
        finally:
            region.close()

asyncio.run(main())
"""


def test_a_page_that_comes_again_and_is_cut_off_again_is_told_so_often() -> None:
    done = subprocess.run([sys.executable, "-c", LOST_AGAIN], cwd=ROOT, capture_output=True, text=True, timeout=patient(60))
    assert done.returncode == 0, done.stderr
    assert 0 < done.stderr.count("was cut off by its owner") < TIMES
