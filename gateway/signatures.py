"""The ways in which senders sign their webhooks, as data.

A source's `verify:` block is a `VerifySpec`. Each scheme is one too: a preset, whose open fields the author may set.

    scheme             header                 what the sender proves
    stripe             Stripe-Signature       HMAC of `{timestamp}.{body}`, judged by Stripe's own library
    standard-webhooks  webhook-* or svix-*    HMAC of `{id}.{timestamp}.{body}`
    hmac               as the author says     HMAC of what `payload` says
    token              Authorization          that it knows the secret
    basic              Authorization          that it knows `user:password`

`compile_verification` turns a spec into a `Verification`, `verify` judges a request by it, and `sign` makes the headers
that `verify` accepts. Secrets are compared in constant time; work is bounded by the caller's limit on the body, by
4,096 characters a header and by 16 signatures a request.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.sealing import Secret

if TYPE_CHECKING:
    from stripe import WebhookSignature

Scheme = Literal["stripe", "hmac", "standard-webhooks", "token", "basic"]
Reason = Literal[
    "no_secret", "missing_signature", "repeated_header", "malformed_signature", "mismatch", "timestamp_out_of_tolerance"
]

_MAX_HEADER = 4096
_MAX_SIGNATURES = 16
_ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_SECONDS = re.compile(rb"[0-9]{1,15}")


class SignatureError(Exception):
    """A request does not prove that its source sent it.

    `reason` is stable and short, for metrics and for the answer; the message says what is wrong and what to do.
    Neither holds a secret, a signature or any of the body.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class VerifySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `verify:` block of a source, as its author writes it."""

    scheme: Scheme
    secrets: str = ""
    """Any of these is accepted, separated by commas: while a secret is rotated, there are two."""
    header: str | None = None
    """The header that carries the signature or the token."""
    signature: str = "{signature}"
    """Where the signature stands in that header: `sha256={signature}`, `ts={timestamp};h1={signature}`."""
    separator: str | None = None
    """What stands between several signatures in that header; a `signature` of several parts shows it by itself."""
    timestamp_header: str | None = None
    id_header: str | None = None
    payload: str = "{body}"
    """What is signed, of `{body}`, `{timestamp}`, `{id}` and `{url}`."""
    url: str | None = None
    """The URL as registered with the sender, for `{url}`: behind a proxy the request itself does not show it."""
    algorithm: str = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    """How the signature is written."""
    secret_encoding: Literal["utf-8", "base64", "hex"] | None = None
    """How the key is written in the secret; `utf-8` takes its characters as they are."""
    secret_prefix: str | None = None
    """What stands before the key in the secret and is no part of it; a secret without it is taken whole."""
    tolerance: int | None = None
    """How many seconds the signed timestamp may be away from now, before or after."""

    def __repr__(self) -> str:
        return f"VerifySpec(scheme={self.scheme!r}, header={self.header!r}, secrets=***)"


_PRESETS: Mapping[Scheme, VerifySpec] = {
    "stripe": VerifySpec(
        scheme="stripe",
        header="Stripe-Signature",
        signature="t={timestamp},v1={signature}",  # v0 is a test scheme: to take it would be a downgrade
        payload="{timestamp}.{body}",
        tolerance=300,
    ),
    "standard-webhooks": VerifySpec(
        scheme="standard-webhooks",
        header="webhook-signature",
        signature="v1,{signature}",
        separator=" ",
        timestamp_header="webhook-timestamp",
        id_header="webhook-id",
        payload="{id}.{timestamp}.{body}",
        encoding="base64",
        secret_encoding="base64",  # noqa: S106 -- the name of an encoding
        secret_prefix="whsec_",  # noqa: S106 -- the start of every such secret
        tolerance=300,
    ),
    "hmac": VerifySpec(scheme="hmac"),
    "token": VerifySpec(scheme="token", header="Authorization"),
    "basic": VerifySpec(scheme="basic", header="Authorization", signature="Basic {signature}"),
}

_OPEN_FIELDS: Mapping[Scheme, AbstractSet[str]] = {
    "stripe": {"tolerance"},
    "standard-webhooks": {"tolerance", "secret_encoding", "secret_prefix"},
    "hmac": set(VerifySpec.__struct_fields__) - {"scheme", "secrets"},
    "token": {"header", "signature"},
    "basic": {"header"},
}


class _Names(msgspec.Struct, frozen=True):
    """The headers that a scheme reads, in lower case."""

    signature: str
    timestamp: str | None
    id: str | None


class _Pattern(msgspec.Struct, frozen=True):
    """How the signature's header is put together: `prefix` and placeholder of each part, and what separates parts."""

    parts: tuple[tuple[bytes, str], ...]
    separator: bytes | None

    def pull(self, value: bytes) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {name: [] for _, name in self.parts}
        for piece in value.split(self.separator) if self.separator else (value,):
            part = piece.strip()
            for prefix, name in self.parts:
                if part.startswith(prefix) and len(part) > len(prefix):
                    found[name].append(part[len(prefix) :])
                    break
        return found

    def write(self, values: Mapping[str, bytes]) -> bytes:
        return (self.separator or b"").join(prefix + values[name] for prefix, name in self.parts)


