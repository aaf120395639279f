"""The control protocol: msgpack maps over a Unix SOCK_SEQPACKET socket, descriptors by SCM_RIGHTS (docs/hypercalls.md).

One message a packet, both directions alike::

    request  {"id": n, "op": name, "args": {...}}
    reply    {"id": n, "gen": g, "ok": value}  or  {"id": n, "gen": g, "error": [errno name, message]}
    event    {"op": name, "args": {...}}                     no id: no reply

`gen` is the answering side's generation (the hypervisor counts its starts), so that a client can tell a restarted peer. The
end of the socket is the peer's end: calls under way fail with `PeerGone`, later ones at once.

Who owns what, and what an untrusted peer can do:

* *Its words.* Anything may come; a message that is no such map ends the channel. Text that is passed on is cut and has no control
  characters (words.py). A message of ours that is too long is an error of the call that it was for (EMSGSIZE), and not the end.
* *Descriptors.* Closing one can take as long as its sender chose (a socket that lingers). From a peer that has none to send
  (`untrusted`) none is ever taken: the first packet that carries some ends the channel unread, and its socket is closed where
  nobody waits (descriptors.py). Others' are closed unless the operation takes them.
* *Its time.* A channel is served for `TURN_S`, or one request, before the loop goes on to the next; no more than `MAX_PENDING` of
  its requests are under way; further packets stay in the socket.
* *Not reading.* What can't be sent yet waits in the channel's outbox (outbox.py). An untrusted peer that leaves `MAX_UNSENT`
  messages there, or one with descriptors, is not read until it has taken some; no more than `MAX_UNSENT_FDS` of these wait, as each
  is open here, and an answer beyond them is ENOBUFS. Of a trusted one, whoever asks it bounds what waits. Only EPIPE and ECONNRESET
  mean that the peer is gone.
* *Our log.* A mistake of ours that it provokes is logged, by the process that has made it, with a traceback: at its expense, and no
  more than so often (limited_log.py).

The end, however it comes, is told to the peer by shutdown(2): others may hold copies of the socket.
"""

from hyp.control.channel import (
    MAX_FDS,
    MAX_MESSAGE,
    MAX_PENDING,
    MAX_UNSENT,
    MAX_UNSENT_FDS,
    Answer,
    Channel,
    Handler,
    Reply,
    socketpair,
)
from hyp.control.descriptors import close_all
from hyp.control.errors import ControlError, PeerGone, Refused, describe

__all__ = [
    "MAX_FDS",
    "MAX_MESSAGE",
    "MAX_PENDING",
    "MAX_UNSENT",
    "MAX_UNSENT_FDS",
    "Answer",
    "Channel",
    "ControlError",
    "Handler",
    "PeerGone",
    "Refused",
    "Reply",
    "close_all",
    "describe",
    "socketpair",
]
