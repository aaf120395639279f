"""The systems that the lab is measured against, in the same run. How to add one: bench/peers/base.py."""

import importlib

from bench.peers.base import Peer, PeerError, PeerSlice

PEERS = {
    "vhost": "bench.peers.vhost:Vhost",
    "vhost-hugepages": "bench.peers.vhost:VhostHugepages",
    "vhost-packed": "bench.peers.vhost:VhostPacked",
    "memif": "bench.peers.vhost:Memif",
    "veth": "bench.peers.veth:Veth",
    "unix": "bench.peers.unix:Unix",
}
"""Name → module:class, imported when it is asked for."""


def peer_class(name: str) -> type[Peer]:
    """The class of a peer. PeerError for a name that nobody registered."""
    if name not in PEERS:
        raise PeerError(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
    module, _, attribute = PEERS[name].partition(":")
    found: type[Peer] = getattr(importlib.import_module(module), attribute)
    return found


__all__ = ["PEERS", "Peer", "PeerError", "PeerSlice", "peer_class"]
