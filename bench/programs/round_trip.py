"""TCP round trips of one byte: ``python round_trip.py serve PORT``, ``python round_trip.py ask ADDRESS PORT SECONDS``.

`ask` prints ``{"trips": n, "seconds": s}``. Standard library alone, so that it starts at once.
"""

import json
import socket
import sys
import time

LOOK = 16  # trips between two looks at the clock


def serve(port: int) -> None:
    """Send each byte back, one connection after the other, until killed."""
    with socket.create_server(("", port)) as listener:
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := sock.recv(1):
                    sock.send(data)


def ask(address: str, port: int, seconds: float) -> None:
    """Send a byte and wait until it is back, for so long."""
    with socket.create_connection((address, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips, start = 0, time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            for _ in range(LOOK):
                sock.send(b"?")
                if not sock.recv(1):
                    sys.exit("the server has gone")
            trips += LOOK
    print(json.dumps({"trips": trips, "seconds": now - start}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
