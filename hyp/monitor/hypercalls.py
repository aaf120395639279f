"""What a domain can ask of the hypervisor over its own socket (docs/hypercalls.md). The socket is the identity.

Every argument comes from an untrusted guest: what it may be stands in the operation's declaration and is checked before the
operation runs (hyp/monitor/dispatch.py). What only a table can know, such as whether a port is bound, that table checks.
"""

from functools import partial
from typing import Any

from hyp.abi.domids import DOM0
from hyp.abi.features import EMULATION_OFFERS
from hyp.abi.nic import CONTEXTS, DEFAULT_MTU, LINK_HEADER, MAX_ENGINES, MAX_MTU, PAGE
from hyp.abi.platform import ENGINE_BYTES
from hyp.abi.sizes import GUEST_EVENTS, MAX_QUEUES
from hyp.control import Answer, Handler, Refused
from hyp.grants import ACTIVE_BYTES_PER_REF, REFS_PER_FRAME
from hyp.monitor.arguments import (
    PAGE_ADDRESS,
    PAGES_FROM_ADDR,
    QUEUES,
    Default,
    Integer,
    accepted_features,
    boolean,
    domain_number,
    mac_list,
    own_context,
    own_registration,
    own_upcall,
)
from hyp.monitor.dispatch import HYPERCALLS, Callers, dispatch, hypercall
from hyp.monitor.domain import MAX_REGISTRATIONS, MAX_UPCALLS, Domain, Registration
from hyp.monitor.event_channels import MAX_EVENT_PORTS, Upcall
from hyp.monitor.system import System

MAX_GRANT_FRAMES = 16
MAX_SPIN_US = 1000
MAX_KEPT = 1 << 30

PORT = Integer(1, MAX_EVENT_PORTS - 1)
CHANNEL_NS = 100_000
"""What threads aside, which are more to share the CPU with, do to make an event channel, or to end one (hyp/control/aside.py)."""
CONTEXT_FEATURES = accepted_features(lambda call: call.domain.contexts[call.checked["context"]].features)
EMULATION_FEATURES = accepted_features(lambda call: EMULATION_OFFERS)


def _room_for_event(system: System, domain: Domain) -> None:
    """Refused if a guest has all the upcalls and ports that it may have: they are descriptors of the hypervisor's."""
    if domain.domid != DOM0 and len(domain.upcalls) + system.events.count(domain.domid) >= GUEST_EVENTS:
        raise Refused("ENOSPC", f"{domain.who} has all its {GUEST_EVENTS} upcalls and event-channel ports")


# --- operations of every domain ---------------------------------------------------------------------------------------


@hypercall(Callers.EVERY_DOMAIN)
def domain_info(system: System, domain: Domain) -> Answer:
    """Who am I? fds: RAM (read-write), counters (read-write), platform page (read-only)."""
    readonly = system.platform.readonly_fd()
    value = {"domid": domain.domid, "name": domain.name, "memory": domain.memory, "generation": system.generation}
    return Answer(value, fds=[domain.ram.fd, domain.counters.fd, readonly], close=[readonly])


@hypercall(Callers.EVERY_DOMAIN)
def upcall_create(system: System, domain: Domain) -> Answer:
    """A new upcall: where events of one engine arrive. fds: its epoll descriptor."""
    if len(domain.upcalls) >= MAX_UPCALLS:
        raise Refused("ENOSPC", f"{domain.who} has all its {MAX_UPCALLS} upcalls")
    _room_for_event(system, domain)
    domain.upcalls.append(Upcall(domain.debt) if domain.trusted else Upcall(domain.debt, domain.aside, domain.bells))
    return Answer({"upcall": len(domain.upcalls) - 1}, fds=[domain.upcalls[-1].epoll.fileno()])


@hypercall(Callers.EVERY_DOMAIN, remote=domain_number, upcall=own_upcall)
def evtchn_alloc_unbound(system: System, domain: Domain, remote: int, upcall: Upcall) -> dict[str, int]:
    """A port that domain `remote` may bind to."""
    _room_for_event(system, domain)
    return {"port": system.events.alloc_unbound(domain.domid, remote, upcall)}


@hypercall(Callers.EVERY_DOMAIN, remote=domain_number, remote_port=PORT, upcall=own_upcall)
def evtchn_bind_interdomain(system: System, domain: Domain, remote: int, remote_port: int, upcall: Upcall) -> Answer:
    """Bind to a port of `remote`. fds: the eventfd by which this side notifies."""
    _room_for_event(system, domain)
    domain.charge(CHANNEL_NS)
    port = system.events.bind_interdomain(domain.domid, remote, remote_port, upcall)
    return Answer({"port": port}, fds=[system.events.notifier(domain.domid, port)])


