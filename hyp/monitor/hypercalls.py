"""What a domain can ask of the hypervisor over its own socket (docs/hypercalls.md). The socket is the identity.

Every argument comes from an untrusted guest: it is checked here or by the table it goes to, and an error names the domain,
the argument and the reason. `GuestCalls` serves any domain, `PrivilegedCalls` adds what only Dom0 may do, `DeviceCalls`
serves the NIC.
"""

from typing import Any

from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.abi.nic import CONTEXTS, MAX_QUEUE, MIN_QUEUE, PAGE, mac_to_int
from hyp.abi.platform import ENGINE_BYTES
from hyp.control import Answer, Handler, Refused
from hyp.events import Upcall
from hyp.grants import ACTIVE_BYTES_PER_REF, REFS_PER_FRAME
from hyp.monitor.domain import MAX_REGISTRATIONS, MAX_UPCALLS, Domain, Registration
from hyp.monitor.system import System

MAX_GRANT_FRAMES = 16


def integer(domain: Domain, name: str, value: Any, low: int, high: int) -> int:
    """`value` if it is an integer in [low, high]; else EINVAL naming the domain and the argument."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refused("EINVAL", f"domain {domain.domid} ({domain.name}): {name} is {value!r}, not an integer in [{low}, {high}]")
    return value


class GuestCalls:
    """Operations of every domain."""

    def __init__(self, system: System, domain: Domain) -> None:
        self.system, self.domain = system, domain

    def handlers(self) -> dict[str, Handler]:
        """Operation name → handler: the public methods."""
        names = [name for name in dir(self) if not name.startswith("_") and name not in ("handlers", "system", "domain")]
        return {name: getattr(self, name) for name in names}

    def domain_info(self) -> Answer:
        """Who am I? fds: RAM (read-write), counters (read-write), platform page (read-only)."""
        domain = self.domain
        readonly = self.system.platform.readonly_fd()
        value = {"domid": domain.domid, "name": domain.name, "memory": domain.memory, "generation": self.system.generation}
        return Answer(value, fds=[domain.ram.fd, domain.counters.fd, readonly], close=[readonly])

    def upcall_create(self) -> Answer:
        """A new upcall: where events of one engine arrive. fds: its epoll descriptor."""
        if len(self.domain.upcalls) >= MAX_UPCALLS:
            raise Refused("ENOSPC", f"domain {self.domain.domid} has all its {MAX_UPCALLS} upcalls")
        self.domain.upcalls.append(Upcall())
        return Answer({"upcall": len(self.domain.upcalls) - 1}, fds=[self.domain.upcalls[-1].epoll.fileno()])

    # -- event channels --

    def evtchn_alloc_unbound(self, remote: int, upcall: int) -> dict[str, int]:
        """A port that domain `remote` may bind to."""
        return {"port": self.system.events.alloc_unbound(self.domain.domid, self._domid(remote), self._upcall(upcall))}

    def evtchn_bind_interdomain(self, remote: int, remote_port: int, upcall: int) -> Answer:
        """Bind to a port of `remote`. fds: the eventfd by which this side notifies."""
        domid, own = self.domain.domid, self._upcall(upcall)
        port = self.system.events.bind_interdomain(domid, self._domid(remote), remote_port, own)
        return Answer({"port": port}, fds=[self.system.events.notifier(domid, port)])

    def evtchn_notifier(self, port: int) -> Answer:
        """fds: the eventfd of a bound port; ENOTCONN while the other side has not bound it."""
        return Answer({}, fds=[self.system.events.notifier(self.domain.domid, port)])

    def evtchn_status(self, port: int) -> dict[str, str]:
        """``unbound`` or ``interdomain``."""
        return {"status": self.system.events.status(self.domain.domid, port)}

    def evtchn_close(self, port: int) -> None:
        """Close a port; the other end becomes unbound."""
        self.system.events.close(self.domain.domid, port)

    # -- grants --

    def gnttab_setup(self, frames: int) -> Answer:
        """The grant table (version 1) of `frames` pages, made at the first call. fds: the table (read-write)."""
        frames = integer(self.domain, "frames", frames, 1, MAX_GRANT_FRAMES)
        self.domain.region("active", frames * REFS_PER_FRAME * ACTIVE_BYTES_PER_REF)
        table = self.domain.region("gnttab", frames * PAGE)
        return Answer({"refs": table.size // PAGE * REFS_PER_FRAME}, fds=[table.fd])

    # -- memory registration and device contexts --

    def mr_register(self, addr: int, length: int, writable: bool) -> dict[str, int]:
        """Pin [addr, addr + length) of one's own RAM (whole pages) and let one's NIC contexts reach it."""
        domain = self.domain
        if len(domain.registrations) >= MAX_REGISTRATIONS:
            raise Refused("ENOSPC", f"domain {domain.domid} has all its {MAX_REGISTRATIONS} memory regions")
        registration = Registration(
            integer(domain, "addr", addr, 0, domain.memory),
            integer(domain, "length", length, 1, domain.memory),
            bool(writable),
        )
        domain.iommu_region()
        assert domain.iommu is not None
        domain.iommu.register(registration.addr, registration.length, writable=registration.writable)
        return {"key": domain.add_registration(registration)}

    async def mr_deregister(self, key: int) -> None:
        """Drop a registration; returns when the NIC no longer uses its pages."""
        registration = self.domain.registrations.pop(key, None)
        if registration is None or self.domain.iommu is None:
            raise Refused("ENOENT", f"domain {self.domain.domid} has no memory region {key!r}")
        if self.domain.iommu.deregister(registration.addr, registration.length, writable=registration.writable):
            await self.system.devices.shootdown()

    async def context_open(self, upcall: int) -> Answer:
        """A NIC context, if Dom0's toolstack allows it. fds: doorbell page (read-write), eventfd that wakes the NIC."""
        context = await self.system.devices.open_context(self.domain, self._upcall(upcall))
        value = {"context": context.number, "mac": context.mac}
        return Answer(value, fds=[context.doorbell.fd, context.doorbell_fd])

    async def context_start(self, context: int, sq: int, scq: int, rq: int, rcq: int, sq_size: int, rq_size: int) -> None:
        """Set the queues' places (IOVA, in registered memory) and sizes; the NIC serves them from now on."""
        queues = self._queues({"sq": sq, "scq": scq, "rq": rq, "rcq": rcq}, sq_size, rq_size)
        await self.system.devices.call("context_start", context=self._context(context), **queues)

    async def context_close(self, context: int) -> None:
        """Give a context back; returns when the NIC has let go of it."""
        await self.system.devices.close_context(self.domain, self._context(context))

    # -- an emulated device --

    async def emulation_attach(
        self, interrupts: int, answers: int, sq: int, scq: int, rq: int, rcq: int, sq_size: int, rq_size: int
    ) -> Answer:
        """An emulated NIC (hyp/abi/trap.py) with queues at guest-physical addresses, if Dom0's toolstack allows it.

        fds: trap page (read-write), eventfd that signals a trap. `interrupts`, `answers`: upcalls for its interrupt and for
        the answers to traps.
        """
        queues = self._queues({"sq": sq, "scq": scq, "rq": rq, "rcq": rcq}, sq_size, rq_size)
        return await self.system.emulation.attach(self.domain, self._upcall(interrupts), self._upcall(answers), queues)

    # -- checks --

    def _queues(self, places: dict[str, Any], sq_size: Any, rq_size: Any) -> dict[str, Any]:
        """Places and sizes of four queues: powers of two, page-aligned, within RAM."""
        domain = self.domain
        for name, size in (("sq_size", sq_size), ("rq_size", rq_size)):
            integer(domain, name, size, MIN_QUEUE, MAX_QUEUE)
            if size & (size - 1):
                raise Refused("EINVAL", f"domain {domain.domid} ({domain.name}): {name} is {size}, not a power of two")
        for name, addr in places.items():
            bytes_needed = 16 * (rq_size if name in ("rq", "rcq") else sq_size)
            integer(domain, name, addr, 0, domain.memory - bytes_needed)
            if addr % PAGE:
                raise Refused("EINVAL", f"domain {domain.domid} ({domain.name}): {name} is not page-aligned")
        return {**places, "sq_size": sq_size, "rq_size": rq_size}

    def _upcall(self, index: Any) -> Upcall:
        return self.domain.upcalls[integer(self.domain, "upcall", index, 0, len(self.domain.upcalls) - 1)]

    def _domid(self, domid: Any) -> int:
        if not isinstance(domid, int) or domid not in self.system.domains:
            raise Refused("ESRCH", f"domain {self.domain.domid}: there is no domain {domid!r}")
        return domid

    def _context(self, number: Any) -> int:
        if not isinstance(number, int) or number not in self.domain.contexts:
            raise Refused("ENODEV", f"domain {self.domain.domid} ({self.domain.name}) has no context {number!r}")
        return number


