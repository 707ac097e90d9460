"""`/gateways` of a server that is one process, so that whoever asks about gateways gets an answer there, too.

Joined by serve/server.py. Not aware of: servers of several (serve/gateways/control.py).
"""

import os
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def alone_routes(clock: Callable[[], float]) -> list[Route]:
    since = clock()

    async def gateways(_: Request) -> Response:
        for_s = round(clock() - since, 1)
        one = {"number": 0, "pid": os.getpid(), "state": "up", "for_s": for_s, "restarts": 0, "adopter": None}
        return JSONResponse([one])

    async def restart(_: Request) -> Response:
        message = "this server is one process; started with --gateways 2 or more, it can replace them one by one"
        return JSONResponse({"error": message}, status_code=400)

    return [Route("/gateways", gateways), Route("/gateways/restart", restart, methods=["POST"])]
