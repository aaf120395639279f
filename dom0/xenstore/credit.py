"""What a guest's writes cost Domain 0 is taken from a credit of the guest's; who has none left is not served until it has again.

*Conflicts*, as in oxenstored: who keeps writing what a transaction of Domain 0's uses makes it fail, again and again (Xen's
advisory XSA-206). Each that fails takes one from every guest whose writes were to blame; Domain 0, which tries again at once, comes
through meanwhile. Conflicts between guests cost nobody anything: whose nodes others may write has allowed it, and a guest could be
made to pay by transactions that are meant to fail.

*Events*: each that a guest's write has Domain 0 told of takes one, as there is more work behind it than behind the write: a back
end reads its front end's nodes. No driver needs as many. Who causes more at once, by a transaction, is in debt until they are paid
for.

Source: oxenstored's ``conflict-burst-limit`` and its rate of one a second.
"""

import time

CONFLICTS = 5.0, 1.0
EVENTS = 50.0, 50.0


class Credit:
    """What each domain has left: `burst` at first and at most, and `per_s` more each second."""

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._left: dict[int, tuple[float, float]] = {}  # domid → what it had, when; who isn't there has `burst`

    def debit(self, domid: int) -> None:
        """It has cost one, whether it had that or not."""
        self._left[domid] = self._now(domid) - 1.0, time.monotonic()

    def wait_s(self, domid: int) -> float:
        """For how long it is not served; 0 mostly."""
        if domid not in self._left:
            return 0.0
        left = self._now(domid)
        if left >= self._burst:
            del self._left[domid]
        return max(0.0, (1.0 - left) / self._per_s)

    def forget(self, domid: int) -> None:
        """The domain is gone."""
        self._left.pop(domid, None)

    def _now(self, domid: int) -> float:
        had, when = self._left.get(domid, (self._burst, 0.0))
        return min(self._burst, had + (time.monotonic() - when) * self._per_s)
