"""A guest that keeps writing what a transaction of Domain 0's uses makes it fail, again and again (Xen's advisory XSA-206).

As in oxenstored each guest has a credit. Each such transaction that fails takes one from every guest whose writes were to blame;
who has none left is not served until it has one again. Domain 0, which tries again at once, comes through meanwhile. Conflicts
between guests cost nobody anything: whose nodes others may write has allowed it, and a guest could be made to pay by transactions
that are meant to fail.

Source: oxenstored's ``conflict-burst-limit`` and its rate of one a second.
"""

import time

BURST, PER_S = 5.0, 1.0


class Credit:
    """What each domain has left."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[float, float]] = {}  # domid → what it had, when; who isn't there has BURST

    def debit(self, domid: int) -> None:
        """A transaction failed because of it."""
        self._left[domid] = max(self._now(domid) - 1.0, 0.0), time.monotonic()

    def wait_s(self, domid: int) -> float:
        """For how long it is not served; 0 mostly."""
        if domid not in self._left:
            return 0.0
        left = self._now(domid)
        if left >= BURST:
            del self._left[domid]
        return max(0.0, (1.0 - left) / PER_S)

    def forget(self, domid: int) -> None:
        """The domain is gone."""
        self._left.pop(domid, None)

    def _now(self, domid: int) -> float:
        had, when = self._left.get(domid, (BURST, 0.0))
        return min(BURST, had + (time.monotonic() - when) * PER_S)
