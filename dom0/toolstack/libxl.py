"""A domain's and a device's nodes in xenstore, with the permissions that xl gives them. The toolstack's part.

Source: Xen's ``tools/libs/light/libxl_create.c`` (`libxl__domain_make`), ``libxl_dom.c``, ``libxl_device.c``
(`libxl__device_generic_add`), ``libxl_nic.c``, and ``docs/misc/xenstore-paths.pandoc``. What has no counterpart here (consoles,
hot-plug scripts, the store's own ring) is left out. docs/netif.md shows the tree.

A guest's home and what lies above its devices belong to Domain 0, and the guest may read them: so every xenbus finds its devices by
listing ``device``. What a guest is to write (``data``, ``error``, ``control/shutdown``, …) is its own.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final
from uuid import uuid4

from dom0.rate import Rate, node_rate
from hyp.abi.domids import DOM0
from hyp.xenstore.client import Transaction, XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import XenbusState, backend_path, frontend_path, read_state

VIF: Final = "vif"
_HOME: Final = "/local/domain"
_GUESTS_OWN: Final = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "device/suspend/event-channel",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
)
"""What the guest may write: nodes of its own, empty at first."""


async def create_dom0(store: XenstoreClient) -> None:
    """What xen-init-dom0 writes."""
    await store.write(f"{_HOME}/{DOM0}/domid", str(DOM0))
    await store.write(f"{_HOME}/{DOM0}/name", "Domain-0")


async def create_domain(store: XenstoreClient, guest: Mapping[str, Any]) -> str:
    """A guest's home, before the guest is introduced; returns its ``/vm`` path, which `destroy_domain` is to be told.

    `guest`: "domid", "name", "memory" (bytes), as the plan has them.
    """
    domid, name, kib = int(guest["domid"]), str(guest["name"]), int(guest["memory"]) >> 10
    uuid, home = str(uuid4()), f"{_HOME}/{domid}"
    vm = f"/vm/{uuid}"
    readable, own, hidden = (f"n{DOM0}", f"r{domid}"), (f"n{domid}",), (f"n{DOM0}",)
    nodes: dict[str, tuple[tuple[str, ...], str]] = {
        home: (readable, ""),
        vm: (readable, ""),
        f"/libxl/{domid}/device": (hidden, ""),
        f"/libxl/{domid}/type": (hidden, "pvh"),
        f"{home}/vm": (readable, vm),
        f"{home}/name": (readable, name),
        f"{home}/domid": (readable, str(domid)),
        f"{home}/cpu/0/availability": (readable, "online"),
        f"{home}/memory/static-max": (readable, str(kib)),
        f"{home}/memory/target": (readable, str(kib)),
        f"{home}/device": (readable, ""),
        f"{home}/control": (readable, ""),
        **{f"{home}/{path}": (own, "") for path in _GUESTS_OWN},
        f"{home}/control/platform-feature-multiprocessor-suspend": (readable, "1"),
        f"{home}/control/platform-feature-xs_reset_watches": (readable, "1"),
        f"{vm}/uuid": (readable, uuid),
        f"{vm}/name": (readable, name),
    }

    async def create(transaction: Transaction) -> None:
        await _remove(transaction, home)
        # At once, not one after the other: xenstored takes a connection's requests in their order
        await asyncio.gather(
            *(
                request
                for path, (permissions, value) in nodes.items()
                for request in (transaction.write(path, value), transaction.set_perms(path, permissions))
            )
        )

    await store.retry(create)
    return vm


async def create_vif(store: XenstoreClient, domid: int, handle: int, mac: str, rate: Rate | None = None) -> None:
    """Both ends of a device: each side's nodes readable by the other and writable by its owner; and the toolstack's own copy.

    `rate`: how much the guest may send; None: no limit.
    """
    front, back = frontend_path(domid, VIF, handle), backend_path(DOM0, VIF, domid, handle)
    initialising = str(int(XenbusState.INITIALISING))
    back_nodes = {
        "frontend": front,
        "frontend-id": str(domid),
        "online": "1",
        "state": initialising,
        "mac": mac,
        "handle": str(handle),
        "type": VIF,
    }
    if rate is not None:
        back_nodes["rate"] = rate.node()
    front_nodes = {"backend": back, "backend-id": str(DOM0), "state": initialising, "handle": str(handle), "mac": mac}
    ends: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
        f"/libxl/{domid}/device/{VIF}/{handle}": ((f"n{DOM0}",), {**back_nodes, "backend": back}),
        front: ((f"n{domid}", f"r{DOM0}"), front_nodes),
        back: ((f"n{DOM0}", f"r{domid}"), back_nodes),
    }

    async def create(transaction: Transaction) -> None:
        for path, (permissions, nodes) in ends.items():
            await _remove(transaction, path)
            await asyncio.gather(
                transaction.mkdir(path),
                transaction.set_perms(path, permissions),
                *(transaction.write(f"{path}/{name}", value) for name, value in nodes.items()),  # inherit the permissions
            )

    await store.retry(create)


async def renew_vif(store: XenstoreClient, domid: int, handle: int, mac: str) -> bool:
    """Make a device of a running guest anew, as nobody serves it any more: `create_vif`, with the rate that it has now.

    Whether it was in use, or on its way there (when whoever made it anew last has died over it).
    """
    state = await read_state(store, frontend_path(domid, VIF, handle))
    in_use = state in (XenbusState.INITIALISING, XenbusState.INITIALISED, XenbusState.CONNECTED)
    try:
        rate = node_rate(await store.read(f"{backend_path(DOM0, VIF, domid, handle)}/rate"))
    except (XenstoreError, ValueError):  # there is none, or it says nothing
        rate = None
    await create_vif(store, domid, handle, mac, rate)
    return in_use


async def vm_path(store: XenstoreClient, domid: int) -> str | None:
    """What `create_domain` returned; None if the domain's home is gone."""
    try:
        return await store.read(f"{_HOME}/{domid}/vm")
    except XenstoreError as error:
        if error.name != "ENOENT":
            raise
        return None


async def destroy_vif(store: XenstoreClient, domid: int, handle: int) -> None:
    """Both ends of a device whose guest goes on without it."""
    for path in (
        f"/libxl/{domid}/device/{VIF}/{handle}",
        frontend_path(domid, VIF, handle),
        backend_path(DOM0, VIF, domid, handle),
    ):
        await _remove(store, path)


async def destroy_domain(store: XenstoreClient, domid: int, vm: str | None) -> None:
    """What is left of a domain that is gone: its back ends here, and its home if nobody has removed it yet."""
    for path in (f"{_HOME}/{DOM0}/backend/{VIF}/{domid}", f"{_HOME}/{domid}", f"/libxl/{domid}", *([vm] if vm else [])):
        await _remove(store, path)


async def _remove(nodes: XenstoreClient | Transaction, path: str) -> None:
    """Remove a node that may not be there, nor its parent."""
    with contextlib.suppress(XenstoreError):
        await nodes.rm(path)
