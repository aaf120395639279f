"""A topology under attack: who is in it, and what an attack does to the others.

On one path: anna and bert exchange verified streams, both ways at a time; carl, full of canaries, asks hypervisor and store, and
sends a verified stream to the wire; dave, an honest guest, sends to the attackers that are to be sent to, or as fast as he can,
where that is the control; erin does what the other controls say; and one hostile guest for each attack. A *slice* is the
bystanders' streams beside an attack, or beside its control: their rates, their losses, the canaries, and how many set-up calls were
answered.

Attackers have a CPU to themselves, as virtual CPUs that are pinned have; all that serves them shares another one with the
bystanders. So an attack costs the bystanders what it makes others do, and no more.
"""

import asyncio
import itertools
import os
from collections.abc import Sequence
from typing import Any

from bench.isolation.attack import Attack, Control
from bench.method.contenders import topology
from bench.method.samples import Slice
from hyp.abi.frame import HEADER_ONLY
from hyp.control import ControlError
from lab.counters import CounterReader
from lab.ledger import DROP_NAMES, FAULT_NAMES, difference
from lab.owner import Lab
from lab.plan import MODULES

ONE, OTHER, CANARIES, SENDER, EQUAL = "anna", "bert", "carl", "dave", "erin"
HONEST = (ONE, OTHER, CANARIES, SENDER, EQUAL)
ATTACKER, VICTIM = "bench.isolation.hostile", "bench.isolation.victim"
STREAMS = ("there_mpps", "back_mpps", "wire_mpps")
"""The bystanders' streams, by what their rates are called: from anna to bert, from bert to anna, from carl to the wire."""
FRAME = 200
NOBODY = "02:00:00:00:77:77"
SENT_TO_PPS = 20_000
FULL_FRAME = 1500
"""Sent as fast as can be: an honest receiver of these keeps the device as busy as a hostile one can."""
REST_S = 5.0
PAUSE_US = 1_000_000
"""How long who sends waits for a bystander that has its turn on the CPU yet to come: longer than a busy machine lets it wait."""
CALLS_S = 0.05
STORM_PPS = 1000
"""Broadcasts a second that a guest may send, as any network has a limit in which guests are not trusted."""


class AttackedLab(Lab):
    """A lab in which some guests are hostile, and one is full of canaries."""

    def modules(self) -> list[str]:
        """See `Lab.modules`."""
        return [*MODULES, ATTACKER, VICTIM]

    def processes(self) -> list[dict[str, Any]]:
        """See `Lab.processes`."""
        planned = super().processes()
        for process in planned:
            if process["role"] == "domu" and process["name"] not in (ONE, OTHER, SENDER):
                process["module"] = VICTIM if process["name"] == CANARIES else ATTACKER
        return planned


def hostile_name(attack: Attack) -> str:
    """The guest's that carries an attack out."""
    return "m-" + attack.name.replace(" ", "-")[:20]


