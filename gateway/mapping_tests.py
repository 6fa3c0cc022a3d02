"""Tests that live beside a mapping: `tests/<source>/*.yaml` in its folder, run by `gateway test`.

A test is webhooks and what must come of them. They go through the real way in (`Intake`) to a store of their own, with
a clock that the test moves, so that holds, duplicates and links do what they do in a served gateway. Only the signature
is left out: the file's author has no secrets.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field, structs
from ruamel.yaml import YAML

from gateway.deliveries import Privacy, SkipReason, State, StoredDelivery
from gateway.destinations import Destination, Unrenderable, compile_destination
from gateway.documents import Diagnostic, Document, MappingErrors, duration, parse, shape, suggest, yaml_files
from gateway.dry_run import request_of, shown
from gateway.events import Event, ProductIds, Visitor, decode_event
from gateway.identity import normalise_subject
from gateway.intake import Intake
from gateway.links import seal_visitor
from gateway.mappings import Mappings, read_document, sample, sample_headers, samples
from gateway.sealing import Sealer
from gateway.sources import MalformedWebhook, Source
from gateway.store.sqlite import SqliteStore

NOW = 1_790_000_000_000
"""When the first webhook of every test arrives, in ms."""
_KEY = b"the tests of a mapping keep none"
_ANYWHERE = """
destination: test
enabled_by: []
endpoint: http://127.0.0.1/
event: {}
body: event
"""


class WebhookSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One webhook of a test: a sample of the source, or a payload, and how it differs; and what is fetched for it."""

    sample: str | None = None
    payload: object = None
    changes: object = field(default=None, name="with")
    headers: dict[str, str] = {}
    fetched: dict[str, object] = {}
    after: str | None = None


class LinkSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A link that is known before the first webhook arrives."""

    subjects: dict[str, str]
    visitor_id: str | None = None
    session_id: str | None = None
    ids: dict[str, ProductIds] = {}


class SkipSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """What must be recorded as skipped. `rule` may be left out.

    Besides the reasons of deliveries, `error` is a rule that failed, and `duplicate_webhook` a webhook that is the same
    as an earlier one of the test.
    """

    reason: Literal[SkipReason, "error", "duplicate_webhook"]
    rule: str | None = None


class TestSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `tests:`: one webhook, or several in `webhooks`, and all the events that must go out.

    With `destination`, `requests` are what it gets: `url`, `headers` and `body`, or `skipped` with the reason.
    `privacy` is what the webhooks ask about data.
    """

    name: str
    expect: list[dict[str, object]]
    sample: str | None = None
    payload: object = None
    changes: object = field(default=None, name="with")
    headers: dict[str, str] = {}
    fetched: dict[str, object] = {}
    webhooks: list[WebhookSpec] = []
    links: list[LinkSpec] = []
    skips: list[SkipSpec] = []
    exact: bool = False
    destination: str | None = None
    requests: list[dict[str, object]] = []
    privacy: list[Privacy] = []

    __test__ = False  # pytest collects what is called Test…


class TestsSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A file under `mappings/tests/<source>/`."""

    tests: list[TestSpec]

    __test__ = False


class MappingTest(Struct, frozen=True):
    """A test, and where it stands: `document` at `tests[index]`."""

    source: str
    spec: TestSpec
    document: Document
    index: int

    @property
    def name(self) -> str:
        """The test's name as `-k` sees it."""
        return f"{self.source}/{Path(self.document.file).name}: {self.spec.name}"


class Result(Struct, frozen=True):
    """What came of a test. `failures` is empty when all was as expected; `reached` are the rules that did something.

    `ran` is false for a test that cannot be run as it is written.
    """

    failures: tuple[Diagnostic, ...]
    events: tuple[dict[str, object], ...]
    reached: frozenset[str]
    ran: bool = True


def load_tests(folder: Path, mappings: Mappings, only: Path | None = None) -> list[MappingTest]:
    """Return the tests of a mappings folder in order of their files; `only` names one file or folder of them.

    Raises `MappingErrors` for every file that is none, and for tests of a source that the folder does not have.
    """
    found: list[MappingTest] = []
    diagnostics: list[Diagnostic] = []
    for place in sorted(each for each in (folder / "tests").glob("*") if each.is_dir()):
        for file in yaml_files(place):
            if only is not None and only.resolve() not in (file.resolve(), *file.resolve().parents):
                continue
            try:
                found += _read(file, place.name, mappings)
            except MappingErrors as errors:
                diagnostics += errors.diagnostics
    if diagnostics:
        raise MappingErrors(diagnostics)
    return found


