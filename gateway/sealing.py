"""Encryption of what the store keeps, keyed hashes of subjects, and secrets that print as `***`.

One master key of 32 bytes gives, by HKDF-SHA256, a sub-key for each use, so that no use can be turned against another:

    sealing      AES-256-GCM over webhooks and events     purpose = associated data
    subjects     HMAC-SHA256 over what links point from   kind, NUL, value
    fingerprint  names the master key without telling it

A sealed value is `version (1 byte) | nonce (12 random bytes) | ciphertext and tag`. Random nonces are safe for some
four thousand million values a key (NIST SP 800-38D, 8.3); the version byte leaves room for another scheme.
"""

import base64
import binascii
import hashlib
import hmac
import os
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_BYTES = 32
_KEY_CHARACTERS = 43  # 32 bytes as base64, without the padding

_MAKE_A_KEY = "make one with: openssl rand -base64 32 | tr '+/' '-_'"


class SealError(Exception):
    """A sealed value cannot be opened; the message says why and what to do, and holds nothing of the value."""


class Secret:
    """Hold a secret that no print, log, copy or encoder can give away; only `reveal` does."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself, for the one place that needs it."""
        return self._value

    def matches(self, other: str | bytes) -> bool:
        """Tell whether `other` is this secret, in a time that depends on neither content nor length of the secret."""
        given = other if isinstance(other, bytes) else _encode(other)
        return hmac.compare_digest(hashlib.sha256(_encode(self._value)).digest(), hashlib.sha256(given).digest())

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, format_spec: str, /) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return self.matches(other._value) if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied: pass the Secret itself")


class Sealer:
    """Seal, open and hash under one master key; safe to share between threads."""

    __slots__ = ("_aead", "_fingerprint", "_inner", "_outer")

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != _KEY_BYTES:
            raise ValueError(f"the master key must be {_KEY_BYTES} bytes, not {len(master_key)}: {_MAKE_A_KEY}")
        self._aead = AESGCM(_derive(master_key, b"gateway sealing", 32))
        # The two halves of HMAC-SHA-256 (RFC 2104), with the key already in: copies are half the cost of `hmac.digest`,
        # and every webhook has some five subjects.
        subjects = _derive(master_key, b"gateway subjects", 32).ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in subjects))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in subjects))
        self._fingerprint = _derive(master_key, b"gateway fingerprint", 16)

    def seal(self, plain: bytes, purpose: bytes) -> bytes:
        """Return `plain` encrypted, 29 bytes longer; only the same key and the same `purpose` open it again."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._aead.encrypt(nonce, plain, purpose)

    def open(self, sealed: bytes, purpose: bytes) -> bytes:
        """Return what `seal` was given for this `purpose`.

        Raises SealError if the value was sealed with another key or for another purpose, or was altered since.
        """
        if sealed[:1] != _VERSION or len(sealed) < len(_VERSION) + _NONCE_BYTES + _TAG_BYTES:
            raise SealError(
                f"this {_name(purpose)} is not a sealed value of version 1: it was altered or cut short, or a newer "
                "gateway wrote it. Run that version, or restore the store from a backup."
            )
        try:
            return self._aead.decrypt(sealed[1:13], sealed[13:], purpose)
        except InvalidTag:
            pass
        raise SealError(
            f"this {_name(purpose)} cannot be opened: it was sealed with another key or for another purpose, or was "
            "altered since. Start the gateway with the key that the store was written with."
        )

    def subject_key(self, kind: str, value: str) -> bytes:
        """Return the 16 bytes under which links of this subject are kept; without the key they tell nothing of it.

        Takes `value` as it is: normalise it first (`identity.normalise_subject`).
        """
        if "\0" in kind:
            raise ValueError("the kind of a subject cannot contain NUL: it would run into the value")
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(_encode(f"{kind}\0{value}"))
        outer.update(inner.digest())
        return outer.digest()[:16]

    def fingerprint(self) -> bytes:
        """Return 16 bytes that identify the master key, so that a store can tell that it was written with another."""
        return self._fingerprint


def parse_key(text: str) -> bytes:
    """Return the 32 bytes of a master key written as base64url, with or without padding.

    The standard alphabet of base64 is taken too. Raises ValueError, which never repeats the text.
    """
    digits = text.strip().removesuffix("=")
    expected = f"expected a key of {_KEY_BYTES} bytes as base64url ({_KEY_CHARACTERS} characters)"
    if len(digits) != _KEY_CHARACTERS:
        raise ValueError(f"{expected}, got {len(digits)} characters; {_MAKE_A_KEY}")
    try:
        return base64.b64decode(digits.replace("-", "+").replace("_", "/") + "=", validate=True)
    except (binascii.Error, ValueError):
        pass
    raise ValueError(f"{expected}, got characters outside that alphabet; {_MAKE_A_KEY}")


def load_or_create_key(path: Path) -> bytes:
    """Return the master key in `path`; where there is none, one is made first, readable by its owner only.

    Starters that race end up with one key, and a crash never leaves half a key. Raises ValueError if the file holds
    no key (it is left as it is: what was sealed with a lost key is lost too), and OSError as the file system does.
    """
    if not path.exists():
        _create_key(path)
    try:
        return parse_key(path.read_bytes().decode("latin-1"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    _write_private(draft, base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)) + b"\n")
    try:
        os.link(draft, path)  # unlike rename, refuses to replace the key of whoever was first
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    _sync(path.parent)


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync(directory: Path) -> None:
    # Until the directory is on disk, a power cut can take the name away, and with it everything sealed meanwhile.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _derive(master_key: bytes, label: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=label).derive(master_key)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may carry lone surrogates; a comparison must not fail on them


def _name(purpose: bytes) -> str:
    return purpose.decode("ascii", "replace")
