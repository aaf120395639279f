"""Attacks by having several queues, each of which is served, waited for, and may be broken."""

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from bench.isolation import loops
from bench.isolation.attack import Control, Door, attack
from bench.isolation.attacker import Attacker
from bench.isolation.descriptors import FRAME
from bench.isolation.drivers import RingDriver
from bench.isolation.frames import NOBODY
from dom0.xenbus_states import CLOSED, CLOSING, CONNECTED, INIT_WAIT, INITIALISING
from hyp.abi.domids import DOM0
from hyp.abi.nic import PAGE
from hyp.xenstore.xenbus import backend_path

PATHS: Final = ("bypass", "split")
SEVERAL: Final[dict[str, Any]] = {"queues": 4, "memory": "16 MiB"}
EIGHT: Final[dict[str, Any]] = {"queues": 8, "memory": "20 MiB"}
ANSWER_S: Final = 3.0


def _on_all(a: Attacker, to: str, addresses: Sequence[int] = (), *, more: bool = False) -> None:
    """Sends on all queues by turns, as fast as they take them: of a sound frame to a MAC address, or from these addresses."""
    frame = a.header(to, kind=b"\x08\x00").ljust(FRAME, b"\0")
    for driver in a.drivers:
        driver.write(driver.page(0), frame)
    numbers = itertools.count()
    while a.goes_on():
        for driver in a.drivers:
            for _ in range(min(driver.room(), 16)):
                driver.send(addresses[next(numbers) % len(addresses)] if addresses else driver.page(0), FRAME, more=more)
            driver.publish()


@attack("sends on four queues at once", Door.RINGS, Control.SENDS, paths=PATHS, guest=SEVERAL)
def every_queue_at_once(a: Attacker) -> None:
    _on_all(a, NOBODY)


@attack("sends on four queues to a neighbour who takes nothing", Door.RINGS, Control.SENDS, paths=PATHS, guest=SEVERAL)
def every_queue_waits(a: Attacker) -> None:
    _on_all(a, a.macs["erin"])


@attack("frames from where there is nothing, on four queues at once", Door.RINGS, Control.SENDS, paths=PATHS, guest=SEVERAL)
def every_queue_refused(a: Attacker) -> None:
    size = a.driver.size
    _on_all(a, NOBODY, [size + PAGE, (1 << 63) + PAGE, size - FRAME + 1, PAGE * ((1 << 32) - 1)])


@attack("four chains that have no end", Door.RINGS, Control.SENDS, paths=PATHS, guest=SEVERAL)
def endless_chains(a: Attacker) -> None:
    _on_all(a, NOBODY, more=True)


@attack("garbage on four queues at once, at full speed", Door.RINGS, Control.SENDS, paths=PATHS, guest=SEVERAL)
def garbage_on_every_queue(a: Attacker) -> None:
    entry = loops.post_ring_garbage if isinstance(a.driver, RingDriver) else loops.post_garbage
    others = [threading.Thread(target=a.loop, args=(entry, driver)) for driver in a.drivers[1:]]
    for thread in others:
        thread.start()
    a.loop(entry)
    for thread in others:
        thread.join()


@attack("four queues, of which one after the other claims more than it has", Door.RINGS, Control.QUIET, paths=PATHS, guest=SEVERAL)
def queue_after_queue(a: Attacker) -> None:
    for driver in a.drivers:
        driver.claim(driver.slots + 1)
        a.goes_on()
        if not a.rest(0.05):
            return
    a.rest()


@attack("closes its vif of eight queues and connects it again", Door.CALLS, Control.READS, paths=("split",), guest=EIGHT)
def reconnects(a: Attacker) -> None:
    while a.goes_on():
        for state, answers in ((CLOSED, (CLOSED,)), (INITIALISING, (INIT_WAIT,)), (CONNECTED, (CONNECTED, CLOSING))):
            a.ask("write", f"{a.front}/state", str(int(state)))
            _await_back(a, answers)


def _await_back(a: Attacker, states: Sequence[int]) -> None:
    """Wait until its back end is in one of these states, for a while."""
    back, until = backend_path(DOM0, "vif", a.guest.domid, 0), time.monotonic() + ANSWER_S
    while a.goes_on(0) and time.monotonic() < until:
        if a.ask("read", f"{back}/state") in {str(int(state)) for state in states}:
            return
        time.sleep(0.0005)