class _Claim(msgspec.Struct, frozen=True):
    """What a request says of itself, before any of it is believed."""

    header: str
    signatures: Sequence[bytes]
    timestamp: bytes
    id: bytes


class _Key(msgspec.Struct, frozen=True):
    """What one secret is good for. Functions, so that nothing prints the secret."""

    accepts: Callable[[_Claim, bytes], bool]
    """Does one of the claim's signatures prove the body?"""
    prove: Callable[[_Claim, bytes], bytes]
    """The signature that a sender who knows the secret writes."""


class Verification(msgspec.Struct, frozen=True):
    """A checked spec, ready to verify with and to sign with; made by `compile_verification`."""

    scheme: Scheme
    tolerance: int | None
    """Seconds."""
    names: tuple[_Names, ...]
    """The first whose signature is present is read; the first of all is written."""
    pattern: _Pattern
    keys: tuple[_Key, ...]
    """One a secret, in the order of the spec; without any, nothing verifies."""


def compile_verification(spec: VerifySpec) -> Verification:
    """Return `spec` ready for use.

    A spec without a secret compiles, and then verifies nothing. Raises ValueError with one line for each mistake, which
    says what to write instead and never repeats a secret.
    """
    full = _with_preset(spec)
    secrets = [Secret(part.strip()) for part in spec.secrets.split(",") if part.strip()]
    if problems := [*_misplaced(spec), *_problems(full, secrets)]:
        raise ValueError("\n".join(problems))
    return Verification(
        scheme=full.scheme,
        tolerance=full.tolerance,
        names=_names(full),
        pattern=_pattern(full),
        keys=tuple(_key(full, secret) for secret in secrets),
    )


def verify(
    verification: Verification,
    headers: Mapping[str, str],
    body: bytes,
    now: float,
    repeated: AbstractSet[str] = frozenset(),
) -> int:
    """Check that the source signed this body, or raise; return which secret it signed with, counted from 0.

    Accepts any current secret. Does not check that the webhook is new: only the duplicate check knows. `headers` has
    names in lower case and values decoded as Latin-1, `repeated` the names that occurred more than once, `now` is in
    seconds since 1970. Raises SignatureError. Rules: Stripe, "Verify webhook signatures manually"; Standard Webhooks,
    "Verifying webhook authenticity"; for `hmac`, the page of the source's own provider.
    """
    if not verification.keys:
        raise _no_secret()
    claim = _claim(verification, headers, repeated)
    for index, key in enumerate(verification.keys):
        if key.accepts(claim, body):
            _judge_age(verification, claim, now)
            return index
    raise SignatureError(
        "mismatch",
        "none of the configured secrets made this signature: check that `secrets` holds the secret of this very "
        "endpoint, and that no proxy changes the body",
    )


def sign(verification: Verification, body: bytes, now: float, id: str = "") -> dict[str, str]:
    """Return the headers, names in lower case, with which `verify` accepts this body; made with the first secret.

    `now` is in seconds since 1970, `id` the webhook's where the scheme signs one. Raises SignatureError `no_secret`.
    """
    if not verification.keys:
        raise _no_secret()
    timestamp = b"%d" % now
    claim = _Claim(header="", signatures=(), timestamp=timestamp, id=id.encode())
    values = {"signature": verification.keys[0].prove(claim, body), "timestamp": timestamp, "id": claim.id}
    names = verification.names[0]
    written = {
        names.timestamp: timestamp,
        names.id: claim.id,
        names.signature: verification.pattern.write(values),
    }
    return {name: value.decode("latin-1") for name, value in written.items() if name}


