"""Normalise and hash what identifies a person, and find it where it must not be.

A collector matches people by the SHA-256 of a normalised value, and each normalises in its own way: a `Profile` is one
collector's way, a function a field. A new field is a new entry; a field that a profile does not know is dropped, never
sent as it is. What is dropped rather than hashed: a value that normalises to nothing, that is longer than 1,000
characters, or that is not valid Unicode.

`trim` is JavaScript's everywhere, because a browser hashes the other half of each match.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import unquote, unquote_plus

import msgspec

Normaliser = Callable[[str, str | None], str | None]
"""From a value and the payload's country (ISO 3166-1 alpha-2) to what is hashed; None if nothing is left."""

_MAX_CHARACTERS = 1000
_HASHED = re.compile(r"[0-9a-fA-F]{64}")
_NOT_DIGITS = re.compile(r"[^0-9]")
_SPACES = re.compile(r"\s+")
_JAVASCRIPT_SPACE = (
    "\t\n\v\f\r \N{NO-BREAK SPACE}\N{OGHAM SPACE MARK}\N{EN QUAD}\N{EM QUAD}\N{EN SPACE}\N{EM SPACE}"
    "\N{THREE-PER-EM SPACE}\N{FOUR-PER-EM SPACE}\N{SIX-PER-EM SPACE}\N{FIGURE SPACE}\N{PUNCTUATION SPACE}"
    "\N{THIN SPACE}\N{HAIR SPACE}\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}\N{NARROW NO-BREAK SPACE}"
    "\N{MEDIUM MATHEMATICAL SPACE}\N{IDEOGRAPHIC SPACE}\N{ZERO WIDTH NO-BREAK SPACE}"
)


class Profile(msgspec.Struct, frozen=True):
    """How one family of collectors normalises each field that it takes."""

    name: str
    fields: Mapping[str, Normaliser]


def normalise_email(value: str) -> str | None:
    """Return the address trimmed and in lower case; None if it has no text on both sides of an `@`."""
    address = _trim(value).lower()
    local, _, domain = address.rpartition("@")
    return address if local and domain else None


def normalise_phone(value: str, country: str | None) -> str | None:
    """Return the number's E.164 digits, without `+`; None if that is not certain.

    A number that starts with `+` stands for itself; any other is read as dialled in `country` (ISO 3166-1 alpha-2), and
    dropped if there is none. Only the length is checked, since new number ranges open before the tables know.
    """
    e164 = _e164(value, _region(country))
    return e164[1:] if e164 else None


def normalise_subject(kind: str, value: str, country: str | None = None) -> str | None:
    """Return the form in which a subject is looked up: emails and phones by the default profile, the rest trimmed.

    None means that this value links nothing: it is empty, too long, or not what its kind says.
    """
    if not _is_usable(value):
        return None
    if kind == "email":
        return normalise_email(value)
    if kind == "phone":
        return normalise_phone(value, country)
    return _trim(value) or None


def hash_identity(raw: Mapping[str, str], country: str | None, profile: Profile) -> dict[str, str]:
    """Return SHA-256 in lower-case hex for each field that `profile` takes and that normalises to something.

    A value of exactly 64 hex digits is taken as hashed already, and only lower-cased. `country` (ISO 3166-1 alpha-2)
    tells how national phone numbers and postal codes are written.
    """
    if country and "country" not in raw:  # who reads the payload sets it apart, but some profiles hash it as well
        raw = {**raw, "country": country}
    hashed = (
        (field, _hash(raw[field], country, normalise)) for field, normalise in profile.fields.items() if field in raw
    )
    return {field: digest for field, digest in hashed if digest}


def contains_pii(value: str, raw: Mapping[str, str]) -> bool:
    """Tell whether `value` gives away the email, phone or name in `raw`; see `PiiGuard`."""
    return PiiGuard(raw).leaks(value) is not None


class PiiGuard:
    """Find one person's raw values in texts that go out. Build one a webhook, then ask it for each text.

    Found are the email anywhere, in any case and also percent-encoded; the phone's digits from seven on, whatever
    separates them; the full name, as words; a lone first or last name only where it is the whole text, because names
    are words too. Not found: a phone written with another country prefix than the payload's, and names in other order.
    """

    __slots__ = ("_email", "_full_name", "_names", "_phone")

    def __init__(self, raw: Mapping[str, str]) -> None:
        email = normalise_email(raw.get("email", ""))
        self._email = email
        digits = _NOT_DIGITS.sub("", raw.get("phone", "")).lstrip("0")  # dialling prefixes are not part of the number
        self._phone = digits if len(digits) >= 7 else None
        names = {field: _words(raw.get(field, "")) for field in ("first_name", "last_name")}
        # A longer one is no name, and to look for it would take time that grows with both texts.
        usable = {field: name if len(name) <= _LONGEST_NAME else "" for field, name in names.items()}
        self._names = {name: field for field, name in usable.items() if name}
        self._full_name = " ".join(usable.values()) if all(usable.values()) else None

    def leaks_any(self, texts: Sequence[str]) -> str | None:
        """Return what any of the texts gives away, as `leaks` does of one; they are searched as one text first."""
        joined = "\0".join(texts)  # NUL is neither space nor separator: nothing is found across two texts
        whole = self._leaks(joined) if "%" not in joined and "+" not in joined else "perhaps"
        if whole is None and self._names.keys().isdisjoint(map(str.lower, texts)):
            return None
        return next((leak for text in texts if (leak := self.leaks(text))), None)

    def leaks(self, text: str) -> str | None:
        """Return what `text` gives away: `email`, `phone`, `name`, `first_name` or `last_name`; None if nothing."""
        found = self._leaks(text)
        if found is None and ("%" in text or "+" in text):
            found = self._leaks(unquote(text)) or self._leaks(unquote_plus(text))
        return found

    def _leaks(self, text: str) -> str | None:
        lower = text.lower()
        if self._email and self._email in lower:
            return "email"
        if self._phone and self._phone in _SEPARATORS.sub("", lower):
            return "phone"
        if not self._names:
            return None
        words = _words(lower)
        return "name" if self._full_name and _stands_in(self._full_name, words) else self._names.get(words)


