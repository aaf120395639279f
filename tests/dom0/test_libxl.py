"""A domain's nodes and permissions, as xl makes them; what a guest may look at and write; a guest that comes before its nodes."""

import asyncio
import socket
from pathlib import Path

import pytest

from dom0.toolstack.libxl import create_dom0, create_domain, create_vif, destroy_domain
from dom0.xenstore.server import Xenstored
from hyp.abi.xs_wire import MessageType
from hyp.xenstore.client import XenstoreClient, XenstoreError
from lab.command.store import _walk
from tests.support.driven_labs import DOMID, Bert, driven_lab
from tests.support.labs import run
from tests.support.xenstored_process import Raw, with_clients

GUEST = {"domid": 5, "name": "anna", "memory": 16 << 20}

# Of `xenstore-ls -fp` on Xen, for a guest with a vif whose back end is in domain 0.
XL = """
/local/domain/5 = "" (n0,r5)
/local/domain/5/vm = "/vm/<uuid>" (n0,r5)
/local/domain/5/name = "anna" (n0,r5)
/local/domain/5/domid = "5" (n0,r5)
/local/domain/5/cpu = "" (n0,r5)
/local/domain/5/cpu/0 = "" (n0,r5)
/local/domain/5/cpu/0/availability = "online" (n0,r5)
/local/domain/5/memory = "" (n0,r5)
/local/domain/5/memory/static-max = "16384" (n0,r5)
/local/domain/5/memory/target = "16384" (n0,r5)
/local/domain/5/device = "" (n0,r5)
/local/domain/5/device/suspend = "" (n0,r5)
/local/domain/5/device/suspend/event-channel = "" (n5)
/local/domain/5/device/vif = "" (n0,r5)
/local/domain/5/device/vif/0 = "" (n5,r0)
/local/domain/5/device/vif/0/backend = "/local/domain/0/backend/vif/5/0" (n5,r0)
/local/domain/5/device/vif/0/backend-id = "0" (n5,r0)
/local/domain/5/device/vif/0/state = "1" (n5,r0)
/local/domain/5/device/vif/0/handle = "0" (n5,r0)
/local/domain/5/device/vif/0/mac = "02:00:00:00:00:05" (n5,r0)
/local/domain/5/control = "" (n0,r5)
/local/domain/5/control/shutdown = "" (n5)
/local/domain/5/control/feature-poweroff = "" (n5)
/local/domain/5/control/feature-reboot = "" (n5)
/local/domain/5/control/feature-suspend = "" (n5)
/local/domain/5/control/sysrq = "" (n5)
/local/domain/5/control/platform-feature-multiprocessor-suspend = "1" (n0,r5)
/local/domain/5/control/platform-feature-xs_reset_watches = "1" (n0,r5)
/local/domain/5/data = "" (n5)
/local/domain/5/drivers = "" (n5)
/local/domain/5/feature = "" (n5)
/local/domain/5/attr = "" (n5)
/local/domain/5/error = "" (n5)
/local/domain/0/backend/vif/5/0 = "" (n0,r5)
/local/domain/0/backend/vif/5/0/frontend = "/local/domain/5/device/vif/0" (n0,r5)
/local/domain/0/backend/vif/5/0/frontend-id = "5" (n0,r5)
/local/domain/0/backend/vif/5/0/online = "1" (n0,r5)
/local/domain/0/backend/vif/5/0/state = "1" (n0,r5)
/local/domain/0/backend/vif/5/0/mac = "02:00:00:00:00:05" (n0,r5)
/local/domain/0/backend/vif/5/0/handle = "0" (n0,r5)
/local/domain/0/backend/vif/5/0/type = "vif" (n0,r5)
/vm/<uuid> = "" (n0,r5)
/vm/<uuid>/uuid = "<uuid>" (n0,r5)
/vm/<uuid>/name = "anna" (n0,r5)
"""


async def listing(store: XenstoreClient, uuid: str) -> set[str]:
    """All nodes, in lines."""
    lines = set()
    async for _, path, value in _walk(store, "", 0):
        line = f'{path} = "{value.decode()}" ({",".join(await store.get_perms(path))})'
        lines.add(line.replace(uuid, "<uuid>"))
    return lines


