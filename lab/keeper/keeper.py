"""The keeper: a topology's init. It forks everything, holds what must outlive its owner, and alone decides lifetime.

Where namespaces are to be had it is PID 1 of the topology's PID namespace, so that its own death ends everything. It holds the
topology's lock, both ends of every domain's sockets as long as both sides live, and the regions that the hypervisor
hands it. It has no other knowledge: what
processes there are and what they are told comes in the plan.

States: starting → up (degraded, once a process is dead for good) → going down → gone. Starting fails as a whole when a daemon ends,
or a guest that never was ready: the plan's caller gets its name and cause. Up, a process that ends is reported to the owner
(launch.py), and either another one is forked in its place (`restart` in the plan, `Restarts` permitting; docs/faults.md) or, for a
domain, the hypervisor is told that it is no more; so is, then, a guest that was ready and has ended while others started. The
owner's socket closing, however the owner ended, takes the topology down; a client that wants it down asks the owner to go, and does
not wait for one that does not.

A plan is a list of processes in the order in which they are to be forked::

    {"name", "role", "module", "config", "domain": None or {"domid", "memory"}, "xenstore": None or domid,
     "machine": whether it has an init (domu/machine.py), "cpus": None or [CPU numbers], "spins": whether its loops may spin,
     "restart": None or [restarts, within_s]}

Who is started again finds in its config what nobody else has: `restarts`, how often there was one before it, and `gone`, the
domains that are no more; one of these that is to be started again is announced to Dom0 by `domain_again`.
"""

import asyncio
import contextlib
import functools
import signal
import socket
from typing import Any

from hyp import linux
from hyp.control import Answer, Channel, ControlError, Handler, PeerGone, Refused, close_all, socketpair
from hyp.control.descriptors import hang_up, refuse_descriptors
from hyp.control.served import Served, new_pages
from hyp.control.words import printable
from lab.keeper.births import Births
from lab.keeper.child import GUEST, Child, describe_exit, end
from lab.keeper.held import Held
from lab.keeper.lifeline import Lifeline
from lab.keeper.news import News
from lab.keeper.output import Output
from lab.keeper.restarts import READY_S, Limit, Restarts
from lab.keeper.store import XENSTORED, StoreKeeping
from lab.rundir import RunDir

OWNER_TIMEOUT_S = 5.0
ATTACH_TIMEOUT_S = 60.0
"""Who is stopped may be let go on, and is waited for; but a guest that does not answer is not kept in mind for good."""
MAX_NOTICES = 4
"""Of a process: what more it wants to say is in nobody's interest."""
MAX_CLIENTS = 64
SERVE_GUESTS = ("hyp", XENSTORED)
"""Control planes that serve guests, as the keeper does: these three serve each by one of them at a time (hyp/control/served.py)."""
TITLE = "xen-bypass-lab"
"""What the command line of every process of a topology begins with, then the topology's name, then the process's."""