_LONGEST_NAME = 100
_SEPARATORS = re.compile(r"[\s().+/\-\u2010-\u2015]+")


def _stands_in(name: str, text: str) -> bool:
    """Tell whether `name` is in `text` as words."""
    # No pattern: to compile one for each person would cost more than the rest of the guard.
    start = text.find(name)
    while start >= 0:
        around = text[start - 1 : start] if start else "", text[start + len(name) : start + len(name) + 1]
        if not any(character.isalnum() or character == "_" for character in around):
            return True
        start = text.find(name, start + 1)
    return False


def _words(text: str) -> str:
    return _SPACES.sub(" ", _trim(text)).lower()


# What is hashed


def _hash(value: str, country: str | None, normalise: Normaliser) -> str | None:
    if not _is_usable(value):
        return None
    if len(value) == 64 and _HASHED.fullmatch(value):
        return value.lower()
    normal = normalise(value, country)
    return hashlib.sha256(normal.encode()).hexdigest() if normal else None


def _is_usable(value: str) -> bool:
    return len(value) <= _MAX_CHARACTERS and (value.isascii() or not _SURROGATE.search(value))


_SURROGATE = re.compile("[\ud800-\udfff]")


# How fields are normalised


def _trim(value: str) -> str:
    return value.strip(_JAVASCRIPT_SPACE)


def _lower(value: str, _country: str | None) -> str:
    return _trim(value).lower()


def _email(value: str, _country: str | None) -> str | None:
    return normalise_email(value)


def _google_email(value: str, _country: str | None) -> str | None:
    address = normalise_email(_SPACES.sub("", value))  # Google takes out the spaces within as well
    local, _, domain = (address or "").rpartition("@")
    if domain not in {"gmail.com", "googlemail.com"}:
        return address
    mailbox = local.partition("+")[0].replace(".", "")
    return f"{mailbox}@{domain}" if mailbox else None


def _plus_phone(value: str, country: str | None) -> str | None:
    return _e164(value, _region(country))


def _ascii_digits(value: str, _country: str | None) -> str:
    return _NOT_DIGITS.sub("", value)


def _name(value: str, _country: str | None) -> str:
    return _trim(_without_punctuation(value.lower()))


def _place(value: str, _country: str | None) -> str:
    return _SPACES.sub("", _name(value, None))


def _zip(value: str, country: str | None) -> str:
    code = _place(value, None)
    return code[:5] if _region(country) == "US" else code


def _country_code(value: str, _country: str | None) -> str | None:
    code = _trim(value).lower()
    return code if re.fullmatch("[a-z]{2}", code) else None


def _without_punctuation(value: str) -> str:
    return "".join(character for character in value if unicodedata.category(character)[0] not in "PS")


def _region(country: str | None) -> str | None:
    return _trim(country).upper() or None if country else None


@lru_cache(maxsize=8)  # reading a number takes some 25 microseconds, and a webhook asks once a profile
def _e164(value: str, region: str | None) -> str | None:
    e164 = _read_number(value, region)
    if e164 is None or e164[1:] == _NOT_DIGITS.sub("", value):
        return e164
    # A few numbers of unknown ranges read differently once their country is known: which is meant would be a guess.
    return e164 if _read_number(e164, None) == e164 else None


def _read_number(value: str, region: str | None) -> str | None:
    import phonenumbers  # noqa: PLC0415 -- takes 0.1 s, which a gateway without phone numbers need not pay

    try:
        number = phonenumbers.parse(value, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


# The profiles


def _profile(name: str, **fields: Normaliser) -> Profile:
    return Profile(name, MappingProxyType(fields))


def _matching_like_meta(name: str) -> Profile:
    return _profile(
        name,
        email=_email,
        phone=normalise_phone,
        first_name=_name,
        last_name=_name,
        city=_place,
        state=_place,
        zip=_zip,
        country=_country_code,
    )


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            _profile("default", email=_email, phone=normalise_phone, first_name=_lower, last_name=_lower),
            # Meta, by its page "Customer information parameters"
            _matching_like_meta("meta"),
            # TikTok, by its page "Events API: parameters"
            _profile("tiktok", email=_email, phone=_plus_phone, first_name=_lower, last_name=_lower),
            # Google, by its pages "Enhanced conversions" and "Format user data": city, state, zip and country are not
            # to be hashed
            _profile("google", email=_google_email, phone=_plus_phone, first_name=_lower, last_name=_lower),
            # Snap and Pinterest, by their pages "Conversions API", want what Meta wants
            _matching_like_meta("snap"),
            _matching_like_meta("pinterest"),
            # LayerSync, as its browser SDK was seen to do: no country code is added to a phone, and nothing is checked
            _profile("layersync", email=_lower, phone=_ascii_digits, first_name=_lower, last_name=_lower),
        )
    }
)