@hypercall(Callers.EVERY_DOMAIN, port=PORT)
def evtchn_notifier(system: System, domain: Domain, port: int) -> Answer:
    """fds: the eventfd of a bound port; ENOTCONN while the other side has not bound it."""
    return Answer({}, fds=[system.events.notifier(domain.domid, port)])


@hypercall(Callers.EVERY_DOMAIN, port=PORT)
def evtchn_status(system: System, domain: Domain, port: int) -> dict[str, str]:
    """``unbound`` or ``interdomain``."""
    return {"status": system.events.status(domain.domid, port)}


@hypercall(Callers.EVERY_DOMAIN, port=PORT)
def evtchn_close(system: System, domain: Domain, port: int) -> None:
    """Close a port; the other end becomes unbound."""
    domain.charge(CHANNEL_NS)
    system.events.close(domain.domid, port)


@hypercall(Callers.EVERY_DOMAIN, frames=Integer(1, MAX_GRANT_FRAMES))
def gnttab_setup(system: System, domain: Domain, frames: int) -> Answer:
    """The grant table (version 1) of `frames` pages, made at the first call. fds: the table (read-write)."""
    domain.region("active", frames * REFS_PER_FRAME * ACTIVE_BYTES_PER_REF)
    try:
        table = domain.region("gnttab", frames * PAGE)
    except OSError:
        domain.drop_region("active")  # its size is that of this call
        raise
    return Answer({"refs": table.size // PAGE * REFS_PER_FRAME}, fds=[table.fd])


@hypercall(Callers.EVERY_DOMAIN, addr=PAGE_ADDRESS, length=PAGES_FROM_ADDR, writable=boolean)
def mr_register(system: System, domain: Domain, addr: int, length: int, writable: bool) -> dict[str, int]:
    """Pin [addr, addr + length) of one's own RAM and let one's NIC contexts reach it."""
    if len(domain.registrations) >= MAX_REGISTRATIONS:
        raise Refused("ENOSPC", f"{domain.who} has all its {MAX_REGISTRATIONS} memory regions")
    domain.iommu_region()
    assert domain.iommu is not None
    domain.iommu.register(addr, length, writable=writable)
    return {"key": domain.add_registration(Registration(addr, length, writable))}


@hypercall(Callers.EVERY_DOMAIN, key=own_registration)
async def mr_deregister(system: System, domain: Domain, key: int) -> None:
    """Drop a registration; returns when the NIC no longer uses its pages."""
    registration = domain.registrations.pop(key)
    assert domain.iommu is not None
    gone = domain.iommu.deregister(registration.addr, registration.length, writable=registration.writable)
    if gone and domain.contexts:  # else no engine looks into its table
        await system.nic.shootdown()


@hypercall(Callers.EVERY_DOMAIN, upcall=own_upcall, queue=Default(Integer(0, MAX_QUEUES - 1), 0))
async def context_open(system: System, domain: Domain, upcall: Upcall, queue: int) -> Answer:
    """A NIC context for one queue, if Dom0's toolstack allows it. fds: doorbell page (read-write), eventfd that wakes the NIC."""
    async with domain.opening:
        context = await system.contexts.open_context(domain, upcall, queue)
    value = {"context": context.number, "mac": context.mac, "features": context.features}
    return Answer(value, fds=[context.doorbell.fd, context.doorbell_fd])


@hypercall(Callers.EVERY_DOMAIN, context=own_context, features=CONTEXT_FEATURES, **QUEUES)
async def context_start(system: System, domain: Domain, context: int, **what: Any) -> None:
    """Set the queues' places (IOVA, in registered memory) and sizes, and the features accepted; the NIC serves them from now on."""
    await system.contexts.start_context(domain, context, **what)


@hypercall(Callers.EVERY_DOMAIN, context=own_context)
async def context_close(system: System, domain: Domain, context: int) -> None:
    """Give a context back, with those of later queues; returns when the NIC has let go of it."""
    await system.contexts.close_context(domain, context)


@hypercall(Callers.EVERY_DOMAIN, interrupts=own_upcall, answers=own_upcall, **QUEUES)
async def emulation_attach(system: System, domain: Domain, interrupts: Upcall, answers: Upcall, **queues: Any) -> Answer:
    """An emulated NIC (hyp/abi/trap.py) with queues at guest-physical addresses, if Dom0's toolstack allows it.

    fds: trap page (read-write), eventfd that signals a trap. `interrupts`, `answers`: upcalls for its interrupt and for
    the answers to traps. It is served from `emulation_start` on.
    """
    return await system.emulation.attach(domain, interrupts, answers, queues)


@hypercall(Callers.EVERY_DOMAIN, features=EMULATION_FEATURES)
async def emulation_start(system: System, domain: Domain, features: int) -> None:
    """Serve one's emulated NIC; `features`: what is accepted of those that `emulation_attach` offered."""
    await system.emulation.start(domain, features)


# --- operations of Dom0 only ------------------------------------------------------------------------------------------


@hypercall(Callers.DOM0)
def toolstack_ready(system: System, domain: Domain) -> None:
    """Dom0 answers `context_authorize` from now on."""
    system.toolstack.is_ready()


@hypercall(Callers.DOM0, domid=domain_number)
def foreign_view(system: System, domain: Domain, domid: int) -> Answer:
    """What the grant hypercalls, which run on the caller's thread, must see of another domain.

    fds: its RAM, grant table and active table (all read-write). Only `hyp.grants` may touch them.
    """
    other = system.domains[domid]
    regions = other.regions()
    if "gnttab" not in regions:
        raise Refused("ENOENT", f"{other.who} has no grant table")
    gnttab, active = regions["gnttab"], regions["active"]
    value = {"memory": other.memory, "refs": gnttab.size // PAGE * REFS_PER_FRAME}
    return Answer(value, fds=[other.ram.fd, gnttab.fd, active.fd])


@hypercall(Callers.DOM0, domid=domain_number, add=mac_list, remove=mac_list)
async def filter_change(system: System, domain: Domain, domid: int, add: list[int], remove: list[int]) -> None:
    """Program the MAC filters of a domain's device, that of its first context."""
    await system.contexts.change_filters(system.domains[domid], add, remove)


@hypercall(Callers.DOM0, domid=domain_number, sent=boolean)
async def contexts_settle(system: System, domain: Domain, domid: int, sent: bool) -> dict[str, list[int]]:
    """Wait until what a domain's contexts have posted has left the NIC (`sent`), or what is under way to them has arrived.

    Answers `received`, the completions of their receive queues, modulo 2^32.
    """
    return await system.contexts.settle(system.domains[domid], "sent" if sent else "arriving")


@hypercall(Callers.DOM0, domid=domain_number)
async def contexts_revoke(system: System, domain: Domain, domid: int) -> None:
    """Close all contexts of a domain, that are being opened, too: the toolstack allows it none any more."""
    await system.contexts.revoke_contexts(system.domains[domid])


@hypercall(Callers.DOM0, limit_us=Integer(0, MAX_SPIN_US))
def spin_limit(system: System, domain: Domain, limit_us: int) -> None:
    """Set how long loops may spin before they sleep, in µs (0: never)."""
    system.set_spin_limit(limit_us)


# --- operations of the NIC --------------------------------------------------------------------------------------------


@hypercall(Callers.NIC, engines=Integer(1, MAX_ENGINES), kept=Integer(PAGE, MAX_KEPT), mtu=Integer(DEFAULT_MTU, MAX_MTU))
def nic_register(system: System, domain: Domain, engines: int, kept: int, mtu: int) -> Answer:
    """fds: counters, platform page (read-only), `kept` bytes of memory, then per engine: its page, its upcall, the eventfd of
    shootdowns. All of these outlive the NIC's process: the next one gets the same, and goes on with what is in them.
    """
    system.nic.max_frame = mtu + LINK_HEADER
    platform = system.platform.readonly_fd()
    fds = [domain.counters.fd, platform, domain.kept(kept).fd]
    for index in range(engines):
        page = domain.region(f"engine{index}", ENGINE_BYTES)
        fds += [page.fd, *system.nic.engine(index, page)]
    return Answer({}, fds=fds, close=[platform])


@hypercall(Callers.NIC)
async def nic_ready(system: System, domain: Domain) -> None:
    """The NIC takes contexts from now on. One that was started again is given those that there are before it is answered."""
    await system.contexts.resume()


@hypercall(Callers.NIC, context=Integer(0, CONTEXTS - 1), generation=Integer(0, (1 << 63) - 1))
def doorbell_hush(system: System, domain: Domain, context: int, generation: int) -> None:
    """A context's doorbell is not to wake the NIC for a while: it rings without end, for nothing (nic/doorbell.py)."""
    system.contexts.hush(context, generation)


# --- the table --------------------------------------------------------------------------------------------------------


def calls_for(system: System, domain: Domain) -> dict[str, Handler]:
    """The operations that `domain` has, by name."""
    return {name: partial(dispatch, system, domain, name) for name, row in HYPERCALLS.items() if row.callers.include(domain)}