class Keeper:
    """Starts, holds, starts again, ends."""

    def __init__(self, owner: socket.socket, rundir: RunDir, forkserver_pid: int, forkserver: socket.socket) -> None:
        self._rundir = rundir
        self._loop = asyncio.get_running_loop()
        self._children: dict[str, Child] = {}
        self._held = Held()
        self._outputs: dict[str, Output] = {}
        self._restarts = Restarts()
        self._served_pages = new_pages()
        self._served = Served(self._served_pages)
        self._store = StoreKeeping(rundir, functools.partial(self._ask, XENSTORED))
        self._restarting: set[asyncio.Task[None]] = set()
        self._clients: set[Channel] = set()
        self._news = News()
        self._info: dict[str, Any] = {"name": rundir.name, "state": "starting"}
        self._up_since: float | None = None
        self._down: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(number, self.go_down)
        self._owner = Channel(owner, self._handlers(owner=True), name="launch.py", on_close=self.go_down)
        passed_on = {told: functools.partial(self._owner.tell, told) for told in ("compiling", "progress", "notice")}
        self._births = Births(self, forkserver_pid, forkserver, passed_on)

    def _handlers(self, *, owner: bool = False) -> dict[str, Any]:
        handlers = {
            "status": self.status,
            "console": self.console,
            "held": self._held.ending_in,
            "pidfds": self.pidfds,
            "machine": self.machine,
            "moved": self.moved,
        }
        return {**handlers, "boot": self.boot, "down": self.down} if owner else {**handlers, "down": self.ask_down}

    # -- operations --

    async def boot(self, plan: list[dict[str, Any]], info: dict[str, Any]) -> dict[str, float]:
        """Fork the plan's processes and wait until all are ready. Refused, naming the one that is not and why."""
        self._info.update(info)
        warm_s = await self._births.warm()
        self._owner.tell("warm", seconds=warm_s)
        start = self._loop.time()
        for process in plan:
            await self._spawn(process)
        await self._all_ready()
        self._info["state"] = "up"
        self._news.add("up", self._rundir.name, "all processes are ready")
        self._up_since = self._loop.time()
        for child in list(self._children.values()):
            if child.ended.done() and self._down is None:
                self._outlive(child)
        return {"warm_s": warm_s, "boot_s": self._loop.time() - start}

    def status(self) -> dict[str, Any]:
        """State ("starting", "up", "degraded", "going down"), since when it is up, what has died since, notices, and processes."""
        children = [
            {"name": c.name, "role": c.role, "domid": c.domid, "state": c.state, "restarts": c.restarts}
            for c in self._children.values()
        ]
        dead = [f"{c.name} {c.state}" for c in self._children.values() if c.ended.done() and not (c.is_done or c.restarting)]
        dead += [self._births.over] if self._births.over else []
        notices = [text for c in self._children.values() for text in c.notices]
        state = self._info["state"]
        if self._down is not None:
            state, dead = "going down", []
        elif state == "up" and dead:
            state = "degraded"
        up_s = None if self._up_since is None else self._loop.time() - self._up_since
        return {**self._info, "state": state, "up_s": up_s, "dead": dead, "notices": notices, "processes": children}

    def moved(self, guest: str, path: str) -> None:
        """A guest has changed its path: what it is said to be on, and what whoever is started again is told. Refused (ESRCH)."""
        tables = [self._info["guests"], *(child.plan["config"].get("guests", []) for child in self._children.values())]
        tables.append([child.plan["config"] for child in self._children.values() if child.role == GUEST])
        found = [table for of in tables for table in of if table.get("name") == guest]
        if not found:
            raise Refused("ESRCH", f"there is no guest named {guest!r} in topology {self._rundir.name!r}")
        for table in found:
            table["path"] = path
        self._news.add("moved", guest, f"it is on path {path}")

    def pidfds(self) -> Answer:
        """Names of the living processes, and fds: their pidfds."""
        living = [child for child in self._children.values() if not child.ended.done()]
        return Answer([child.name for child in living], fds=[child.pidfd for child in living])

    def machine(self, guest: str) -> Answer:
        """fds: of a guest in which programs can run, pidfds of its process and its init, and its lifeline. Refused (ESRCH)."""
        child = self._children.get(guest)
        if child is None or child.ended.done() or child.lifeline is None or child.lifeline.init is None:
            raise Refused("ESRCH", f"there is no living guest named {guest!r} in topology {self._rundir.name!r} that runs programs")
        return Answer(fds=[child.pidfd, child.lifeline.init, child.lifeline.fd])

    async def console(self, name: str) -> Answer:
        """fds: one end of a new control socket, whose other end process `name` serves; the next one, if it is being restarted."""
        child = await self._living(name)
        ours, theirs = socketpair()
        with theirs:
            try:
                async with asyncio.timeout(ATTACH_TIMEOUT_S):
                    await child.console.call("attach", fds=[theirs.fileno()])
            except TimeoutError:
                raise Refused("ETIMEDOUT", f"{name} has not answered for {ATTACH_TIMEOUT_S:g} s") from None
        fd = ours.detach()
        return Answer({"role": child.role}, fds=[fd], close=[fd])

    async def ask_down(self) -> None:
        """`down` for a client: the owner is asked to go, which is how it ends in order; one that does not go is not waited for."""
        self._owner.tell("asked_to_stop")
        await asyncio.wait([self._owner.closed], timeout=OWNER_TIMEOUT_S)
        await self.down()

    async def down(self) -> None:
        """End the topology; answered when everything has ended but the keeper."""
        self.go_down()
        assert self._down is not None
        await asyncio.shield(self._down)

    def accept(self, listener: socket.socket) -> None:
        """Serve one more client of the keeper's socket."""
        with contextlib.suppress(BlockingIOError):
            sock, _ = listener.accept()
            self._clients = {client for client in self._clients if not client.closed.done()}
            if len(self._clients) >= MAX_CLIENTS:
                sock.close()
                return
            handlers = self._handlers()
            client = Channel(sock, handlers, name="a client", untrusted=True)
            handlers["watch"] = functools.partial(self._news.watch, client)
            self._clients.add(client)

    # -- spawning --

    async def _living(self, name: str) -> Child:
        """The process of that name; waited for while it is being restarted. Refused (ESRCH) if there is none."""
        while (child := self._children.get(name)) is not None and child.ended.done() and child.restarting:
            await asyncio.wait({child.succeeded})
        if child is None or child.ended.done():
            raise Refused("ESRCH", f"there is no living process named {name!r} in topology {self._rundir.name!r}")
        return child

    async def _ask(self, name: str, op: str, /, **args: Any) -> Child:
        """Ask the living process of that name, or the next one if it dies over it; returns who has answered. Refused (ESRCH)."""
        while True:
            child = await self._living(name)
            try:
                await child.console.call(op, **args)
            except PeerGone:
                await asyncio.wait({child.ended})
            else:
                return child

    async def _spawn(self, plan: dict[str, Any], restarts: int = 0) -> Child:
        """Fork a process of the plan; the `restarts`-th of those that take the place of a dead one."""
        guest = plan["role"] == GUEST
        more = {"output": await self._output(plan["name"])} if guest else {}
        try:
            return await self._spawn_with(plan, restarts, more)
        finally:
            close_all([*more.values()])

    async def _spawn_with(self, plan: dict[str, Any], restarts: int, more: dict[str, int]) -> Child:
        console, far = socketpair()
        guest = plan["role"] == GUEST
        sockets: dict[str, tuple[socket.socket, socket.socket]] = {}
        if plan["domain"] is not None:
            sockets["hypercalls"] = socketpair()
            if guest:
                refuse_descriptors(sockets["hypercalls"][0])
            await self._create_domain(plan, sockets["hypercalls"][0], restarts)
        store: Child | None = None
        if plan["xenstore"] is not None:
            sockets["xenstore"], store = await self._store.pair(plan["xenstore"])
        args = {key: plan[key] for key in ("name", "role", "module", "config", "cpus", "spins")}
        if restarts > 0:
            dead = [child for child in self._children.values() if child.ended.done() and child.domid is not None]
            gone = [child.domid for child in dead if child.role == GUEST or not child.restarting]
            args["config"] = {**args["config"], "restarts": restarts, "gone": gone}
        args["title"] = [TITLE, self._rundir.name, linux.shown_name(plan["name"], plan["role"])]
        fds = [far.fileno(), *(own.fileno() for _, own in sockets.values())]
        held = {"served": self._served_pages} if plan["role"] in SERVE_GUESTS else {}
        held |= {"journal": self._store.journal} if plan["role"] == XENSTORED else {}
        lifeline = Lifeline() if plan["machine"] else None
        held |= lifeline.ends if lifeline is not None else {}
        born = await self._births.fork(["console", *sockets, *held, *more], [*fds, *held.values(), *more.values()], args)
        child = self._add(plan, *born, console, sockets, lifeline, restarts)
        far.close()
        if lifeline is not None:
            lifeline.handed_over()
        if plan["role"] == XENSTORED:
            await self._store.serve(child, self._children.values())
        elif store is not None and store.ended.done():
            await self._store.renew(child)
        return child

    async def _output(self, guest: str) -> int:
        """The guest's end of the pipe for what it prints; the caller closes it.

        Refused (EBUSY) if a process that its last life has left keeps that one's from being closed: else each life would leave one.
        """
        if (former := self._outputs.get(guest)) is not None:
            former.end()
            if not await asyncio.to_thread(former.has_ended):
                raise Refused("EBUSY", f"{guest}: a process that its last life has left holds on to what that has printed")
        output = self._outputs[guest] = Output(self._rundir.guest_log(guest))
        return output.hand_over()

    async def _create_domain(self, plan: dict[str, Any], near: socket.socket, restarts: int) -> None:
        """Let the hypervisor create a domain, or resume that of a daemon which has died."""
        domain, again = plan["domain"], restarts > 0 and plan["role"] != GUEST
        hypervisor = self._children["hyp"]
        if not hypervisor.ready.done():
            await self._or_failure(hypervisor.ready)
        await hypervisor.console.call(
            "domain_restart" if again else "domain_create",
            fds=[near.fileno()],
            domid=domain["domid"],
            name=plan["name"],
            memory=domain["memory"],
            **({"restarts": restarts} if again else {}),
        )

    def _add(
        self,
        plan: dict[str, Any],
        pid: int,
        pidfd: int,
        console: socket.socket,
        sockets: dict[str, tuple[socket.socket, socket.socket]],
        lifeline: Lifeline | None,
        restarts: int,
    ) -> Child:
        name = plan["name"]
        ready: asyncio.Future[None] = self._loop.create_future()

        def is_ready() -> None:
            if not ready.done():
                if lifeline is not None:
                    lifeline.look()
                ready.set_result(None)

        handlers: dict[str, Handler] = {
            "ready": is_ready,
            "failed": lambda cause: self._failed(name, cause),
            "notice": lambda text: self._noticed(name, text),
        }
        if plan["role"] == "hyp":  # nobody else has anything to be held
            handlers |= {"hold": self._held.hold, "let_go": self._held.let_go, "hung_up": self._hung_up}
        holds = frozenset({"hold"} if plan["role"] == "hyp" else ())
        guest = plan["role"] == GUEST
        served = self._served.of(plan["domain"]["domid"]) if guest else None
        channel = Channel(console, handlers, name=name, takes_fds=holds, untrusted=guest, served=served)
        futures = ready, self._loop.create_future(), self._loop.create_future()
        child = Child(plan, pid, pidfd, channel, *futures, restarts=restarts, sockets=sockets, lifeline=lifeline)
        before, self._children[name] = self._children.get(name), child
        if before is not None:
            before.forget()
        return child

    def _hung_up(self, name: str, restarts: int) -> None:
        """The hypervisor does not hear a daemon any more. If it lives it is killed, which is a death like others."""
        child = self._children[name]
        if child.restarts == restarts and not child.ended.done() and self._down is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    async def _all_ready(self) -> None:
        for child in list(self._children.values()):
            await self._or_failure(child.ready)

    async def _or_failure(self, future: "asyncio.Future[None]") -> None:
        """Wait for `future`, or raise as soon as any process has ended; a guest that was ready may have: `boot` looks to it."""
        while True:
            for child in self._children.values():
                if child.ended.done() and not (child.role == GUEST and child.ready.done()):
                    cause = child.failure or describe_exit(child.ended.result())
                    raise Refused("ECHILD", f"{child.name} could not start: {cause}")
            if future.done():
                return
            living: list[asyncio.Future[Any]] = [child.ended for child in self._children.values() if not child.ended.done()]
            await asyncio.wait([future, *living], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # for what the ended said last

    def _failed(self, name: str, cause: str) -> None:
        self._children[name].failure = printable(cause)

    def _noticed(self, name: str, text: str) -> None:
        notices = self._children[name].notices
        if len(notices) < MAX_NOTICES:
            notices.append(printable(text))
            self._owner.tell("notice", text=notices[-1])
            self._news.add("notice", name, notices[-1])

    # -- deaths --

    def living(self) -> list[int]:
        """See `Family`."""
        return [child.pid for child in self._children.values() if not child.ended.done()]

    def died(self, pid: int, code: int) -> None:
        """See `Family`."""
        child = next((child for child in self._children.values() if child.pid == pid and not child.ended.done()), None)
        if child is not None:
            self._loop.call_soon(self._ended, child, code)  # after a last message that may be in its console

    def childless(self, cause: str) -> None:
        """See `Family`."""
        if self._info["state"] == "up" and self._down is None:
            self._owner.tell("died", name="forkserver", role="forkserver", cause=cause)
            self._news.add("died", "forkserver", cause)

    def _ended(self, child: Child, code: int) -> None:
        if child.ended.done():
            return
        child.ended.set_result(code)
        if child.lifeline is not None:
            child.lifeline.close()
        self._drop_sockets(child)
        if self._down is None and self._info["state"] == "up":
            self._outlive(child)

    def _outlive(self, child: Child) -> None:
        """Once for each that has ended, when the topology is up: report it, and start it again or bury it."""
        child.restarting = not child.is_done and self._may_restart(child)
        if not child.is_done:
            self._tell_death(child)
        if child.restarting:
            task = self._loop.create_task(self._restart(child))
            self._restarting.add(task)
            task.add_done_callback(self._restarting.discard)
        else:
            self._bury(child)

    def _tell_death(self, child: Child) -> None:
        self._owner.tell("died", name=child.name, role=child.role, cause=child.state, restarting=child.restarting)
        self._news.add("restarting" if child.restarting else "died", child.name, child.state)

    def _may_restart(self, child: Child) -> bool:
        limit = child.plan["restart"]
        if limit is None or self._births.over is not None:
            return False
        return self._restarts.may(child.name, self._loop.time(), Limit(*limit))

    async def _next_life(self, dead: Child) -> Child:
        """Of a guest, which owes for what that takes."""
        begun = self._loop.time()
        try:
            await self._clear_away(dead)
            return await self._spawn(dead.plan, dead.restarts + 1)
        finally:
            now = self._loop.time()
            self._restarts.owe(dead.name, now, now - begun)

    async def _restart(self, dead: Child) -> None:
        """Fork another one in the place of a dead process, and wait until it is ready, or has died in its turn."""
        since = self._loop.time()
        try:
            if dead.role == GUEST:
                await asyncio.sleep(self._restarts.wait_s(dead.name, since))
                new = await self._next_life(dead)
            else:
                new = await self._spawn(dead.plan, dead.restarts + 1)
            outcomes: list[asyncio.Future[Any]] = [new.ready, new.ended]
            await asyncio.wait(outcomes, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
            if new.ready.done() and not new.ended.done():
                seconds = self._loop.time() - since
                self._owner.tell("restarted", name=new.name, role=new.role, restarts=new.restarts, seconds=seconds)
                self._news.add("restarted", new.name, f"it is there again, after {seconds:.2f} s")
            elif not new.ended.done():
                new.failure = f"it was not ready within {READY_S:g} s"
                signal.pidfd_send_signal(new.pidfd, signal.SIGKILL)
        except (ControlError, OSError) as error:
            new = self._children[dead.name]
            if new is not dead:  # its end is a death like others
                new.failure = new.failure or f"it could not be started: {error}"
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(new.pidfd, signal.SIGKILL)
            elif self._down is None:
                dead.restarting, dead.failure = False, f"{dead.state}; it could not be started again: {error}"
                self._tell_death(dead)
                self._bury(dead)
        finally:
            if self._children[dead.name] is dead:  # given up, or all is going down: whoever waits for the next one waits in vain
                dead.restarting = False
            if not dead.succeeded.done():
                dead.succeeded.set_result(None)

    async def _clear_away(self, guest: Child) -> None:
        """Let go of a dead guest's domain, so that there can be one of the same name and number."""
        await self._children["hyp"].console.call("domain_destroy", domid=guest.domid)
        await self._ask(XENSTORED, "release", domid=guest.domid)
        await self._ask("dom0", "domain_again", domid=guest.domid)

    def _bury(self, child: Child) -> None:
        """Tell who keeps something of a domain that its process has ended."""
        if child.domid is not None and not self._children["hyp"].ended.done():
            self._children["hyp"].console.tell("domain_destroy", domid=child.domid)
        if child.role == XENSTORED:
            self._store.give_up(self._children.values())
        elif child.domid is not None and not self._children[XENSTORED].ended.done():
            self._children[XENSTORED].console.tell("release", domid=child.domid)  # the next one is told anyway

    def _drop_sockets(self, dead: Child) -> None:
        """What only the dead process could answer is to fail for its peers: end their sockets, which live in our hands too."""
        serves = {"hyp": "hypercalls", XENSTORED: "xenstore"}.get(dead.role)
        for child in self._children.values():
            ends_of = child.sockets
            for purpose, ends in list(ends_of.items()):
                if purpose == serves or child is dead:
                    for end in ends:
                        hang_up(end, shared=True)
                    ends_of.pop(purpose)

    # -- the end --

    def go_down(self) -> None:
        """Begin to end the topology; a second call changes nothing."""
        if self._down is None:
            self._down = self._loop.create_task(self._take_down())

    async def _take_down(self) -> None:
        for restart in self._restarting:
            restart.cancel()
        for child in self._children.values():
            if child.role == "hyp" and not child.ended.done():
                child.console.tell("going_down")
        guests = [child for child in self._children.values() if child.role == GUEST]
        others = [child for child in self._children.values() if child.role not in (GUEST, "hyp")]
        hypervisor = [child for child in self._children.values() if child.role == "hyp"]
        for group in (guests, others, hypervisor):
            await end(group)
        for output in self._outputs.values():
            output.end()
        for output in self._outputs.values():
            output.has_ended()
        self._births.end()
        self._owner.tell("gone")
        self.gone.set()
