"""Who may ask for what. Every request passes here first.

The server listens on loopback alone; but every page that a browser on this machine shows, and every user of it, reaches loopback:

* **Host** must be a name of loopback with our port. A page of elsewhere whose name was made to point here (DNS rebinding) sends
  its own name: 403.
* **Origin**, where a browser sends one, must be ours, and `Sec-Fetch-Site` must not be another site's: no other page reads
  what is shown, or changes anything: 403.
* What changes things is a POST with the **token** in the header `X-Lab-Token`, which no form or link can send. The token is made
  anew for each run of the server and is in the fragment of the address that the command prints, which browsers send to nobody.
  Compared in constant time. 401 without or with another one.
* What is answered may neither be framed nor kept, and runs and shows what this server gave and nothing else (CSP, no inline
  script or style).

Looking takes no token: other users of the machine can do it, as they can count its processes.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
TOKEN_HEADER = "X-Lab-Token"
LOOKS = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def new_token() -> str:
    """What nobody guesses."""
    return secrets.token_urlsafe(24)


class Guard:
    """ASGI middleware. `ports`: those that this server listens on."""

    def __init__(self, app: App, token: str, ports: Iterable[int]) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {f"{name}:{port}" for name in LOOPBACK for port in ports}
        self._hosts |= {name for name in LOOPBACK if 80 in set(ports)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the app do it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, with_headers)
        else:
            status, why = refusal
            await JSONResponse({"error": why}, status)(scope, receive, with_headers)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason; None: it may."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, "this page is served to loopback's own names only"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self._hosts}:
            return 403, "another page asks, which may not"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return 403, "another page asks, which may not"
        if method in LOOKS:
            return None
        given = headers.get(TOKEN_HEADER, "").encode("utf-8", "surrogateescape")
        if not secrets.compare_digest(given, self._token):
            return 401, "changing things takes the whole address that `launch.py web` has printed, with its token"
        return None
