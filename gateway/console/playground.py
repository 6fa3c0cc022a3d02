"""What a mapping that somebody is writing would make of a sample or a stored webhook. Nothing is stored or sent."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from gateway.checking import mistakes
from gateway.destinations import Destination, Unrenderable
from gateway.documents import MappingErrors, parse, yaml_files
from gateway.dry_run import request_of, shown
from gateway.events import Event, ProductIds, Visitor
from gateway.identity import PiiGuard
from gateway.mappings import Mappings, read_document
from gateway.masking import guard_of, guarded
from gateway.sources import MalformedWebhook, compile_source, read_verified
from gateway.translate import Translation, translate

MAX_TEXT = 100_000
"""Characters of a mapping that is tried."""
FILE = "mapping.yaml"
_ENCODE = msgspec.json.Encoder(decimal_format="number").encode
_PRETENDED = Visitor({"": ProductIds("visitor-of-the-playground", "session-of-the-playground")}, linked_by="user")


class Mistake(Struct, frozen=True):
    """What `gateway check` says of a line. `text` is the line; `here` are the blanks before the place."""

    line: int
    column: int
    message: str
    hint: str | None
    text: str
    here: str


class Sent(Struct, frozen=True):
    """What one destination would get of one event: a request, or why none."""

    destination: str
    on: bool
    event: str
    request: str | None
    skipped: str | None


class Tried(Struct, frozen=True):
    """What came of it. `notes` are rules that skipped or failed; `refused` is why the request is no webhook."""

    mistakes: tuple[Mistake, ...] = ()
    usable: bool = False
    refused: str | None = None
    type: str = ""
    events: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    sent: tuple[Sent, ...] = ()


def mapping_text(folder: Path, source: str) -> str:
    """Return the file of a source as it is now; empty when there is none that can be read."""
    for file in yaml_files(folder / "sources"):
        try:
            document, _ = read_document(file)
        except MappingErrors:
            continue
        if isinstance(document.data, dict) and document.data.get("source") == source:
            return file.read_text()
    return ""


def tried(
    text: str, headers: Mapping[str, str], body: bytes, mappings: Mappings, folder: Path, *, linked: bool
) -> Tried:
    """Apply a mapping to a request. With `linked` its events have a visitor, as if a browser had been linked."""
    if len(text) > MAX_TEXT:
        return Tried(mistakes=(Mistake(1, 1, f"longer than {MAX_TEXT:,} characters", None, "", ""),))
    found = _mistakes(text, folder)
    try:
        source = compile_source(parse(text, FILE), "edited", lambda _: None)
    except MappingErrors:
        return Tried(mistakes=found)
    try:
        webhook = read_verified(headers, body, source, 0)
    except MalformedWebhook as error:
        return Tried(mistakes=found, usable=True, refused=str(error))
    translation = translate(webhook, source, mappings.profiles, lambda _name, _value: b"")
    guard = guard_of(webhook, source)
    events = [_given(each.event, linked=linked) for each in translation.emissions]
    return Tried(
        mistakes=found,
        usable=True,
        type=webhook.type,
        events=tuple((each.name, _json(guarded(_builtins(shown(each)), guard))) for each in events),
        notes=tuple(_notes(translation)),
        sent=tuple(sent for each in events for sent in requests(each, mappings, guard)),
    )


def requests(event: Event, mappings: Mappings, guard: PiiGuard) -> Iterator[Sent]:
    """Yield what each destination would get of an event, its secrets masked; those that are on first."""
    for on, destinations in ((True, mappings.destinations), (False, mappings.off)):
        for destination in destinations.values():
            yield request_shown(event, destination, guard, on=on)


def request_shown(event: Event, destination: Destination, guard: PiiGuard, *, on: bool = True) -> Sent:
    """Return what a destination would get of an event, its secrets masked."""
    try:
        made = request_of(event, destination)
    except Unrenderable as error:
        return Sent(destination.name, on, event.name, None, str(error))
    if "skipped" in made:
        return Sent(destination.name, on, event.name, None, str(made["skipped"]))
    headers = made["headers"]
    assert isinstance(headers, dict)  # noqa: S101 -- as `request_of` says
    lines = [f"POST {made['url']}", *(f"{name}: {value}" for name, value in headers.items()), ""]
    body = bytes(made["body"]) if isinstance(made["body"], msgspec.Raw) else b""
    try:
        lines.append(_json(guarded(msgspec.json.decode(body), guard)))
    except (msgspec.DecodeError, UnicodeDecodeError):
        lines.append(str(guarded(body.decode("utf-8", "replace"), guard)))
    return Sent(destination.name, on, event.name, "\n".join(lines), None)


def _mistakes(text: str, folder: Path) -> tuple[Mistake, ...]:
    """Return what `gateway check` says of it, beside the samples of the folder."""
    lines = text.splitlines()
    with tempfile.TemporaryDirectory(prefix="gateway-playground-") as place:
        path = Path(place)
        (path / "sources").mkdir()
        file = path / "sources" / FILE
        file.write_text(text, errors="replace")
        if (folder / "samples").is_dir():
            (path / "samples").symlink_to((folder / "samples").resolve(), target_is_directory=True)
        found = [each for each in mistakes(path, lambda _: None) if each.file == str(file)]

    def told(line: int, column: int, message: str, hint: str | None) -> Mistake:
        whole = lines[line - 1] if 0 < line <= len(lines) else ""
        start = max(0, column - 80)
        shown = whole[start : start + 120].replace("\t", " ")
        return Mistake(line, column, message, hint, shown, " " * max(0, column - 1 - start))

    return tuple(told(each.line, each.column, each.message, each.hint) for each in found)


def _given(event: Event, *, linked: bool) -> Event:
    return structs.replace(event, visitor=_PRETENDED) if linked and event.visitor is None else event


def _notes(translation: Translation) -> Iterator[str]:
    for note in translation.notes:
        yield f"{note.rule or 'this type'}: {note.skip or 'failed'}{f', {note.error}' if note.error else ''}"


def _builtins(value: object) -> object:
    return msgspec.json.decode(_ENCODE(value))


def _json(value: object) -> str:
    return msgspec.json.format(_ENCODE(value), indent=2).decode()
