"""A collector that only counts: `python -m tests.benchmarks.sink PORT`. `GET /livez` answers how many events came.

Raw HTTP/1.1, so that it takes little of the core that it shares with others.
"""

import asyncio
import re
import sys
from typing import cast

import uvloop

EVENT = b'"event_name"'
"""Every event of the benchmarks has it once."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class _Requests(asyncio.Protocol):
    events = 0
    """Of all connections."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (at := self._received.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._received, 0, at)
            end = at + 4 + (int(found[1]) if found else 0)
            if len(self._received) < end:
                return
            _Requests.events += self._received.count(EVENT, at, end)
            self._received = self._received[end:]
            said = b"%d" % _Requests.events
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))


async def _serve(port: int) -> None:
    listener = await asyncio.get_running_loop().create_server(_Requests, "127.0.0.1", port)
    await listener.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
