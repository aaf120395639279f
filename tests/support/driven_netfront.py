"""The role of a guest whose front end walks no handshake of its own: each node, each state and each slot as its console is told.

So it can be any front end, Linux's, Windows', a firmware's, or one that nobody has written. Operations, beside those of a `Poster`
(tests/support/fuzz_netfront.py: transmit, post, received, overrun, pools):

setup {start}                 new rings with all indices at `start`, granted; {node: value} as a front end writes them
notifier {}                   the event channel, which the back end has bound by now, is the one to notify from here on
nodes {values}                write below the front end's directory in one transaction; None removes
state {value}                 write the front end's state, whatever it is; None removes the node
store {op, path, value}       "read", "write", "directory", "rm" as the guest: the result, or the error's name
"""

from typing import Any

from domu.frontends import split
from domu.frontends.split_state import BACKEND
from domu.guest import Guest
from hyp.abi.grant import GTF_PERMIT_ACCESS, PAGE_BYTES
from hyp.memory import Mapping
from hyp.process import Process, adopt_socket
from hyp.xenstore.client import Transaction, XenstoreClient, XenstoreError
from hyp.xenstore.xenbus import frontend_path
from tests.support.fuzz_netfront import Poster


class Driven(Poster):
    """The operations."""

    def __init__(self, process: Process, guest: Guest, memory: "split._Memory", mac: str, store: XenstoreClient) -> None:
        super().__init__(process, guest, memory, mac)
        self._guest, self._store, self._first_page = guest, store, memory.ring_pages // PAGE_BYTES
        self._front = frontend_path(guest.domid, "vif", 0)
        self._port = 0
        for op in (self.setup, self.notifier, self.nodes, self.state, self.store):
            process.serve(op.__name__, op)

    async def setup(self, start: int) -> dict[str, str]:
        for ring in self._rings.values():
            ring.begin(start)
        self._write_entries([[split.FIRST_REF + k, GTF_PERMIT_ACCESS, BACKEND, self._first_page + k] for k in range(2)])
        if self._port == 0:
            call = self._guest.hyp.call("evtchn_alloc_unbound", remote=BACKEND, upcall=self._guest.upcall)
            self._port = int((await call).value["port"])
        nodes = {"tx-ring-ref": split.FIRST_REF, "rx-ring-ref": split.FIRST_REF + 1, "event-channel": self._port}
        return {name: str(value) for name, value in {**nodes, "request-rx-copy": 1, "feature-rx-notify": 1}.items()}

    async def notifier(self) -> None:
        self._event_fd = (await self._guest.hyp.call("evtchn_notifier", port=self._port)).fds[0]

    async def nodes(self, values: dict[str, str | None]) -> None:
        async def write(transaction: Transaction) -> None:
            for name, value in values.items():
                path = f"{self._front}/{name}"
                await (transaction.rm(path) if value is None else transaction.write(path, value))

        await self._store.retry(write)

    async def state(self, value: str | None) -> None:
        await self.nodes({"state": value})

    async def store(self, op: str, path: str, value: str = "") -> Any:
        try:
            return await getattr(self._store, op)(path, *([value] if op == "write" else []))
        except XenstoreError as error:
            return error.name


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the guest: memory, a store, and nothing else until the console says so."""
    guest = Guest(process, config)
    await guest.boot()
    store = await XenstoreClient.open(adopt_socket(process.sockets["xenstore"]))
    table = await guest.hyp.call("gnttab_setup", frames=split.GRANT_FRAMES)
    memory = split._Memory(guest, Mapping.adopt(table.fds[0], split.GRANT_FRAMES * PAGE_BYTES))
    mac = await store.read(f"{frontend_path(guest.domid, 'vif', 0)}/mac")
    driven = Driven(process, guest, memory, mac, store)
    process.ready()
    await process.stopped.wait()
    del driven
