"""What holds the console's pages: templates that escape all they are given, files, and the headers of every answer."""

import hashlib
import mimetypes
from collections.abc import Callable, Mapping, MutableMapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Litestar, Response
from litestar.datastructures import MutableScopeHeaders
from litestar.enums import MediaType
from litestar.types import Message, Receive, Scope, Send
from msgspec import Struct

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FOREVER = "public, max-age=31536000, immutable"
"""Of files whose address changes with their content."""


class File(Struct, frozen=True):
    """A static file, and the address that it has as long as it is the same."""

    content: bytes
    type: str
    address: str


def static_files() -> dict[str, File]:
    """Return the console's static files by name."""
    found: dict[str, File] = {}
    for each in files("gateway.console").joinpath("static").iterdir():
        content = each.read_bytes()
        address = f"/console/static/{each.name}?{hashlib.sha256(content).hexdigest()[:12]}"
        kind = mimetypes.guess_type(each.name)[0] or "text/plain"
        found[each.name] = File(content, "text/javascript" if each.name.endswith(".js") else kind, address)
    return found


class Pages:
    """Renders templates. Everything that is put into one is escaped: nothing is ever marked as safe."""

    def __init__(self, static: dict[str, File], filters: dict[str, Callable[..., object]]) -> None:
        self._templates = Environment(
            loader=PackageLoader("gateway.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters.update(filters)
        self._templates.globals["static"] = lambda name: static[name].address

    def text(self, name: str, values: Mapping[str, object]) -> str:
        """Return a template filled in."""
        return self._templates.get_template(name).render(values)

    def page(self, name: str, values: Mapping[str, object], *, status: int = 200) -> Response[str]:
        """Return a template filled in, as an answer."""
        return Response(self.text(name, values), media_type=MediaType.HTML, status_code=status)


def framed(app: Litestar) -> Callable[[Scope, Receive, Send], Any]:
    """Return the app with the console's headers on all of its answers, those to what it does not know among them."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableScopeHeaders.from_message(message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        inner: MutableMapping[str, Any] = dict(scope)
        inner["root_path"] = ""
        await app(inner, receive, told)  # type: ignore[arg-type]

    return answer
