"""The hostile guest's role: it boots and connects as any other, and then does what its console says. Its own program never runs.

Operations of its console:

attack {name, macs, streams}   begin an attack of the catalogue; answers when it has been tried once. `macs`: of the others, by
                               name; `streams`: those that the bystanders exchange
control {name, macs, sent_to}  begin what an honest guest does in its place (`Control`); `sent_to`: it takes what it is sent
calm {}                        end it: {"attempts", "got": {what the attacker was told: how often}, "error"}
canaries {headers}             how many canaries there are in this guest's RAM, and how many frames with one of these headers
"""

import threading
from collections.abc import Callable
from typing import Any

from bench.isolation import loops
from bench.isolation.attack import Control
from bench.isolation.attacker import Attacker
from bench.isolation.catalogue import ATTACKS
from bench.isolation.descriptors import FRAME, send_chains_to_be_cut, send_to_be_cut
from bench.isolation.frames import NOBODY, of_random_lengths
from bench.isolation.scattered import use_pool
from domu.guest import Guest
from hyp.abi.nic import MIN_BUFFER
from hyp.process import Process
from hyp.xenstore.client import XenstoreClient

SEGMENT = 1448
"""What TCP sends at once at an MTU of 1500: 40 bytes of headers and 12 of its timestamps are the rest."""


class Hostile:
    """What the console offers."""

    def __init__(self, process: Process, attacker: Attacker) -> None:
        self._attacker = attacker
        for op in (self.attack, self.control, attacker.calm, attacker.canaries):
            process.serve(op.__name__, op)

    async def attack(self, name: str, macs: dict[str, str], streams: list[int]) -> None:
        a = self._attacker
        a.macs, a.streams = macs, streams
        await a.begin(lambda: ATTACKS[name].run(a))

    async def control(self, name: str, macs: dict[str, str], sent_to: bool) -> None:
        a = self._attacker
        a.macs = macs
        honest: dict[Control, Callable[[], Any]] = {
            Control.QUIET: (lambda: receive(a)) if sent_to else a.rest,
            Control.BUSY: lambda: a.loop(loops.compute),
            Control.NOTIFIED: lambda: be_notified(a),
            Control.TAKES: lambda: a.loop(loops.post_again, size=MIN_BUFFER),
            Control.SENDS: a.rest,  # another one does, whose driver is nobody's toy (trial.py)
            Control.POOL: lambda: use_pool(a),
            Control.POOL_BUFFERS: lambda: use_pool(a, buffers=True),
            Control.POSTS: lambda: post(a),
            Control.ADDRESSES: lambda: address(a),
            Control.SEGMENTS: lambda: send_to_be_cut(a, SEGMENT),
            Control.CHAINS: lambda: send_chains_to_be_cut(a, SEGMENT),
            Control.CALLS: lambda: call(a),
            Control.READS: lambda: read(a),
        }
        await a.begin(honest[Control(name)])


# --- what an honest guest does ----------------------------------------------------------------------------------------


def receive(a: Attacker) -> None:
    """Take what is sent."""
    while a.goes_on() and a.rest(0.001):
        a.take_what_comes()


def be_notified(a: Attacker) -> None:
    """Compute, and take what is sent, notified each time."""
    computing = threading.Thread(target=a.loop, args=(loops.compute,))
    computing.start()
    a.be_notified()
    computing.join()


def post(a: Attacker) -> None:
    """As attacks by descriptors post theirs, a few at a time, each a sound frame to nobody on the wire."""
    a.driver.write(a.driver.page(0), a.header(NOBODY, kind=b"\x08\x00").ljust(FRAME, b"\0"))
    while a.goes_on():
        for _ in range(min(a.driver.room(), 16)):
            a.driver.send(a.driver.page(0), FRAME)
        a.driver.publish()


def address(a: Attacker) -> None:
    """As many frames as attacks by frames send, in the same way, and of the kinds and lengths that random ones have."""
    frames = of_random_lengths(a, sound=True)
    while a.goes_on():
        a.send_all(frames)


def call(a: Attacker) -> None:
    """A hypercall after the other."""
    while a.goes_on():
        a.call("domain_info")


def read(a: Attacker) -> None:
    """A node of the store after the other."""
    while a.goes_on():
        a.ask("read", a.home("name"))


async def main(process: Process, config: dict[str, Any]) -> None:
    """The guest process's role."""
    guest = Guest(process, config)
    await guest.boot()
    await guest.connect()
    store = next((one for one in guest.device.keep if isinstance(one, XenstoreClient)), None)
    if store is None:
        store = await XenstoreClient.lasting(process.store_socket)
    hostile = Hostile(process, Attacker(process, guest, store))
    process.ready()
    await process.stopped.wait()
    del hostile
