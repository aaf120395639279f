"""xenstored beside guests that ask for all that they may: others are served as if alone, Domain 0's transactions succeed."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from dom0.xenstore.connection import DEAR_NS, Connection
from dom0.xenstore.credit import CONFLICTS, EVENTS, Credit
from dom0.xenstore.store import Store
from dom0.xenstore.turns import SLICE_NS, Turns, Worker
from hyp.abi import xs_wire
from hyp.abi.xs_wire import MessageType
from hyp.control import served
from hyp.control.debt import Debt
from hyp.xenstore.client import Transaction, XenstoreClient
from tests.support.patience import patient
from tests.support.xenstored_process import Raw, Served, forked, xenstored

ATTACKERS, BYSTANDER = (5, 6, 7, 8), 9
LONG = "x" * 500
WAITS = 100
"""Times as long at most. A bystander waits for one slice; before there were slices it was thousands of times."""


class Clock:
    now = 0


class Counted(Worker):
    """Work without end, or some pieces of it; each takes half a slice."""

    def __init__(self, clock: Clock, pieces: float) -> None:
        self.clock, self.pieces, self.done = clock, pieces, 0

    def work(self) -> bool:
        self.clock.now += SLICE_NS // 2
        self.done += 1
        return self.done < self.pieces


def test_turns_go_on_whatever_fails_after_one() -> None:
    async def main() -> None:
        clock, left = Clock(), [3]

        def after() -> None:
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(28, "no more watches")

        failures: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
        turns, worker = Turns(after, lambda: clock.now), Counted(clock, 50)
        with contextlib.suppress(OSError):
            turns.ready(worker)
        while worker.done < 50:
            await asyncio.sleep(0)
        assert left[0] < 0
        assert all(isinstance(failure, OSError) for failure in failures)

    asyncio.run(asyncio.wait_for(main(), patient(20)))


def test_who_comes_is_next_and_who_has_rested_has_saved_nothing() -> None:
    async def main() -> None:
        clock = Clock()
        turns = Turns(lambda: None, lambda: clock.now)
        greedy = [Counted(clock, float("inf")) for _ in range(10)]
        for worker in greedy:
            turns.ready(worker)
        while turns.taken < 50:
            await asyncio.sleep(0)
        assert {worker.done for worker in greedy} == {10}
        for _ in range(5):
            modest, before = Counted(clock, 1), turns.taken
            turns.ready(modest)
            while not modest.done:
                await asyncio.sleep(0)
            assert turns.taken <= before + 2
        rested, before = Counted(clock, 20), turns.taken
        turns.ready(rested)
        while rested.done < 20:
            await asyncio.sleep(0)
        assert turns.taken >= before + 90, "the others have their turns between its ten"
        for worker in greedy:
            worker.pieces = 0

    asyncio.run(main())


def request(type_: MessageType, *strings: str) -> bytes:
    return xs_wire.pack(type_, 1, 0, xs_wire.join(strings))


def hammer(sock: socket.socket, requests: bytes) -> None:
    """Ask, and take what comes, until killed. It sleeps where it can't: it is xenstored's time that it takes, not the machine's."""
    sock.setblocking(False)
    left, either = requests, select.poll()
    either.register(sock, select.POLLIN | select.POLLOUT)
    while True:
        either.poll()
        with contextlib.suppress(BlockingIOError):
            left = left[sock.send(left) :] or requests
        with contextlib.suppress(BlockingIOError):
            sock.recv(1 << 16)


def large_directories(served: Served, domid: int, raw: Raw) -> bytes:
    for k in range(900):
        assert raw.call(MessageType.MKDIR, f"d/{k}{LONG}") == b"OK\0"
    return request(MessageType.DIRECTORY, "d") * 50 + request(MessageType.DIRECTORY_PART, "d", "400000")


def own_watches(served: Served, domid: int, raw: Raw) -> bytes:
    for k in range(128):
        assert raw.call(MessageType.WATCH, "a", f"{k}") == b"OK\0"
    return b"".join(request(MessageType.WRITE, "/".join(["a"] * 400) + f"/{k}", "") for k in range(50))