def test_the_tree_is_xls_and_goes_with_its_domain() -> None:
    async def body(dom0: XenstoreClient) -> None:
        await create_dom0(dom0)
        before = await listing(dom0, "none")
        await dom0.write("/local/domain/5/left", "by somebody before")
        vm = await create_domain(dom0, GUEST)
        await create_vif(dom0, 5, 0, "02:00:00:00:00:05")
        made = await listing(dom0, vm.removeprefix("/vm/"))
        wanted = set(XL.strip().splitlines())
        assert {line for line in made - before if "/libxl" not in line} >= wanted
        extra = {line.partition(" ")[0] for line in made - before - wanted if not line.startswith("/libxl")}
        assert extra == {"/vm", "/local/domain/0/backend", "/local/domain/0/backend/vif", "/local/domain/0/backend/vif/5"}
        assert '/libxl/5/device/vif/0/frontend = "/local/domain/5/device/vif/0" (n0)' in made
        await destroy_domain(dom0, 5, vm)
        left = {line.partition(" ")[0] for line in await listing(dom0, "none") - before}
        assert left == {"/vm", "/libxl", "/local/domain/0/backend", "/local/domain/0/backend/vif"}
        await destroy_domain(dom0, 5, vm)  # once more changes nothing

    with_clients("uvloop", [0], body)


@pytest.mark.usefixtures("warm")
def test_what_a_guest_may_look_at_and_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with driven_lab(tmp_path, monkeypatch, "looks") as bert:

            async def do(op: str, path: str, value: str = "x") -> object:
                return await bert.call("store", op=op, path=path, value=value)

            assert await do("directory", "device") == ["suspend", "vif"]
            assert await do("directory", "device/vif") == ["0"]
            assert await do("read", "domid") == str(DOMID)
            assert await do("read", "name") == "bert"
            assert await do("read", f"{Bert.back}/feature-rx-copy") == "1"
            own = ["error/device/vif/0/error", "data/report", "attr/os", "drivers/0", "feature/x", "control/shutdown"]
            own += ["control/feature-poweroff", "control/sysrq", "device/suspend/event-channel", "device/vif/0/tx-ring-ref"]
            for path in own:
                assert await do("write", path) is None, path
                assert await bert.read(f"/local/domain/{DOMID}/{path}") == "x"
            others = ["name", "domid", "own", "control/own", "device/vbd/0/state", "memory/target", f"{Bert.back}/state"]
            others += ["/local/domain/1/data/x", "/tool/x", "/vm/x"]
            for path in others:
                assert await do("write", path) == "EACCES", path
            hidden = ["/", "/local/domain/0", "/local/domain/0/backend/vif", "/local/domain/1", "/libxl", "/tool"]
            for path in hidden:
                assert await do("directory", path) == "EACCES", path
            assert await do("read", "/local/domain/1/device/vif/0/state") == "EACCES"
            assert await do("read", "/local/domain/0/error/backend/vif/2/0/error") == "EACCES"
            assert await bert.read("/local/domain/0/domid") == "0"

    run(main())


def test_a_guest_that_asks_before_it_is_introduced_waits_and_finds_its_nodes() -> None:
    async def body() -> None:
        server = Xenstored()
        ends = {domid: socket.socketpair() for domid in (0, 5, 6)}
        for domid, (_, far) in ends.items():
            server.expect(domid, far)
        clients = {domid: await XenstoreClient.open(near) for domid, (near, _) in ends.items()}
        asked = asyncio.ensure_future(clients[5].read("name"))
        never = asyncio.ensure_future(clients[6].read("name"))
        await create_domain(clients[0], GUEST)
        assert not asked.done()
        await clients[0].introduce(5)
        assert await asked == "anna"
        with pytest.raises(Exception, match="ENOENT"):
            server.release(6)  # died before it was introduced
        with pytest.raises(XenstoreError, match="name"):
            await never
        for client in clients.values():
            await client.close()
        server.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    "request_", [MessageType.CONTROL, MessageType.INTRODUCE, MessageType.RELEASE, MessageType.RESUME, MessageType.SET_TARGET]
)
@pytest.mark.parametrize("strings", [(), ("5",), ("8", "1", "1"), ("check",), ("\udcff", "-1")])
def test_what_is_for_domain_0_is_eacces_for_others_whatever_they_say(request_: MessageType, strings: tuple[str, ...]) -> None:
    from tests.support.xenstored_process import xenstored

    with xenstored([5]) as served:
        guest: Raw = served.raw(5)
        assert guest.call(request_, *strings) == b"EACCES\0"
        assert guest.call(MessageType.IS_DOMAIN_INTRODUCED, "5") == b"T\0"
