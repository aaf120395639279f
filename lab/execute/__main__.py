"""``python -m lab.execute TOPOLOGY GUEST PROGRAM [ARGUMENT]...``: `launch.py exec` for programs, with nothing to be parsed."""

import asyncio
import os
import sys

from lab.command.clients import ClientError
from lab.execute import inherited
from lab.execute.front import FAILED, find_guest, run_inside


def main(argv: list[str]) -> int:
    """Run it; returns the exit status."""
    inherited.note()
    topology, guest, *program = argv
    try:
        return run_inside(asyncio.run(find_guest(guest, topology)), guest, [os.fsencode(word) for word in program])
    except ClientError as error:
        print(error, file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
