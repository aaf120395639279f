"""`launch.py store`: look into and write the store of a running topology, as Domain 0. Output as Xen's xenstore-* tools have it."""

import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Sequence

from hyp.xenstore.client import Transaction, XenstoreClient, XenstoreError
from lab.command.clients import ClientError, the_one


@contextlib.asynccontextmanager
async def store_of(topology: str | None) -> AsyncIterator[XenstoreClient]:
    """A client of a running topology's store, whatever becomes of its xenstored. ClientError if there is none, or it refuses."""
    run = the_one(topology)
    try:
        client = await XenstoreClient.lasting(run.store_socket)
    except OSError as error:
        raise ClientError(f"topology {run.name}: its xenstored does not answer ({error.strerror})") from error
    async with client:
        try:
            yield client
        except XenstoreError as error:
            raise ClientError(str(error)) from error


async def read(topology: str | None, paths: Sequence[str], *, as_json: bool = False) -> None:
    """Print nodes' values, a line each; as JSON in one object, by path."""
    found = {}
    async with store_of(topology) as store:
        for path in paths:
            found[path] = shown(await store.read_bytes(path))
            if not as_json:
                print(found[path])
    if as_json:
        print(json.dumps(found, indent=2))


async def write(topology: str | None, pairs: Sequence[tuple[str, str]]) -> None:
    """Write nodes, all of them or none."""

    async def write(transaction: Transaction) -> None:
        for path, value in pairs:
            await transaction.write(path, value)

    async with store_of(topology) as store:
        await store.retry(write)


async def remove(topology: str | None, paths: Sequence[str]) -> None:
    """Remove nodes and what is below them. Removing what is not there is a mistake here, as it is for xenstore-rm."""

    async def remove(transaction: Transaction) -> None:
        for path in paths:
            await transaction.read_bytes(path)
            await transaction.rm(path)

    async with store_of(topology) as store:
        await store.retry(remove)


async def ls(topology: str | None, path: str, *, full: bool, permissions: bool, as_json: bool = False) -> None:
    """Print everything below a node: indented, or with `full` by whole paths; as JSON a list of nodes."""
    nodes = []
    async with store_of(topology) as store:
        async for depth, child, value in _walk(store, path.rstrip("/"), 0):
            may = await store.get_perms(child) if permissions else []
            if as_json:
                nodes.append({"path": child, "value": shown(value), **({"permissions": may} if permissions else {})})
                continue
            name = child if full else " " * depth + child.rpartition("/")[2]
            told = f"   ({','.join(may)})" if permissions else ""
            print(f'{name} = "{shown(value)}"{told}')
    if as_json:
        print(json.dumps(nodes, indent=2))


async def _walk(store: XenstoreClient, path: str, depth: int) -> AsyncIterator[tuple[int, str, bytes]]:
    """(depth, path, value) of all nodes below `path`, parents first. What goes meanwhile is left out."""
    for name in await store.directory(path or "/"):
        child = f"{path}/{name}"
        try:
            yield depth, child, await store.read_bytes(child)
            async for below in _walk(store, child, depth + 1):
                yield below
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise


async def watch(topology: str | None, path: str, count: int | None, *, as_json: bool = False) -> None:
    """Print what a watch fires for, a line each (as JSON an object each), until there were `count` events; once at first."""
    async with store_of(topology) as store:
        fired = await store.watch(path, "watch")
        for _ in itertools.repeat(None) if count is None else range(count):
            written = await fired.get()
            print(json.dumps({"path": written}) if as_json else written, flush=True)


def shown(value: bytes) -> str:
    """A value on a line, as Xen's tools have it: what is no printable ASCII as an escape sequence."""
    return "".join(_ESCAPES.get(byte) or chr(byte) for byte in value)


_ESCAPES = {byte: f"\\{byte:03o}" if byte < 8 else f"\\x{byte:02x}" for byte in range(256) if not 32 <= byte <= 126}
_ESCAPES |= {9: "\\t", 10: "\\n", 13: "\\r", 92: "\\\\"}
