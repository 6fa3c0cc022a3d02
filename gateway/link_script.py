"""GET /link.js: the script that pages load, and the address with its hash, whose content never changes."""

import base64
import gzip
import hashlib
from functools import cache
from importlib.resources import files

from litestar import Request, Response, route
from litestar.handlers import HTTPRouteHandler
from litestar.status_codes import HTTP_200_OK, HTTP_304_NOT_MODIFIED
from msgspec import Struct

AN_HOUR = "public, max-age=3600"
FOR_EVER = "public, max-age=31536000, immutable"


class LinkScript(Struct, frozen=True):
    """The script as it is served. `integrity` is for a page's `<script integrity>`."""

    body: bytes
    compressed: bytes
    hash: str
    integrity: str

    @property
    def etag(self) -> str:
        """Weak: the compressed answer has the same one."""
        return f'W/"{self.hash}"'

    @property
    def pinned(self) -> str:
        """The path that serves these bytes and no others."""
        return f"/link.{self.hash}.js"


@cache
def link_script() -> LinkScript:
    """Read the script from the package."""
    body = (files("gateway") / "link.js").read_bytes()
    return LinkScript(
        body=body,
        compressed=gzip.compress(body, mtime=0),
        hash=hashlib.sha256(body).hexdigest()[:16],
        integrity=f"sha384-{base64.b64encode(hashlib.sha384(body).digest()).decode()}",
    )


def script_route() -> HTTPRouteHandler:
    """Return the route of /link.js and of /link.<hash>.js, which a page with an `integrity` should load.

    Both are for everybody: any origin may load them, and they say nothing about who asks.
    """
    script = link_script()

    @route(["/link.js", script.pinned], http_method=["GET", "HEAD"], sync_to_thread=False)
    def link_js(request: Request[object, object, object]) -> Response[bytes]:  # type: ignore[type-var]
        return _answer(script, request)

    return link_js


def _answer(script: LinkScript, request: "Request[object, object, object]") -> Response[bytes]:  # type: ignore[type-var]
    headers = {
        "Cache-Control": FOR_EVER if request.url.path.endswith(script.pinned) else AN_HOUR,
        "ETag": script.etag,
        "Vary": "Accept-Encoding",
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "X-Content-Type-Options": "nosniff",
    }
    if _knows(request.headers.get("if-none-match", ""), script.hash):
        return Response(b"", status_code=HTTP_304_NOT_MODIFIED, headers=headers, media_type="text/javascript")
    body = script.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        body, headers = script.compressed, headers | {"Content-Encoding": "gzip"}
    return Response(body, status_code=HTTP_200_OK, headers=headers, media_type="text/javascript")


def _knows(if_none_match: str, hash: str) -> bool:
    """Compare as RFC 9110 says: a weak comparison with any of the tags, or `*`."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or f'"{hash}"' in tags