def _read(file: Path, source: str, mappings: Mappings) -> Iterator[MappingTest]:
    document, _ = read_document(file)
    if source not in mappings.sources:
        hint = suggest(source, list(mappings.sources))
        raise MappingErrors([Diagnostic(str(file), 1, 1, f"there is no source `{source}` to test", hint)])
    for index, spec in enumerate(shape(document, TestsSpec).tests):
        yield MappingTest(source, spec, document, index)


async def run_test(test: MappingTest, mappings: Mappings, folder: Path) -> Result:
    """Put a test's webhooks through the mappings. `folder` is the mappings', for its samples."""
    with tempfile.TemporaryDirectory(prefix="gateway-test-") as place:
        run = _Run(test, mappings, folder, Path(place))
        try:
            return await run.outcome()
        except _TestError as error:
            where = test.document.diagnostic(("tests", test.index, *error.place), error.message, error.hint)
            return Result((where,), (), frozenset(), ran=False)
        finally:
            await run.store.close()


class _TestError(Exception):
    """The test cannot be run as it is written."""

    def __init__(self, message: str, place: tuple[str | int, ...] = (), hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.hint = hint


class _Run:
    """One test on its way: a store, a clock, and what each webhook left."""

    def __init__(self, test: MappingTest, mappings: Mappings, folder: Path, place: Path) -> None:
        self.test = test
        self.folder = folder
        self.now = NOW
        self.destinations = {**mappings.off, **mappings.destinations}
        self.source: Source = mappings.sources[test.source]
        self.sealer = Sealer(_KEY)
        self.store = SqliteStore.open(place / "gateway.db", self.sealer.fingerprint())
        inert = structs.replace(mappings, destinations={"test": _anywhere()}, off={})
        self.intake = Intake(
            self.store, self.sealer, lambda: inert, lambda: self.now, lambda _: None, forward_tests=True
        )

    async def outcome(self) -> Result:
        spec = self.test.spec
        for index, link in enumerate(spec.links):
            await self.link(link, index)
        numbers = [await self.receive(each, place) for each, place in list(_webhooks(spec))]
        events: list[dict[str, object]] = []
        sent: list[dict[str, object]] = []
        skips: list[tuple[str | None, str]] = [(None, "duplicate_webhook")] * (len(numbers) - len(set(numbers)))
        errors: list[str] = []
        reached: set[str] = set()
        for number in dict.fromkeys(numbers):
            stored = await self.store.webhook(number)
            assert stored is not None  # noqa: S101 -- it was just accepted
            idle = set()
            for note in msgspec.json.decode(stored.notes):
                rule, skip, error = note.get("rule"), note.get("skip"), note.get("error")
                skips.append((rule, skip or "error"))
                idle.add(rule)
                if error and not skip:
                    errors.append(f"rule `{rule or '*'}` failed: {error}")
            reached |= {rule.name for rule in self.source.rules_for(stored.type)} - idle
            for delivery in await self.store.deliveries(number):
                event = self.event(delivery)
                if delivery.state == State.SKIPPED:
                    skips.append((event.rule, delivery.reason or ""))
                else:
                    events.append(_plain(shown(event)))
                    sent += self.requested(event)
        failures = [
            *self.compare(spec.expect, events, "expect", "event"),
            *self.compare(spec.requests, sent, "requests", "request"),
            *self.missing(skips),
            *await self.asked(),
        ]
        if not any(each.reason == "error" for each in spec.skips):
            failures += [self.complain((), error) for error in errors]
        return Result(tuple(failures), tuple(events), frozenset(reached))

    def requested(self, event: Event) -> Iterator[dict[str, object]]:
        """Yield what the test's destination would get of an event."""
        name = self.test.spec.destination
        if name is None:
            return
        destination = self.destinations.get(name)
        if destination is None:
            raise _TestError(f"there is no destination `{name}`", ("destination",), suggest(name, self.destinations))
        try:
            yield _plain(request_of(event, destination))
        except Unrenderable as error:
            raise _TestError(str(error), ("destination",)) from None

    def event(self, delivery: StoredDelivery) -> Event:
        return decode_event(self.sealer.open(delivery.event, b"event"))

    async def link(self, spec: LinkSpec, index: int) -> None:
        ids = dict(spec.ids)
        if spec.visitor_id or spec.session_id:
            ids[""] = ProductIds(spec.visitor_id, spec.session_id)
        keys = []
        for name, value in spec.subjects.items():
            if name not in self.source.subject_names:
                hint = suggest(name, list(self.source.subject_names))
                raise _TestError(f"`{self.test.source}` has no subject `{name}`", ("links", index, "subjects"), hint)
            keys.append(self.sealer.subject_key(name, normalise_subject(name, value, None) or value))
        await self.store.link(seal_visitor(Visitor(ids), keys, self.now, self.sealer), self.now)

    async def receive(self, spec: WebhookSpec, place: tuple[str | int, ...]) -> int:
        """Take a webhook in; return the store's number for it."""
        if spec.after:
            try:
                self.now += duration(spec.after)
            except ValueError as error:
                raise _TestError(str(error), (*place, "after")) from None
        body, headers = self.request(spec, place)
        for name in spec.fetched:
            if name not in self.source.spec.fetch:
                hint = suggest(name, list(self.source.spec.fetch))
                raise _TestError(f"`{self.test.source}` fetches no `{name}`", (*place, "fetched"), hint)
        fetched = {name: msgspec.json.encode(each) for name, each in spec.fetched.items()}
        try:
            received = await self.intake.take(self.test.source, headers, body, fetched=fetched)
        except MalformedWebhook as error:
            raise _TestError(f"the webhook is refused as malformed: {error}", place) from None
        return received.receipt.webhook

    def request(self, spec: WebhookSpec, place: tuple[str | int, ...]) -> tuple[bytes, dict[str, str]]:
        source = self.test.source
        if (spec.sample is None) == (spec.payload is None):
            raise _TestError("a webhook is either a `sample` or a `payload`", place)
        name = spec.sample or ""
        payload = spec.payload
        if spec.sample is not None:
            body = sample(self.folder, source, spec.sample)
            if body is None:
                hint = suggest(spec.sample, samples(self.folder, source))
                raise _TestError(f"there is no sample `{spec.sample}` of {source}", (*place, "sample"), hint)
            try:
                payload = msgspec.json.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _TestError(f"the sample is no JSON: {error}", (*place, "sample")) from None
        body = msgspec.json.encode(merge_patch(payload, spec.changes) if spec.changes is not None else payload)
        try:
            headers = sample_headers(self.folder, source, name, body, self.now / 1000)
        except MappingErrors as errors:
            raise _TestError(f"the sample's headers cannot be read: {errors}", place) from None
        return body, headers | {name.lower(): value for name, value in spec.headers.items()}

    def compare(
        self, expected: Sequence[Mapping[str, object]], got: Sequence[Mapping[str, object]], key: str, what: str
    ) -> Iterator[Diagnostic]:
        for index, wanted in enumerate(expected):
            if index >= len(got):
                yield self.complain((key, index), f"expected the {what} {_brief(wanted)}, got none")
                continue
            for path, message in differences(wanted, got[index], exact=self.test.spec.exact):
                shown_path = ".".join(map(str, path)) or f"the {what}"
                yield self.complain((key, index, *path), f"{what} {index + 1}, {shown_path}: {message}")
        for each in got[len(expected) :]:
            by = f", made by the rule `{each['rule']}`" if "rule" in each else ""
            yield self.complain((key,), f"an {what} too many: {_brief(each)}{by}")

    async def asked(self) -> list[Diagnostic]:
        asked = ", ".join(each.request.kind for each in await self.store.asked()) or "nothing"
        wanted = ", ".join(self.test.spec.privacy) or "nothing"
        if asked == wanted:
            return []
        return [self.complain(("privacy",), f"expected {wanted} to be asked about data; asked was {asked}")]

    def missing(self, skips: Sequence[tuple[str | None, str]]) -> Iterator[Diagnostic]:
        left = list(skips)
        for index, wanted in enumerate(self.test.spec.skips):
            fits = [each for each in left if each[1] == wanted.reason and wanted.rule in (None, each[0])]
            if fits:
                left.remove(fits[0])
                continue
            there = ", ".join(sorted(f"{rule or '*'}: {reason}" for rule, reason in skips)) or "nothing"
            message = f"expected `{wanted.rule or '*'}` to be skipped as {wanted.reason}; skipped were: {there}"
            yield self.complain(("skips", index), message)

    def complain(self, place: tuple[str | int, ...], message: str) -> Diagnostic:
        return self.test.document.diagnostic(("tests", self.test.index, *place), message)


def _anywhere() -> Destination:
    """Return a destination that takes every event as it is: a test looks at events, not at what a collector gets."""
    return compile_destination(parse(_ANYWHERE, "test"), "", lambda _: None)


def _webhooks(spec: TestSpec) -> Iterator[tuple[WebhookSpec, tuple[str | int, ...]]]:
    one = (spec.sample, spec.payload, spec.changes) != (None, None, None) or bool(spec.headers or spec.fetched)
    if one and spec.webhooks:
        raise _TestError(
            "a test has either one webhook or `webhooks`: write each one's keys in its entry", ("webhooks",)
        )
    if not spec.webhooks:
        yield WebhookSpec(spec.sample, spec.payload, spec.changes, spec.headers, spec.fetched), ()
    for index, each in enumerate(spec.webhooks):
        yield each, ("webhooks", index)


def merge_patch(target: object, patch: object) -> object:
    """Return the target with a JSON merge patch applied (RFC 7396): null removes a key, lists are replaced whole."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


_ENCODER = msgspec.json.Encoder(decimal_format="number")
_DECODER = msgspec.json.Decoder(dict[str, object], float_hook=Decimal)


def _plain(event: Mapping[str, object]) -> dict[str, object]:
    """Return an event as data that YAML can say."""
    return _DECODER.decode(_ENCODER.encode(event))


def _brief(event: Mapping[str, object]) -> str:
    properties = event.get("properties")
    value = properties.get("value") if isinstance(properties, dict) else None
    return f"`{event.get('name') or event.get('url', '?')}`" + (f" of {value}" if value is not None else "")


def differences(
    wanted: object, found: object, path: tuple[str | int, ...] = (), *, exact: bool
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield where `found` is not what is wanted. What a map does not name may be there, unless `exact`."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name, value in wanted.items():
            if name in found:
                yield from differences(value, found[name], (*path, name), exact=exact)
            elif value is not None:
                yield (*path, name), f"expected {_text(value)}, got nothing"
        if exact:
            for name in found.keys() - wanted.keys():
                yield (*path, name), f"not expected, got {_text(found[name])}"
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(one, other, (*path, index), exact=exact)
    elif not _same(wanted, found):
        yield path, f"expected {_text(wanted)}, got {_text(found)}"


def _same(wanted: object, found: object) -> bool:
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found
    if isinstance(wanted, int | float) and isinstance(found, int | float | Decimal):
        try:
            return Decimal(str(wanted)) == Decimal(str(found))
        except InvalidOperation:
            return False
    return wanted == found


def _text(value: object) -> str:
    return _ENCODER.encode(value).decode()


def rewritten(tests: Sequence[tuple[MappingTest, Result]], text: str) -> str:
    """Return a file of tests with the expectations of these tests as they came out; all else stays as it is written.

    A test keeps looking at what it looked at: only an event that it did not expect is written out whole.
    """
    root = YAML(typ="safe", pure=True).compose(text)
    if root.flow_style or _value(root, "tests").flow_style:
        raise ValueError("its tests are written in {…} or […]: write them as blocks to have them rewritten")
    for test, result in sorted(tests, key=lambda each: each[0].index, reverse=True):
        known = test.spec.expect
        events = [
            _projected(known[index], event) if index < len(known) else _worth_writing(event)
            for index, event in enumerate(result.events)
        ]
        node = _value(root, "tests").value[test.index]
        key, value = next(pair for pair in node.value if pair[0].value == "expect")
        if node.flow_style:
            text = text[: value.start_mark.index] + _text(events) + text[value.end_mark.index :]
            continue
        # A block ends where the next one begins: what stands between them, comments too, is no part of it.
        written = text[value.start_mark.index : value.end_mark.index].splitlines(keepends=True)
        while len(written) > 1 and written[-1].lstrip()[:1] in {"", "#"}:
            written.pop()
        end = value.start_mark.index + len("".join(written).rstrip())
        text = text[: key.end_mark.index] + ":" + _block(events, key.start_mark.column + 2) + text[end:]
    parse(text, "the rewritten tests")  # better no file than a broken one
    return text


def _value(node: Any, name: str) -> Any:
    return next(value for key, value in node.value if key.value == name)


def _block(events: list[object], indent: int) -> str:
    """Return a list as YAML that stands below its key."""
    if not events:
        return " []"
    yaml = YAML()
    yaml.width = 110
    out = StringIO()
    yaml.dump(events, out)
    return "".join(f"\n{' ' * indent}{line}" for line in out.getvalue().splitlines())


def _worth_writing(event: Mapping[str, object]) -> object:
    return {name: _writable(event[name]) for name in ("name", "user_id", "subjects", "properties") if event.get(name)}


def _projected(wanted: object, found: object) -> object:
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {name: _projected(wanted[name], found[name]) for name in wanted if name in found}
    return _writable(found)


def _writable(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _writable(each) for name, each in value.items()}
    return [_writable(each) for each in value] if isinstance(value, list) else value
