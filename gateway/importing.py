"""Import: webhooks exported elsewhere, one a line, go through the mappings as if they came now.

A line is a sender's bare payload, whose source is said once for the whole file, or a record of its own:

    {"source": "shopify", "headers": {"X-Shopify-Topic": "orders/paid", …}, "body": {…}}

`body` is JSON, or a text that is kept to the byte. An operator exported the lines, so no signature is asked for; what
makes a webhook (id, type) must be readable by the source's `webhook:` block. When it happened is what the payload says.

One line is durable before the next is looked at, as a later webhook may need what an earlier one taught or claimed. A
`Progress` says up to where that is so. What was imported before is a duplicate: a file can be imported again, from
anywhere, by several at once, while a gateway runs. Memory is bounded by one line.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import IO, Self

import msgspec
from msgspec import Raw, Struct

from gateway.expressions import EvaluationError
from gateway.functions import milliseconds
from gateway.history import Beside, Table
from gateway.intake import UnknownSource
from gateway.mappings import Mappings
from gateway.money import Money
from gateway.sources import MalformedWebhook, read_verified
from gateway.translate import translate

SAVE_EVERY = 200
"""Lines after which the progress is told."""
ROOM = 65_536
"""Bytes of a line besides its body: headers and white space."""
TOLD = 20
"""Bad lines that are told one by one; the others are only counted."""
_CHUNK = 1 << 16
_NOTHING = Decimal()


class BadLine(Exception):
    """A line that is no webhook; the message says why, without quoting it."""


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """A line that says for itself where it is from.

    `received_at` (ms, or ISO 8601) is when it happened, for a sender that does not say.
    """

    source: str
    body: Raw
    headers: dict[str, str] = {}
    received_at: int | str | None = None


class Line(Struct, frozen=True):
    """A line of a file. `end` is where the next one begins, in bytes; `data` is None when it is too long to be read."""

    number: int
    end: int
    data: bytes | None


class Progress(Struct):
    """How far an import has come: `line` lines, which end at byte `offset`, are done."""

    line: int = 0
    offset: int = 0
    new: int = 0
    known: int = 0
    bad: int = 0


class Imported(Struct, frozen=True):
    """A line as a request."""

    source: str
    headers: dict[str, str]
    body: bytes
    came_at: int | None = None


Tell = Callable[[int, str], object]
"""Told the number of a bad line, and what is wrong with it."""
Step = Callable[[Progress], object]
"""Told how far it has come."""


def lines(file: IO[bytes], longest: int, line: int = 0, offset: int = 0) -> Iterator[Line]:
    """Yield the lines of a file that stands at `offset`, after `line` lines; of one that is longer, no data."""
    while data := file.readline(longest + 1):
        end = offset + len(data)
        whole = data.endswith(b"\n") or len(data) <= longest
        while not data.endswith(b"\n") and len(data) > longest and (more := file.readline(_CHUNK)):
            end += len(more)
            if more.endswith(b"\n"):
                break
        line, offset = line + 1, end
        yield Line(line, end, data if whole else None)


def skip(file: IO[bytes], progress: Progress, from_line: int, max_body: int) -> None:
    """Pass over the lines before `from_line`."""
    if from_line <= progress.line + 1:
        return
    for line in lines(file, 2 * max_body + ROOM, progress.line, progress.offset):
        progress.line, progress.offset = line.number, line.end
        if line.number == from_line - 1:
            return


_RECORD = msgspec.json.Decoder(Record)
_TEXT = msgspec.json.Decoder(str)


def request_of(line: Line, source: str | None, max_body: int) -> Imported | None:
    """Return a line as a request; None for an empty one. Raises `BadLine`.

    `source` is that of bare payloads; a record that names another one is bad.
    """
    if line.data is None:
        raise BadLine(f"it is longer than a webhook may be (GATEWAY_MAX_BODY is {max_body} bytes)")
    data = line.data.strip()
    if not data:
        return None
    try:
        request = _request(data, source)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(f"it cannot be read: {error}") from None
    if len(request.body) > max_body:
        raise BadLine(f"its body is longer than a webhook may be (GATEWAY_MAX_BODY is {max_body} bytes)")
    return request


def _request(data: bytes, source: str | None) -> Imported:
    try:
        record = _RECORD.decode(data)
    except msgspec.ValidationError as error:
        if source is None:
            raise BadLine(f"it is no record ({error}): write source, headers and body, or give --source") from None
        return Imported(source, {}, data)
    if source not in {None, record.source}:
        raise BadLine(f"it is of source `{record.source[:40]}`, and --source says `{source}`")
    body = bytes(record.body)
    if body.startswith(b'"'):
        body = _TEXT.decode(body).encode()
    headers = {name.lower(): value for name, value in record.headers.items()}
    try:
        came_at = None if record.received_at is None else milliseconds(record.received_at)
    except EvaluationError as error:
        raise BadLine(f"its received_at is no time: {error}") from None
    return Imported(record.source, headers, body, came_at)


async def import_lines(
    file: IO[bytes],
    gateway: Beside,
    source: str | None,
    max_body: int,
    progress: Progress,
    *,
    tell: Tell,
    step: Step,
) -> None:
    """Take in what `file`, which stands where `progress` says, has left; `progress` is true at every moment.

    Raises `StoreUnavailable`, after which the line that it came to is not counted and can be taken again.
    """
    for line in lines(file, 2 * max_body + ROOM, progress.line, progress.offset):
        try:
            request = request_of(line, source, max_body)
            if request is not None:
                received = await gateway.intake.take(request.source, request.headers, request.body, request.came_at)
                progress.known += received.receipt.duplicate
                progress.new += not received.receipt.duplicate
        except (BadLine, MalformedWebhook, UnknownSource) as error:
            progress.bad += 1
            tell(line.number, _why(error, gateway.mappings))
        progress.line, progress.offset = line.number, line.end
        if line.number % SAVE_EVERY == 0:
            step(progress)


def foresee(
    file: IO[bytes],
    mappings: Mappings,
    source: str | None,
    max_body: int,
    progress: Progress,
    now: int,
    *,
    tell: Tell,
    step: Step,
) -> Table:
    """Return which events the lines would make, by source, name and currency, or why none; nothing is stored.

    What is a duplicate, or a payment reported before, only a store can tell: it is counted here as if it were new.
    """
    table = Table()
    for line in lines(file, 2 * max_body + ROOM, progress.line, progress.offset):
        try:
            request = request_of(line, source, max_body)
            if request is not None:
                _foresee(request, mappings, now, table)
                progress.new += 1
        except (BadLine, MalformedWebhook, UnknownSource) as error:
            progress.bad += 1
            tell(line.number, _why(error, mappings))
        progress.line, progress.offset = line.number, line.end
        if line.number % SAVE_EVERY == 0:
            step(progress)
    return table


def _foresee(request: Imported, mappings: Mappings, now: int, table: Table) -> None:
    if request.source not in mappings.sources:
        raise UnknownSource(request.source)
    source = mappings.sources[request.source]
    webhook = read_verified(request.headers, request.body, source, now)
    translation = translate(webhook, source, mappings.profiles, lambda _kind, _value: b"")
    for emission in translation.emissions:
        value = emission.event.properties.get("value")
        amount = value if isinstance(value, Money) else None
        key = (request.source, emission.event.name, amount.currency if amount else "")
        table.add(key, amount.amount if amount else _NOTHING)
    if not translation.emissions:
        failed = any(note.error and not note.skip for note in translation.notes)
        why = "a rule fails" if failed else "only ties payments together" if translation.payments else "no event"
        table.add((request.source, f"({why}: {webhook.type})", ""), _NOTHING)


def _why(error: Exception, mappings: Mappings) -> str:
    if isinstance(error, UnknownSource):
        return f"there is no source `{str(error)[:40]}`; there are: {', '.join(mappings.sources)}"
    return str(error)


# where an import of a file has come to


class _Kept(Struct, frozen=True):
    file: str
    progress: Progress


class Bookmark:
    """How far the import of a file came, kept beside it while it is not done.

    It is of one file, by its beginning, and of what it is imported into and as: of others it knows nothing. `kept` is
    whether it could be written; if not, whoever imports has to say from which line to go on.
    """

    def __init__(self, path: Path, identity: str, size: int) -> None:
        self.path = path
        self.kept = False
        self._identity = identity
        self._size = size

    @classmethod
    def of(cls, file: Path, opened: IO[bytes], *told: str) -> Self:
        """Return the bookmark of a file, opened at its beginning, that is imported as `told`."""
        digest = blake2b("\0".join(told).encode(), digest_size=16)
        digest.update(opened.read(_CHUNK))
        return cls(file.with_name(file.name + ".progress"), digest.hexdigest(), file.stat().st_size)

    def load(self) -> Progress:
        """Return where the import stopped; the beginning if nothing is known of it."""
        try:
            kept = msgspec.json.decode(self.path.read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            return Progress()
        return kept.progress if kept.file == self._identity and kept.progress.offset <= self._size else Progress()

    def save(self, progress: Progress) -> None:
        """Keep how far it has come, if the folder can be written to."""
        beside = self.path.with_name(self.path.name + ".new")
        try:
            beside.write_bytes(msgspec.json.encode(_Kept(self._identity, progress)))
            beside.replace(self.path)
        except OSError:
            self.kept = False
        else:
            self.kept = True

    def remove(self) -> None:
        """Forget it: the file is done."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