# From a request to a claim


def _claim(verification: Verification, headers: Mapping[str, str], repeated: AbstractSet[str]) -> _Claim:
    names = next((names for names in verification.names if names.signature in headers), verification.names[0])
    for name in filter(None, (names.signature, names.timestamp, names.id)):
        _refuse_unreadable(name, headers, repeated)
    header = headers[names.signature]
    found = verification.pattern.pull(_raw(names.signature, header))
    signatures = found.pop("signature")
    # Of two timestamps or ids, which one was signed would be for the sender to choose.
    if not 0 < len(signatures) <= _MAX_SIGNATURES or any(len(values) != 1 for values in found.values()):
        raise _malformed(names.signature)
    timestamp = _raw(names.timestamp, headers[names.timestamp]) if names.timestamp else _only(found, "timestamp")
    id_ = _raw(names.id, headers[names.id]) if names.id else _only(found, "id")
    return _Claim(header, signatures, timestamp, id_)


def _only(found: Mapping[str, list[bytes]], name: str) -> bytes:
    return found[name][0] if name in found else b""


def _refuse_unreadable(name: str, headers: Mapping[str, str], repeated: AbstractSet[str]) -> None:
    if not headers.get(name):
        raise SignatureError(
            "missing_signature",
            f"the request has no `{name}` header: check that the sender signs its webhooks, and that no proxy removes "
            "the header",
        )
    if name in repeated:
        raise SignatureError(
            "repeated_header",
            f"the request has more than one `{name}` header, and which one counts is not defined: look for a proxy "
            "that adds one",
        )
    if len(headers[name]) > _MAX_HEADER:
        raise _malformed(name)


def _raw(name: str, value: str) -> bytes:
    raw = value.encode("latin-1", "ignore")
    if len(raw) != len(value):
        raise _malformed(name)
    return raw


def _malformed(header: str) -> SignatureError:
    return SignatureError(
        "malformed_signature",
        f"the `{header}` header is not of the form that this source expects: compare its `verify:` block with the "
        "sender's documentation",
    )


def _no_secret() -> SignatureError:
    return SignatureError(
        "no_secret",
        "no secret is set for this source, so nothing can be trusted: set what `secrets` in its `verify:` names "
        "(`gateway check` says which), and restart the gateway",
    )


def _judge_age(verification: Verification, claim: _Claim, now: float) -> None:
    if verification.tolerance is None:
        return
    if not _SECONDS.fullmatch(claim.timestamp):
        raise _malformed(verification.names[0].timestamp or verification.names[0].signature)
    age = now - int(claim.timestamp)
    if abs(age) > verification.tolerance:
        raise SignatureError(
            "timestamp_out_of_tolerance",
            f"signed {abs(age):.0f} s {'ago' if age > 0 else 'in the future'}, {verification.tolerance} s are allowed: "
            "check the clocks of both sides; an older webhook must be sent again by the sender",
        )


# What a secret proves


def _key(spec: VerifySpec, secret: Secret) -> _Key:
    match spec.scheme:
        case "token":
            return _shown_key(secret)
        case "basic":
            return _shown_key(Secret(base64.b64encode(secret.reveal().encode()).decode()))
        case "stripe":
            return _Key(_stripe_check(secret), _hmac_proof(spec, secret))
        case _:
            return _hmac_key(spec, secret)


def _shown_key(shown: Secret) -> _Key:
    return _Key(
        accepts=lambda claim, _body: any(shown.matches(signature) for signature in claim.signatures),
        prove=lambda _claim, _body: shown.reveal().encode(),
    )


def _hmac_key(spec: VerifySpec, secret: Secret) -> _Key:
    prove, any_case = _hmac_proof(spec, secret), spec.encoding == "hex"

    def accepts(claim: _Claim, body: bytes) -> bool:
        expected = prove(claim, body)
        return any(hmac.compare_digest(expected, s.lower() if any_case else s) for s in claim.signatures)

    return _Key(accepts, prove)


