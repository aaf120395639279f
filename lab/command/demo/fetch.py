"""A web server and a download from it, as users' programs would do it, without a file: a guest need not be able to read one.

python fetch.py serve PORT SEED MIB     serve that many MiB, which SEED says, with Python's own web server
python fetch.py get URL SEED MIB        download them, and compare by SHA-256
"""

import hashlib
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 1 << 20
START_TIMEOUT_S = 10.0


def content(seed: int, mib: int) -> Iterator[bytearray]:
    """What is served, MiB for MiB: no two are alike."""
    chunk = bytearray(random.Random(seed).randbytes(CHUNK))
    for number in range(mib):
        chunk[:8] = number.to_bytes(8, "little")
        yield chunk


def serve(port: int, seed: int, mib: int) -> int:
    """Serve until killed."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(mib * CHUNK))
            self.end_headers()
            for chunk in content(seed, mib):
                self.wfile.write(chunk)

    ThreadingHTTPServer(("", port), Handler).serve_forever()
    return 0


def open_when_served(url: str) -> HTTPResponse:
    """Open the URL, waiting for its server to come up."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            response: HTTPResponse = urllib.request.urlopen(url, timeout=START_TIMEOUT_S)
            return response
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def get(url: str, seed: int, mib: int) -> int:
    """Print rate and verdict; 0 if what came is what was to come."""
    digest, size, expected = hashlib.sha256(), 0, hashlib.sha256()
    with open_when_served(url) as response:
        start = time.monotonic()
        while chunk := response.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
        seconds = time.monotonic() - start
    for part in content(seed, mib):
        expected.update(part)
    equal = digest.digest() == expected.digest()
    verdict = "SHA-256 equal" if equal else "SHA-256 DIFFERS"
    print(f"{size / 2**20:.0f} MiB in {seconds:.2f} s, {size * 8 / seconds / 1e9:.2f} Gbit/s, {verdict}")
    return 0 if equal else 1


if __name__ == "__main__":
    _, what, where, *numbers = sys.argv
    seed, mib = map(int, numbers)
    sys.exit(serve(int(where), seed, mib) if what == "serve" else get(where, seed, mib))
