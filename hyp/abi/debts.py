"""What a peer owes for the time that serving it, or notifying it, takes: the constants of both kinds of debt.

Of who waits, for a notification (hyp/events.py); of who asks, for a turn of the one that serves it (hyp/control/debt.py).
"""

from typing import Final

DEARNESS: Final = 40
"""By how many times as much time it is paid off."""
CREDIT_NS: Final = 200_000_000
"""What may be owed before nothing is sent, or served, any more."""
MOST_NS: Final = 250_000_000
"""Of one notification, or one turn, that is owed for. What takes longer is no waiter's doing: the machine stood still, as a virtual
one does that its host stops for a minute, whose clocks of CPU time go on; forty times that would be most of an hour."""