def _hmac_proof(spec: VerifySpec, secret: Secret) -> Callable[[_Claim, bytes], bytes]:
    key, parts, encode = _key_bytes(spec, secret), _template(spec), _ENCODERS[spec.encoding]

    def prove(claim: _Claim, body: bytes) -> bytes:
        values = {"{body}": body, "{timestamp}": claim.timestamp, "{id}": claim.id}
        signed = b"".join(part if isinstance(part, bytes) else values[part] for part in parts)
        return encode(hmac.digest(key, signed, spec.algorithm))

    return prove


def _stripe_check(secret: Secret) -> Callable[[_Claim, bytes], bool]:
    def accepts(claim: _Claim, body: bytes) -> bool:
        signature, error = _stripe()
        # The library signs text: a body that is not UTF-8 or a header that is not ASCII would raise, and Stripe sends
        # neither. Its tolerance reads the clock by itself, so the age is judged outside.
        if not claim.header.isascii():
            return False
        try:
            return bool(signature.verify_header(body, claim.header, secret.reveal(), tolerance=None))
        except (error, UnicodeDecodeError):
            return False

    return accepts


@cache
def _stripe() -> tuple["type[WebhookSignature]", type[Exception]]:
    # Takes 0.3 to 0.7 s, which a gateway without Stripe need not pay, nor anybody's start. By name, as the package
    # imports what it exports anew each time it is asked.
    from stripe import SignatureVerificationError, WebhookSignature  # noqa: PLC0415

    return WebhookSignature, SignatureVerificationError


def prepare(verifications: Iterable[Verification]) -> None:
    """Load what the first request would otherwise wait for, up to 0.7 s. Meant for a thread, beside the start."""
    if any(each.scheme == "stripe" and each.keys for each in verifications):
        _stripe()


_ENCODERS: Mapping[str, Callable[[bytes], bytes]] = {"hex": binascii.hexlify, "base64": base64.b64encode}


def _key_bytes(spec: VerifySpec, secret: Secret) -> bytes:
    text = secret.reveal().removeprefix(spec.secret_prefix or "")
    match spec.secret_encoding:
        case "base64":
            digits = text.rstrip("=")
            return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
        case "hex":
            return bytes.fromhex(text)
        case _:
            return text.encode()


# From a spec to its parts


def _with_preset(spec: VerifySpec) -> VerifySpec:
    return msgspec.structs.replace(_PRESETS[spec.scheme], **_written(spec))


def _written(spec: VerifySpec) -> dict[str, object]:
    plain = VerifySpec(scheme=spec.scheme)
    return {
        name: getattr(spec, name)
        for name in VerifySpec.__struct_fields__
        if getattr(spec, name) != getattr(plain, name)
    }


def _names(spec: VerifySpec) -> tuple[_Names, ...]:
    names = _Names(_lower(spec.header) or "", _lower(spec.timestamp_header), _lower(spec.id_header))
    if spec.scheme != "standard-webhooks":
        return (names,)
    return names, _Names("svix-signature", "svix-timestamp", "svix-id")


def _lower(header: str | None) -> str | None:
    return header.lower() if header else None


def _pattern(spec: VerifySpec) -> _Pattern:
    parts = (_PLACEHOLDER.split(part) for part in _pattern_parts(spec))
    return _Pattern(
        parts=tuple((prefix.encode(), name) for prefix, name, _ in parts),
        separator=(_separator(spec) or "").encode() or None,
    )


def _separator(spec: VerifySpec) -> str | None:
    between = re.search(r"\}([;, ])", spec.signature)
    return spec.separator or (between and between[1])


def _pattern_parts(spec: VerifySpec) -> list[str]:
    separator = _separator(spec)
    return [part.strip() for part in spec.signature.split(separator)] if separator else [spec.signature]


def _template(spec: VerifySpec) -> list[str | bytes]:
    url = (spec.url or "").encode()
    pieces = re.split(r"(\{\w+\})", spec.payload)
    return [
        url if piece == "{url}" else piece if piece.startswith("{") else piece.encode() for piece in pieces if piece
    ]


# What is wrong with a spec