class Trial:
    """A path under some attacks. ``async with Trial("bypass", attacks) as trial``."""

    def __init__(self, path: str, attacks: Sequence[Attack], name: str, backing: str = "posix", **more: Any) -> None:
        self.path, self.attacks, self.broken = path, attacks, ""
        names = [*HONEST, *map(hostile_name, attacks)]
        allowed = sorted(os.sched_getaffinity(0))
        theirs, ours = allowed[:1], allowed[-1:]
        cpu: dict[str, Any] = {"hyp": ours, "dom0": ours, "nic": ours, "spin": []}
        cpu["guests"] = {one: ours if one in HONEST[:3] else theirs for one in names}
        guests: list[dict[str, Any]] = [{"name": one, "path": path} for one in HONEST]
        guests += [{"name": hostile_name(attack), "path": path, **attack.guest} for attack in attacks]
        nic = {"pause_us": PAUSE_US, "storm_pps": STORM_PPS}
        plain = topology(name, (), others=guests, memory={"backing": backing}, cpu=cpu, nic=nic, **more)
        self.lab = AttackedLab(plain)
        self.macs = {guest["name"]: guest["mac"] for guest in plain["guest"]} | {"wire": plain["nic"]["wire"]["mac"]}
        self._streams = itertools.cycle(range(1, HEADER_ONLY - 4, 4))
        self._reader: CounterReader

    async def __aenter__(self) -> "Trial":
        await self.lab.start()
        self._reader = await self.lab.counters()
        for one in HONEST[:4]:  # so that who belongs where is known
            await self.lab.call(one, "send_stream", mac="ff:ff:ff:ff:ff:ff", frame=64, stream=next(self._streams), frames=1)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.lab.stop()

    async def slice(self, attack: Attack, seconds: float, *, attacked: bool) -> Slice:
        """The bystanders beside an attack, or beside its control."""
        if self.broken:
            return Slice(errors=[self.broken])
        name, stream = hostile_name(attack) if attacked else EQUAL, next(self._streams)
        if name not in self.lab.deaths:
            before = self._reader.read()
            await self._begin(name, attack, [stream, stream + 1], attacked=attacked)
        to = self.macs[name] if attack.sent_to else None
        if not attacked and attack.control_on(self.path) is Control.SENDS:
            to = NOBODY
        result = await self._bystanders(stream, seconds, to, paced=to != NOBODY and not attack.fast)
        if name not in self.lab.deaths:
            result.detail |= await self._end(name, before)
        else:
            result.detail |= {"attempts": 0, "got": {self.lab.deaths[name][:80]: 1}}
        await self._look(result, name)
        return result

    async def _begin(self, name: str, attack: Attack, streams: list[int], *, attacked: bool) -> None:
        try:
            if attacked:
                begun = self.lab.call(name, "attack", name=attack.name, macs=self.macs, streams=streams)
            else:
                begun = self.lab.call(name, "control", name=attack.control_on(self.path), macs=self.macs, sent_to=attack.sent_to)
            await asyncio.wait_for(begun, REST_S)
        except (ControlError, TimeoutError):  # what it has done has hit its own console, too
            return

    async def _end(self, name: str, before: dict[str, dict[str, int]]) -> dict[str, Any]:
        try:
            report = dict(await asyncio.wait_for(self.lab.call(name, "calm"), REST_S))
        except (ControlError, TimeoutError) as error:
            report = {"attempts": 0, "got": {type(error).__name__: 1}, "error": ""}
        counted = difference(self._reader.read(), before)
        for row, counts in counted.items():
            if row.endswith(f":{name}") and row.startswith(("nic/", "dom0/", "hyp/")):
                for what in (*FAULT_NAMES, *DROP_NAMES):
                    if counts.get(what):
                        report["got"][what] = report["got"].get(what, 0) + counts[what]
        return report

    async def _bystanders(self, stream: int, seconds: float, sent_to: str | None, *, paced: bool) -> Slice:
        """Streams both ways between anna and bert; carl's to the wire, and his calls; dave's to `sent_to`, if that is somebody."""
        try:
            for sender, receiver, number in ((ONE, OTHER, stream), (OTHER, ONE, stream + 1)):
                await self.lab.call(receiver, "expect", stream=number, mac=self.macs[sender])
            await self.lab.call("nic", "wire_expect", stream=stream + 2, mac=self.macs[CANARIES])
            sent = await asyncio.wait_for(asyncio.gather(*self._work(stream, seconds, sent_to, paced=paced)), seconds + REST_S + 30)
        except (ControlError, TimeoutError) as error:
            self.broken = f"the bystanders stand still: {str(error) or type(error).__name__}"
            return Slice(errors=[self.broken])
        return await self._received(stream, sent)

    def _work(self, stream: int, seconds: float, sent_to: str | None, *, paced: bool) -> list[Any]:
        job = {"frame": FRAME, "seconds": seconds}
        work = [
            self.lab.call(ONE, "send_stream", mac=self.macs[OTHER], stream=stream, **job),
            self.lab.call(OTHER, "send_stream", mac=self.macs[ONE], stream=stream + 1, **job),
            self.lab.call(CANARIES, "send_stream", mac=self.macs["wire"], stream=stream + 2, **job),
            self.lab.call(CANARIES, "calls", seconds=min(CALLS_S, seconds)),
        ]
        if sent_to is not None:
            pace = {"pps": SENT_TO_PPS} if paced else {"frame": FRAME if sent_to == NOBODY else FULL_FRAME}
            work.append(self.lab.call(SENDER, "send_stream", mac=sent_to, stream=stream + 3, **(job | pace)))
        return work

    async def _received(self, stream: int, sent: Sequence[dict[str, Any]]) -> Slice:
        """Wait until what was sent is there, or nothing comes any more."""
        *streams, calls = sent[: len(STREAMS) + 1]
        deadline = asyncio.get_running_loop().time() + REST_S
        while True:
            reports = [await self.lab.call(name, "received", stream=stream + k) for k, name in enumerate((OTHER, ONE))]
            reports.append((await self.lab.call("nic", "wire_report", stream=stream + 2))["received"])
            lost = sum(one["sent"] for one in streams) - sum(report["frames"] for report in reports)
            if lost <= 0 or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
        corrupt = sum(report["corrupt"] + report["duplicated"] for report in reports)
        errors = [f"{lost} frames of the bystanders lost"] if lost else []
        errors += [f"{corrupt} frames of the bystanders corrupt or twice"] if corrupt else []
        rates = [report["frames"] / max(report["last_ns"] - report["first_ns"], 1) * 1000 for report in reports]
        figures = {"mpps": sum(rates[:2]), "calls_per_s": (calls["calls"] + calls["reads"]) / calls["seconds"]}
        figures |= dict(zip(STREAMS, rates, strict=True))
        return Slice(figures, errors, {"lost": lost, "corrupt": corrupt, "slowest_ms": calls["slowest_ms"]})

    async def _look(self, result: Slice, name: str) -> None:
        """Who is dead, what leaked, and whose memory was changed."""
        if self.broken:
            await self.lab.any_death()
        dead = {who: cause for who, cause in self.lab.deaths.items() if not who.startswith("m-")}
        result.errors += [f"{who} died: {cause}" for who, cause in dead.items()]
        if dead:
            self.broken = "the topology is broken"
        if self.broken:
            return
        try:
            await asyncio.wait_for(self.lab.keeper("status"), REST_S)
        except TimeoutError:
            result.errors.append("the keeper does not answer")
        changed = await self.lab.call(CANARIES, "intact")
        leaked = 0
        if name not in self.lab.deaths:
            headers = [
                bytes.fromhex((self.macs[to] + self.macs[source]).replace(":", "")) for to, source in ((ONE, OTHER), (OTHER, ONE))
            ]
            try:
                found = await asyncio.wait_for(self.lab.call(name, "canaries", headers=headers), REST_S)
                leaked = found["canaries"] + found["frames"]
            except (ControlError, TimeoutError):
                leaked = 0
        result.detail |= {"leaked": leaked, "changed": changed}
        result.errors += [f"{leaked} canaries or frames of others in the attacker's memory"] if leaked else []
        result.errors += [f"{changed} canaries changed"] if changed else []
