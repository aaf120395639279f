"""A download as a user's program would do it: ``python fetch.py URL FILE`` fetches URL and compares it with FILE by SHA-256."""

import hashlib
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path

CHUNK = 1 << 20
START_TIMEOUT_S = 10.0


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


def main(url: str, original: str) -> int:
    """Print rate and verdict; 0 if the two are equal."""
    digest, size = hashlib.sha256(), 0
    with open_when_served(url) as response:
        start = time.monotonic()
        while chunk := response.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
        seconds = time.monotonic() - start
    equal = digest.hexdigest() == hashlib.sha256(Path(original).read_bytes()).hexdigest()
    verdict = "SHA-256 equal" if equal else "SHA-256 DIFFERS"
    print(f"{size / 2**20:.0f} MiB in {seconds:.2f} s, {size * 8 / seconds / 1e9:.2f} Gbit/s, {verdict}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