def _misplaced(spec: VerifySpec) -> Iterator[str]:
    for name in sorted(_written(spec).keys() - _OPEN_FIELDS[spec.scheme] - {"scheme", "secrets"}):
        yield f"`{name}` is fixed by scheme `{spec.scheme}`: remove it, or describe all of it with `scheme: hmac`"


def _problems(spec: VerifySpec, secrets: Sequence[Secret]) -> Iterator[str]:
    if not spec.header:
        yield f"scheme `{spec.scheme}` needs the header that carries the signature, such as `header: X-Signature`"
    if spec.algorithm not in _ALGORITHMS:
        yield f"unknown algorithm `{spec.algorithm}`: write one of {', '.join(_ALGORITHMS)}"
    yield from _pattern_problems(spec)
    yield from _payload_problems(spec, secrets)
    yield from _timestamp_problems(spec)
    yield from _secret_problems(spec, secrets)


def _pattern_problems(spec: VerifySpec) -> Iterator[str]:
    parts = _pattern_parts(spec)
    names = _PLACEHOLDER.findall(spec.signature)
    if names.count("signature") != 1:
        yield f"`signature: {spec.signature}` must hold {{signature}} once, such as `sha256={{signature}}`"
    for name in sorted({*names} - {"signature", "timestamp", "id"}):
        yield f"`signature` knows {{signature}}, {{timestamp}} and {{id}}, not {{{name}}}: remove it"
    if any(not re.fullmatch(r"[^{}]*\{\w+\}", part) for part in parts):
        yield f"each part of `signature: {spec.signature}` must end in one placeholder, such as `h1={{signature}}`"
    elif len(parts) > 1 and any(part.startswith("{") for part in parts):
        yield f"each part of `signature: {spec.signature}` needs a name to tell it by, such as `h1={{signature}}`"


def _payload_problems(spec: VerifySpec, secrets: Sequence[Secret]) -> Iterator[str]:
    names = _PLACEHOLDER.findall(spec.payload)
    if names.count("body") != 1:
        yield f"`payload: {spec.payload}` must hold {{body}} once: what is not signed cannot be trusted"
    for name in sorted({*names} - {"body", "timestamp", "id", "url"}):
        yield f"`payload` knows {{body}}, {{timestamp}}, {{id}} and {{url}}, not {{{name}}}: remove it"
    if set(_PLACEHOLDER.sub("", spec.payload)) & {"{", "}"}:
        yield f"`payload: {spec.payload}` has a brace that belongs to no placeholder: remove it"
    if "id" in names and not _sent(spec, "id", spec.id_header):
        yield "`payload` signs {id}: say which header carries it, such as `id_header: X-Webhook-Id`"
    if "url" in names and (spec.url is None or (secrets and not spec.url)):
        yield "`payload` signs {url}: write the URL that is registered with the sender as `url`"


def _timestamp_problems(spec: VerifySpec) -> Iterator[str]:
    signed = "{timestamp}" in spec.payload
    if signed and not _sent(spec, "timestamp", spec.timestamp_header):
        yield "`payload` signs {timestamp}: say which header carries it, such as `timestamp_header: X-Timestamp`"
    if spec.tolerance is not None and not signed:
        yield "`tolerance` needs a signed timestamp: put {timestamp} into `payload`, or remove `tolerance`"
    if spec.tolerance is not None and spec.tolerance <= 0:
        yield f"`tolerance: {spec.tolerance}` must be seconds above 0; without it, the scheme's own holds"
    for name, header in (("timestamp", spec.timestamp_header), ("id", spec.id_header)):
        if header and f"{{{name}}}" in spec.signature:
            yield f"`{name}_header` and {{{name}}} in `signature` both give the {name}: remove one"


def _sent(spec: VerifySpec, name: str, header: str | None) -> bool:
    return bool(header) or f"{{{name}}}" in spec.signature


def _secret_problems(spec: VerifySpec, secrets: Sequence[Secret]) -> Iterator[str]:
    for position, secret in enumerate(secrets, 1):
        if spec.scheme == "basic" and ":" not in secret.reveal():
            yield f"secret {position} of `secrets` must be written `user:password` for scheme `basic`"
        try:
            usable = bool(_key_bytes(spec, secret))
        except ValueError:
            usable = False
        if not usable:
            written = spec.secret_encoding or "usable"
            yield f"secret {position} of `secrets` is no {written} key: copy it again from the sender"
