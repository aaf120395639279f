"""`launch.py store`: its commands, which lab/command/store.py carries out."""

from typing import Annotated

import typer

from lab.command.doing import USAGE, Json, Topology, ask, fail

store = typer.Typer(
    help="The store of a running topology, as Domain 0. Xen's own tools work too, with XENSTORED_PATH set to what `status` shows.",
    rich_markup_mode=None,
)


@store.command()
def ls(
    path: Annotated[str, typer.Argument(help="What to begin below.")] = "/",
    full: Annotated[bool, typer.Option("-f", help="Whole paths.")] = False,
    permissions: Annotated[bool, typer.Option("-p", help="Permissions too.")] = False,
    topology: Topology = None,
    as_json: Json = False,
) -> None:
    """Everything below a node."""
    from lab.command.store import ls

    ask(ls(topology, path, full=full, permissions=permissions, as_json=as_json))


@store.command()
def read(paths: Annotated[list[str], typer.Argument(metavar="PATH...")], topology: Topology = None, as_json: Json = False) -> None:
    """Nodes' values, a line each."""
    from lab.command.store import read

    ask(read(topology, paths, as_json=as_json))


@store.command()
def write(
    pairs: Annotated[list[str], typer.Argument(metavar="PATH VALUE [PATH VALUE]...")],
    topology: Topology = None,
) -> None:
    """Set nodes' values: all of them, or none."""
    from lab.command.store import write

    if len(pairs) % 2:
        fail(f"store write: {pairs[-1]} has no value", USAGE)
    ask(write(topology, list(zip(pairs[::2], pairs[1::2], strict=True))))


@store.command()
def rm(paths: Annotated[list[str], typer.Argument(metavar="PATH...")], topology: Topology = None) -> None:
    """Remove nodes, and what is below them: all of them, or none."""
    from lab.command.store import remove

    ask(remove(topology, paths))


@store.command()
def watch(
    path: Annotated[str, typer.Argument()],
    count: Annotated[int | None, typer.Option("-n", min=1, help="End after so many events.")] = None,
    topology: Topology = None,
    as_json: Json = False,
) -> None:
    """The paths that are written, a line each, until Ctrl-C; the watched one at first."""
    from lab.command.store import watch

    ask(watch(topology, path, count, as_json=as_json))
