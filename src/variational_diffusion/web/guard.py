"""Who may use the page: browsers on this machine that were given its address, and no other page.

A browser sends requests to 127.0.0.1 for any web site that asks it to, and the ports of a machine
are open to all of its users. `Guard` stands before the page and turns away what comes from there.
"""

from __future__ import annotations

import re
import secrets
import stat
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from variational_diffusion.web.uploads import MAX_BYTES

MAX_TOTAL = 256 << 20
"""Bytes of all files that the page holds together: uploads, and pictures it has made."""
MAX_BODY = 2 * MAX_BYTES
"""Bytes of one request: an upload, or a painted picture in base64, with what is around it."""

_HERE = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.ASCII | re.IGNORECASE)
_POSTS = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset|component_server)/?", re.ASCII)
"""What the page itself sends: all work goes through its queue."""
_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """An ASGI application around the page, which lets in the requests of its user alone.

    - They name this machine as their host: a name that somebody has turned to 127.0.0.1 (DNS
      rebinding) is another one.
    - They come from the page itself, or a person has opened the address. Other pages are refused,
      those of other ports and of files too.
    - They carry the token: in the address at first, then in a cookie.
    - They are what the page sends, and leave no more than `MAX_TOTAL` bytes in its folder.

    folder: of the files of the page. token: None for a page of all users of this machine.
    """

    def __init__(self, app: ASGIApp, folder: Path, token: str | None) -> None:
        self._app, self._folder, self._token = app, folder, token
        self._arriving = 0  # bytes of the requests that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        size = _length(request) if scope.get("method") == "POST" else 0
        status, why = self._refusal(request, size)
        if status:
            await _refuse(scope, receive, send, status, why)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if self._token is not None and "token" in request.query_params:
                    kept = f"{_cookie(request)}={self._token}; Path=/; HttpOnly; SameSite=Strict"
                    headers.append("Set-Cookie", kept)
            await send(message)

        self._arriving += size
        try:
            await self._app(scope, receive, marked)
        finally:
            self._arriving -= size

    def _refusal(self, request: HTTPConnection, size: int) -> tuple[int, str]:
        """Return the status and the reason to refuse a request with; 0 lets it in."""
        method, path = request.scope.get("method", "GET"), request.scope["path"]
        stranger = self._stranger(request, method)
        if stranger:
            return 403, stranger
        if method not in ("GET", "HEAD", "POST") or (method == "POST" and not _sent(path)):
            return 404, "the page does not use this way"
        if size < 0:
            return 411, "a request has to say how long it is"
        if size > MAX_BODY or (size and self._arriving + size + _held(self._folder) > MAX_TOTAL):
            return 413, "this is too large, or too many files are here already; try it in an hour"
        return 0, ""

    def _stranger(self, request: HTTPConnection, method: str) -> str:
        """Return why a request is not of the page's user; "" where it is."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not _HERE.fullmatch(host):
            return f"host = {host!r}: this page answers to 127.0.0.1 and localhost"
        if origin not in (None, f"http://{host}"):
            return f"origin = {origin!r}: other pages may not use this one"
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            how = [request.headers.get(f"sec-fetch-{name}") for name in ("mode", "dest")]
            if method != "GET" or how != ["navigate", "document"]:
                return "other pages may not use this one"
        if self._token is not None:
            given = request.query_params.get("token") or request.cookies.get(_cookie(request), "")
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return "open the whole address that vdm serve has printed, with its token"
        return ""


def _sent(path: str) -> bool:
    return _POSTS.fullmatch(path) is not None


def _cookie(request: HTTPConnection) -> str:
    """Return the cookie's name: cookies are of a host, for all of its ports together."""
    return f"vdm-{request.headers['host'].rpartition(':')[2]}"


def _length(request: HTTPConnection) -> int:
    """Return the bytes of a request's body; -1 where it does not tell."""
    told = request.headers.get("content-length", "")
    return int(told) if re.fullmatch(r"\d{1,15}", told, re.ASCII) else -1


def _held(folder: Path) -> int:
    """Return the bytes of all files in a folder, of which some may be removed meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})
        return
    await PlainTextResponse(f"{why}\n", status, headers=_HEADERS)(scope, receive, send)
