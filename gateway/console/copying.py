"""A stored webhook as a test of its mapping: the request without its person, and what the mapping makes of it."""

import re
from collections.abc import Mapping
from io import StringIO

import msgspec
from ruamel.yaml import YAML

from gateway.dry_run import shown
from gateway.identity import PiiGuard
from gateway.intake import KeptRequest
from gateway.mappings import Mappings
from gateway.masking import FOLD, MASK, Folded, guard_of, masked_headers
from gateway.sources import MalformedWebhook, Source, read_verified
from gateway.translate import Translation, translate

_ENCODE = msgspec.json.Encoder(decimal_format="number").encode


def as_test(name: str, kept: KeptRequest, source: Source, mappings: Mappings, now: int) -> str:
    """Return a file for `mappings/tests/<source>/`, which `gateway test` passes under the mapping in force.

    Raises `MalformedWebhook` when the request is none that the mapping reads.
    """
    webhook = read_verified(kept.headers, kept.body, source, now)
    guard = guard_of(webhook, source)
    folded = Folded(guard)
    document = msgspec.json.decode(kept.body)
    payload = _Invented(_words(source)).payload(document, _without_folds(folded.masked(document)))
    headers = _headers(kept.headers, guard)
    test: dict[str, object] = {"name": name, "payload": payload}
    if headers:
        test["headers"] = headers
    try:
        masked = read_verified(headers, msgspec.json.encode(payload), source, now)
    except MalformedWebhook as error:
        raise MalformedWebhook(f"without what is private it is no webhook any more: {error}") from None
    translation = translate(masked, source, mappings.profiles, lambda _name, _value: b"")
    test |= _expected(translation)
    remarks = ["# What is private was replaced, and what is expected is what the mapping makes of the rest: check it."]
    if folded.hidden:
        remarks.append(f"# {folded.hidden:,} entries of the payload were left out.")
    written = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 110
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump({"tests": [test]}, written)
    return "\n".join([*remarks, written.getvalue()])


def _expected(translation: Translation) -> dict[str, object]:
    events = [_event(shown(each.event)) for each in translation.emissions]
    expected: dict[str, object] = {"expect": events}
    if any(note.error and not note.skip for note in translation.notes):
        expected["skips"] = [
            {"rule": note.rule, "reason": "error"} if note.rule else {"reason": "error"}
            for note in translation.notes
            if note.error and not note.skip
        ]
    if translation.request is not None:
        expected["privacy"] = [translation.request.kind]
    return expected


def _event(event: Mapping[str, object]) -> dict[str, object]:
    told: dict[str, object] = msgspec.json.decode(_ENCODE({name: event[name] for name in ("name", "properties")}))
    return told


def _headers(headers: Mapping[str, str], guard: PiiGuard) -> dict[str, str]:
    shown = masked_headers(dict(headers), guard)
    unneeded = {"content-length", "content-type"}
    return {name.lower(): value for name, value in shown.items() if value != MASK and name.lower() not in unneeded}


_MONEY = re.compile(r"amount|tax|total|price|cost|fee|discount|value")
_AMOUNT = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,4})?")
_PHONE = re.compile(r"\+?[0-9][0-9 ()./\-]{5,20}[0-9]")
_COUNTRY = re.compile(r"[A-Z]{2}")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{2,}")


def _words(source: Source) -> frozenset[str]:
    """Return the words that a mapping compares with: they are its own, and nobody's."""
    return frozenset(_WORD.findall(msgspec.json.encode(source.spec.rules).decode()))


class _Invented:
    """Puts something in the place of each text that is masked: the same for the same, and of the same kind."""

    def __init__(self, words: frozenset[str]) -> None:
        self._words = words
        self._known: dict[str, str] = {}

    def payload(self, document: object, masked: object, name: str = "") -> object:
        """Return what is masked with inventions in it, and with what needs no mask as it was."""
        if isinstance(document, dict) and isinstance(masked, dict):
            return {key: self.payload(document.get(key), each, key) for key, each in masked.items()}
        if isinstance(document, list) and isinstance(masked, list):
            return [self.payload(one, each, name) for one, each in zip(document, masked, strict=False)]
        if masked != MASK or isinstance(document, bool | dict | list):
            return masked
        return document if self._is_nobodys(document, name) else self._invented(document)

    def _is_nobodys(self, value: object, name: str) -> bool:
        """Tell what was masked by mistake: amounts, as `amount_tax` is no tax number, and words of the mapping."""
        is_amount = _MONEY.search(name.lower()) and _AMOUNT.fullmatch(str(value))
        is_country = "country" in name.lower() and _COUNTRY.fullmatch(str(value))
        return bool(is_amount or is_country) or value in self._words

    def _invented(self, value: object) -> object:
        text = str(value).strip().lower()
        number = len(self._known) + 1
        if "@" in text:
            kind = f"person-{number}@example.com"
        elif _PHONE.fullmatch(text):
            kind = f"+1202555{number:04}"
        else:
            kind = f"Private {number}"
        known = self._known.setdefault(text, kind)
        return known if isinstance(value, str) else number


def _without_folds(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_folds(each) for key, each in value.items() if key != FOLD}
    if isinstance(value, list):
        return [_without_folds(each) for each in value if not (isinstance(each, str) and each.startswith(FOLD))]
    return None if value == FOLD else value
