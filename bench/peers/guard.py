"""Takes away what a vhost peer leaves outside of processes: its run folder and its huge pages.

``python -m bench.peers.guard NAME LOCK [HUGEPAGES]``: LOCK is the run folder's lock, HUGEPAGES the reservation's descriptor.
Standard input is a pipe whose writing end the bench and both testpmds hold: its end means that all three have ended, in good
order or by kill -9. So this one way of cleaning up serves every end. Should the guard be killed too, both locks are free and
`launch.py clean`, or the next start, does the same.
"""

import os
import sys

from bench.peers import hugepages
from lab.rundir import RunDir


def main() -> None:
    """Wait for the end, then clean up."""
    name, lock = sys.argv[1], int(sys.argv[2])
    while os.read(0, 4096):
        pass
    if len(sys.argv) > 3:
        hugepages.give_back(int(sys.argv[3]))
    RunDir.of(name).remove()
    os.close(lock)


if __name__ == "__main__":
    main()
