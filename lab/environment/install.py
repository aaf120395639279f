"""Install the lab and its packages into the Python that runs this; make does it: ``python lab/environment/install.py [EXTRA ...]``.

uv takes a tenth of pip's time, and is itself a wheel that pip installs at once. It does not read pip's configuration (an index,
a proxy, a certificate, constraints), so it is told of it; where it fails all the same, pip does it and says what is wrong.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
AS_UV_HAS_IT = {
    "index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS", "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE", "proxy": "ALL_PROXY", "trusted-host": "UV_INSECURE_HOST",
}  # fmt: skip
OURS = {"UV_HTTP_TIMEOUT": "15", "UV_HTTP_RETRIES": "1", "UV_SYSTEM_CERTS": "true", "UV_NATIVE_TLS": "true"}
"""An index that cannot be reached must not take longer than pip does; certificates are the machine's (in old and new words)."""


def settings_of_pip(listing: str) -> dict[str, str]:
    """pip's configuration (the output of ``pip config list``) as variables of uv's. What stands further down counts."""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        name, is_one, value = line.partition("=")
        option = name.rpartition(".")[2].replace("_", "-")
        if is_one and option in AS_UV_HAS_IT and (words := value.strip("'\"").replace("\\n", " ").split()):
            separator = "," if option == "find-links" else " "
            found[AS_UV_HAS_IT[option]] = separator.join(words)
    return found


def _no_cache() -> list[str]:
    """uv wants a cache. Where the user has no folder for it, it gets a passing one."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = Path(os.environ.get("UV_CACHE_DIR") or os.path.join(home, "uv"))
    existing = next((folder for folder in (place, *place.parents) if folder.exists()), Path("/"))
    return [] if place.is_absolute() and os.access(existing, os.W_OK | os.X_OK) else ["--no-cache"]


def with_uv(what: str) -> bool:
    """Install by uv. False, in silence, if it cannot be had or fails."""
    got = subprocess.run([*PIP, "install", "--only-binary", "uv", "uv"], cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL)
    if got.returncode != 0:
        return False
    listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    environment = {**OURS, **settings_of_pip(listing), **os.environ}
    command = [sys.executable, "-m", "uv", *_no_cache(), "pip", "install", "--quiet", "--python", sys.executable, "-e", what]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def main(extras: list[str]) -> int:
    """Install with the optional dependencies named; returns pip's exit status, or 0."""
    what = f".[{','.join(extras)}]" if extras else "."
    if with_uv(what):
        return 0
    return subprocess.run([*PIP, "install", "--no-compile", "-e", what], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
