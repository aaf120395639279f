"""The routes. GET looks, POST changes; lab/web/security.py has decided before whether it may.

    /                  the page
    /assets/NAME       what it is made of; plotly.js is the package plotly's, drawing.css is lab/page's
    /stream            the views of lab/web/hub.py, as server-sent events
    /metrics           OpenMetrics
    POST /do/VERB      a control, its arguments as a JSON object: {"done": sentence}, or 409 {"error": sentence}

Everything else is 404.
"""

import functools
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from lab.page.style import style
from lab.web.controls import Controls, Refused
from lab.web.hub import MOST_VIEWERS, Hub, TooMany
from lab.web.metrics import CONTENT_TYPE, exposition
from lab.web.security import App, Guard

ASSETS = Path(__file__).parent / "assets"
MOST_BYTES = 4096
"""Of a control's arguments."""


@functools.cache
def _plotly() -> bytes:
    return str(get_plotlyjs()).encode()


def make_app(hub: Hub, controls: Controls, token: str, ports: list[int]) -> App:
    """The whole of what the server serves."""

    async def page(request: Request) -> Response:
        return FileResponse(ASSETS / "page.html", media_type="text/html; charset=utf-8")

    async def plotly(request: Request) -> Response:
        return Response(_plotly(), media_type="text/javascript; charset=utf-8")

    async def drawing(request: Request) -> Response:
        return Response(style(), media_type="text/css; charset=utf-8")

    async def stream(request: Request) -> Response:
        if hub.viewers >= MOST_VIEWERS:
            return JSONResponse({"error": f"{MOST_VIEWERS} look already"}, 503)
        return StreamingResponse(_events(hub), media_type="text/event-stream")

    async def metrics(request: Request) -> Response:
        if hub.sample is None:
            return JSONResponse({"error": "nothing has been looked at yet"}, 503)
        watch = hub.watch
        return Response(exposition(watch.picture, watch.counts, hub.sample, watch.use, watch.status), media_type=CONTENT_TYPE)

    async def do(request: Request) -> Response:
        try:
            arguments = json.loads(await _body(request))
            return JSONResponse({"done": await controls.do(request.path_params["verb"], arguments)})
        except (ValueError, RecursionError):
            return JSONResponse({"error": "a JSON object of at most 4096 bytes is wanted"}, 400)
        except Refused as error:
            return JSONResponse({"error": str(error)}, 409)

    routes = [
        Route("/", page),
        Route("/stream", stream),
        Route("/metrics", metrics),
        Route("/do/{verb}", do, methods=["POST"]),
        Route("/assets/plotly.js", plotly),
        Route("/assets/drawing.css", drawing),
        Mount("/assets", StaticFiles(directory=ASSETS)),
    ]
    return Guard(Starlette(routes=routes), token, ports)


async def _body(request: Request) -> bytes:
    """ValueError if it is too long."""
    found = b""
    async for piece in request.stream():
        found += piece
        if len(found) > MOST_BYTES:
            raise ValueError("too long")
    return found


async def _events(hub: Hub) -> AsyncIterator[str]:
    """The views as a stream of events. One is made when the one before it has been sent: who reads slowly gets fewer."""
    yield "retry: 2000\n\n"
    try:
        async with aclosing(hub.views()) as views:
            async for view in views:
                yield f"event: {view['kind']}\ndata: {json.dumps(view, separators=(',', ':'))}\n\n"
    except TooMany:
        yield 'event: ended\ndata: {"reason":"too many look already"}\n\n'
