"""The round trip of a small UDP datagram between guests: ``python echo.py serve PORT``, ``python echo.py ask ADDRESS PORT``.

For machines without ping. `ask` prints minimum, average and maximum in ms; a datagram that does not come back is an error.
"""

import select
import socket
import sys
import time

COUNT, INTERVAL_S, BYTES = 20, 0.02, 64
START_TIMEOUT_S, ANSWER_TIMEOUT_S = 10.0, 2.0


def serve(port: int) -> None:
    """Send each datagram back to where it came from, until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", port))
        while True:
            sock.sendto(*sock.recvfrom(2048))


def _answered(sock: socket.socket, sequence: int, timeout: float) -> bool:
    """Send datagram `sequence`; True if it comes back within `timeout`. An ICMP error (nobody serves yet) is no answer."""
    text = sequence.to_bytes(8, "big").ljust(BYTES, b"\0")
    until = time.monotonic() + timeout
    try:
        sock.send(text)
        while select.select([sock], [], [], max(until - time.monotonic(), 0))[0]:
            if sock.recv(2048) == text:
                return True
    except ConnectionRefusedError:
        pass
    return False


def ask(address: str, port: int) -> int:
    """Measure, once the server answers; 0 if all came back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answered(sock, 0, 0.02):
            if time.monotonic() > deadline:
                print("nobody answers")
                return 1
        times = []
        for sequence in range(1, COUNT + 1):
            start = time.perf_counter()
            if not _answered(sock, sequence, ANSWER_TIMEOUT_S):
                print(f"datagram {sequence} of {COUNT} did not come back")
                return 1
            times.append((time.perf_counter() - start) * 1000)
            time.sleep(INTERVAL_S)
    print(f"= {min(times):.3f}/{sum(times) / len(times):.3f}/{max(times):.3f} ms")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    sys.exit(ask(sys.argv[2], int(sys.argv[3])))