def watched_by_others(served: Served, domid: int, raw: Raw) -> bytes:
    """Each makes a tree that all may read, and removes it; each watches all of that."""
    raw.call(MessageType.MKDIR, "t")
    raw.call(MessageType.SET_PERMS, "t", f"b{domid}")
    for other in ATTACKERS:
        for k in range(128 // len(ATTACKERS)):
            assert raw.call(MessageType.WATCH, f"/local/domain/{other}/t", f"{k}") == b"OK\0"
    made = [request(MessageType.WRITE, f"t/{j}/{k}", "") for j in range(30) for k in range(30)]
    return b"".join(made) + request(MessageType.RM, "t/0") + request(MessageType.RM, "t") + request(MessageType.MKDIR, "t")


@contextlib.contextmanager
def attacked(served: Served, attack: Callable[[Served, int, Raw], bytes]) -> Iterator[Callable[[int], None]]:
    """All attackers are at it, but when a SIGSTOP was sent to them."""
    raws = {domid: served.raw(domid) for domid in ATTACKERS}
    pids = []
    try:
        asked = [(raw.sock, attack(served, domid, raw)) for domid, raw in raws.items()]
        for sock, requests in asked:
            pids.append(forked(lambda sock=sock, requests=requests: hammer(sock, requests)))  # type: ignore[misc]

        def send(number: int) -> None:
            for pid in pids:
                os.kill(pid, number)

        yield send
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("attack", [large_directories, own_watches, watched_by_others], ids=lambda attack: attack.__name__)
def test_a_bystander_is_served_beside_greedy_guests(attack: Callable[[Served, int, Raw], bytes]) -> None:
    with xenstored([*ATTACKERS, BYSTANDER, 0]) as served:
        clients = served.raw(BYSTANDER), served.raw(0)
        times: dict[int, list[int]] = {signal.SIGSTOP: [], signal.SIGCONT: []}
        for client in clients:
            assert client.call(MessageType.WRITE, "alive", "yes") == b"OK\0"
        with attacked(served, attack) as send:
            for _ in range(5):
                for number, found in times.items():
                    send(number)
                    for client in clients * 50:
                        start = time.monotonic_ns()
                        assert client.call(MessageType.READ, "alive") == b"yes\0"
                        found.append(time.monotonic_ns() - start)
        alone, beside = (statistics.median(found) for found in times.values())
        assert beside < WAITS * max(alone, SLICE_NS / 2)


def test_a_guest_that_keeps_writing_does_not_keep_domain_0_from_committing() -> None:
    """Xen's advisory XSA-206. Each attempt that fails costs the guest credit; when it has none, Domain 0 comes through."""
    with xenstored([0, 5, 6]) as served:
        attacker, bystander = served.raw(5), served.raw(6)
        pid = forked(lambda: hammer(attacker.sock, b"".join(request(MessageType.WRITE, "name", f"{k}") for k in range(100))))

        async def main() -> int:
            attempts = 0

            async def rename(transaction: Transaction) -> None:
                nonlocal attempts
                attempts += 1
                await transaction.read("/local/domain/5/name")
                for k in range(20):
                    await transaction.write("/local/domain/5/name", f"mine{k}")

            async with await XenstoreClient.open(served.clients[0].pop()) as dom0:
                while "name" not in await dom0.directory("/local/domain/5"):
                    await asyncio.sleep(0)
                for _ in range(3):
                    await dom0.retry(rename)
            return attempts

        try:
            attempts = asyncio.run(asyncio.wait_for(main(), patient(20)))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert attempts < 3 + CONFLICTS[0] + patient(20)  # one more a second
        assert bystander.call(MessageType.WRITE, "alive", "yes") == b"OK\0"


def test_conflicts_of_guests_cost_nobody_credit() -> None:
    """Else a guest could have another one stopped, by transactions that are meant to fail."""
    with xenstored([5, 6]) as served:
        victim, attacker = served.raw(5), served.raw(6)
        victim.call(MessageType.WRITE, "open", "")
        victim.call(MessageType.SET_PERMS, "open", "b5")
        for k in range(50):
            tx = int(attacker.call(MessageType.TRANSACTION_START, "").rstrip(b"\0"))
            attacker.call(MessageType.READ, "/local/domain/5/open", tx=tx)
            attacker.call(MessageType.WRITE, "mine", f"{k}", tx=tx)
            assert victim.call(MessageType.WRITE, "open", f"{k}") == b"OK\0"
            assert attacker.call(MessageType.TRANSACTION_END, "T", tx=tx) == b"EAGAIN\0"


def test_who_has_domain_0_told_of_much_has_to_wait() -> None:
    """Domain 0 reads a device's nodes whenever its state was written. Others, who write what nobody watches, wait for nothing."""
    with xenstored([0, 5, 6]) as served:
        dom0, guest, bystander = served.raw(0), served.raw(5), served.raw(6)
        dom0.call(MessageType.WATCH, "/local/domain/5/state", "token")
        burst, per_s = EVENTS
        began, writes = time.monotonic(), int(burst) + 25
        guest.sock.sendall(b"".join(request(MessageType.WRITE, "state", f"{k}") for k in range(writes)))
        for k in range(writes):
            assert bystander.call(MessageType.WRITE, "name", f"{k}") == b"OK\0"
        for _ in range(writes):
            assert guest.receive().type == MessageType.WRITE
        assert time.monotonic() - began >= 20 / per_s
        assert dom0.call(MessageType.READ, "/local/domain/5/state").rstrip(b"\0") == f"{writes - 1}".encode()


def test_what_a_transaction_causes_at_once_is_owed_until_it_is_paid() -> None:
    burst, per_s = EVENTS
    credit = Credit(burst, per_s)
    for _ in range(900):
        credit.debit(5)
    assert credit.wait_s(5) > (900 - burst) / per_s - 1
    assert credit.wait_s(6) == 0
    credit.forget(5)
    assert credit.wait_s(5) == 0


@pytest.mark.usefixtures("no_descriptor_is_left")
def test_a_client_that_was_dear_to_receive_from_is_received_from_by_the_byte_and_pays() -> None:
    """Its packets are the kernel's to count: a read of so many bytes may take as many of them."""
    used, now = [0], [0]
    near, far = socket.socketpair()
    near.setblocking(False)
    connection = Connection(BYSTANDER, near, Store().connect(BYSTANDER), served.Served().of(BYSTANDER))
    connection.debt = Debt(clock=lambda: now[0], used=lambda: used.__setitem__(0, used[0] + cost[0]) or used[0])
    cost = [1000]
    far.send(bytes(100))
    assert connection.receive()
    assert connection.partial == 100
    assert connection.debt.wait_s() == 0
    cost[0] = 100 * DEAR_NS
    far.send(bytes(3))
    assert connection.receive()
    assert connection.debt.wait_s() > 0
    cost[0] = 1000
    far.send(bytes(100))
    before = connection.partial
    for k in range(3):
        assert connection.receive()
        assert connection.partial == before + k + 1
    near.close()
    far.close()