class PrivilegedCalls(GuestCalls):
    """What Dom0 may do besides."""

    def toolstack_ready(self) -> None:
        """Dom0 answers `context_authorize` from now on."""
        if not self.system.devices.toolstack_ready.done():
            self.system.devices.toolstack_ready.set_result(None)

    def foreign_view(self, domid: int) -> Answer:
        """What the grant hypercalls, which run on the caller's thread, must see of another domain.

        fds: its RAM, grant table and active table (all read-write). Only `hyp.grants` may touch them.
        """
        domain = self.system.domains[self._domid(domid)]
        regions = domain.regions()
        if "gnttab" not in regions:
            raise Refused("ENOENT", f"domain {domid} ({domain.name}) has no grant table")
        gnttab, active = regions["gnttab"], regions["active"]
        value = {"memory": domain.memory, "refs": gnttab.size // PAGE * REFS_PER_FRAME}
        return Answer(value, fds=[domain.ram.fd, gnttab.fd, active.fd])

    async def filter_change(self, context: int, add: list[str], remove: list[str]) -> None:
        """Program the MAC filters of any context."""
        macs: dict[str, Any] = {"add": [mac_to_int(mac) for mac in add], "remove": [mac_to_int(mac) for mac in remove]}
        await self.system.devices.call("filter_change", context=integer(self.domain, "context", context, 0, CONTEXTS - 1), **macs)

    def spin_limit(self, limit_us: int) -> None:
        """Set how long loops may spin before they sleep, in µs (0: never)."""
        self.system.set_spin_limit(integer(self.domain, "limit_us", limit_us, 0, 1000))


class DeviceCalls:
    """What the NIC asks."""

    def __init__(self, system: System, domain: Domain) -> None:
        self.system, self.domain = system, domain

    def handlers(self) -> dict[str, Handler]:
        """Operation name → handler."""
        return {"nic_register": self.nic_register, "nic_ready": self.nic_ready}

    def nic_register(self, engines: int) -> Answer:
        """fds: counters, platform page (read-only), then per engine: its page, its upcall, the eventfd of shootdowns."""
        fds, close = [self.domain.counters.fd], [self.system.platform.readonly_fd()]
        fds.append(close[0])
        for index in range(engines):
            page = self.domain.region(f"engine{index}", ENGINE_BYTES)
            upcall = Upcall()
            self.domain.upcalls.append(upcall)
            fds += [page.fd, upcall.epoll.fileno(), self.system.devices.add_engine(page, upcall)]
        return Answer({}, fds=fds, close=close)

    def nic_ready(self) -> None:
        """The NIC takes contexts from now on."""
        if not self.system.devices.nic_ready.done():
            self.system.devices.nic_ready.set_result(None)


def calls_for(system: System, domain: Domain) -> dict[str, Handler]:
    """The operations that `domain` has."""
    if domain.domid == DOMID_NIC:
        return DeviceCalls(system, domain).handlers()
    return (PrivilegedCalls if domain.domid == DOM0 and not domain.device_model else GuestCalls)(system, domain).handlers()
