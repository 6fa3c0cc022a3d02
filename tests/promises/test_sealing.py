"""What is sealed opens only under its key and purpose; secrets never print."""

import base64
import copy
import json
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sealing import Sealer, SealError, Secret, load_or_create_key, parse_key

KEY = bytes(range(32))
SEALER = Sealer(KEY)


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_what_was_sealed_opens_to_the_same_bytes(plain: bytes, purpose: bytes) -> None:
    assert SEALER.open(SEALER.seal(plain, purpose), purpose) == plain


@given(st.binary(max_size=60), st.data())
def test_a_sealed_value_with_any_bit_flipped_is_refused(plain: bytes, data: st.DataObject) -> None:
    sealed = bytearray(SEALER.seal(plain, b"webhook"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(SealError):
        SEALER.open(bytes(sealed), b"webhook")


@given(st.binary(max_size=60), st.data())
def test_a_sealed_value_cut_short_is_refused(plain: bytes, data: st.DataObject) -> None:
    sealed = SEALER.seal(plain, b"webhook")

    with pytest.raises(SealError):
        SEALER.open(sealed[: data.draw(st.integers(0, len(sealed) - 1))], b"webhook")


def test_a_value_sealed_for_another_purpose_is_refused() -> None:
    with pytest.raises(SealError):
        SEALER.open(SEALER.seal(b"body", b"event"), b"webhook")


def test_another_key_is_refused_and_the_message_says_what_to_do() -> None:
    sealed = Sealer(bytes(32)).seal(b"body", b"webhook")

    with pytest.raises(SealError) as refusal:
        SEALER.open(sealed, b"webhook")

    assert str(refusal.value) == (
        "this webhook cannot be opened: it was sealed with another key or for another purpose, or was altered since. "
        "Start the gateway with the key that the store was written with."
    )


def test_an_unknown_version_says_that_a_newer_gateway_may_have_written_it() -> None:
    with pytest.raises(SealError) as refusal:
        SEALER.open(b"\x02" + SEALER.seal(b"body", b"event")[1:], b"event")

    assert str(refusal.value) == (
        "this event is not a sealed value of version 1: it was altered or cut short, or a newer gateway wrote it. "
        "Run that version, or restore the store from a backup."
    )


def test_sealing_twice_gives_different_bytes_and_shows_nothing_of_the_plain_ones() -> None:
    first, second = SEALER.seal(b"jane@example.com", b"webhook"), SEALER.seal(b"jane@example.com", b"webhook")

    assert first != second
    assert b"jane" not in first


def test_a_sealed_value_of_the_first_release_still_opens() -> None:
    sealed = base64.b64decode("AQABAgMEBQYHCAkKCwJyhRkO52riedCvbquHDIHNWY/OBuko0Frw7f9pK6A=")

    assert SEALER.open(sealed, b"webhook") == b'{"id": "evt_1"}'


def test_subject_keys_and_fingerprint_stay_what_the_first_release_stored() -> None:
    assert SEALER.subject_key("email", "jane@example.com").hex() == "398c24aab93a39efd81c4526ff84cfaa"
    assert SEALER.fingerprint().hex() == "835f692af0b166194fd142b50cc2d39c"


def test_a_subject_key_depends_on_key_kind_and_value() -> None:
    keys = {
        SEALER.subject_key("user", "42"),
        SEALER.subject_key("user", "43"),
        SEALER.subject_key("stripe_customer", "42"),
        Sealer(bytes(32)).subject_key("user", "42"),
    }

    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}


def test_a_kind_cannot_run_into_the_value() -> None:
    with pytest.raises(ValueError, match="cannot contain NUL"):
        SEALER.subject_key("user\0", "42")


def test_a_subject_with_a_lone_surrogate_has_a_key() -> None:
    assert SEALER.subject_key("user", "\ud800") != SEALER.subject_key("user", "\ud801")


def test_the_fingerprint_names_the_key_without_telling_it() -> None:
    assert SEALER.fingerprint() == Sealer(KEY).fingerprint() != Sealer(bytes(32)).fingerprint()
    assert SEALER.fingerprint() not in KEY


def test_a_master_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError) as refusal:
        Sealer(b"short")

    assert str(refusal.value) == (
        "the master key must be 32 bytes, not 5: make one with: openssl rand -base64 32 | tr '+/' '-_'"
    )


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_read_with_and_without_padding_and_around_white_space(key: bytes) -> None:
    text = base64.urlsafe_b64encode(key).decode()

    assert parse_key(text) == parse_key(text.rstrip("=")) == parse_key(f" {text}\n") == key
    assert parse_key(base64.b64encode(key).decode()) == key


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "0 characters"),
        ("c2hvcnQ", "7 characters"),
        ("A" * 44, "44 characters"),
        ("A" * 42 + "!", "characters outside that alphabet"),
        ("A" * 42 + "é", "characters outside that alphabet"),
        ("A" * 40 + "=AA", "characters outside that alphabet"),
    ],
)
def test_a_malformed_key_is_refused_with_the_command_that_makes_one(text: str, found: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_key(text)

    assert str(refusal.value) == (
        f"expected a key of 32 bytes as base64url (43 characters), got {found}; "
        "make one with: openssl rand -base64 32 | tr '+/' '-_'"
    )


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "gateway.key"

    key = load_or_create_key(path)

    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["gateway.key"]


def test_starters_that_race_end_up_with_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(load_or_create_key, [tmp_path / "gateway.key"] * 64))

    assert len(keys) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["gateway.key"]


def test_a_file_without_a_key_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    path.write_bytes(b"\xff not a key")

    with pytest.raises(ValueError, match=r"gateway\.key: expected a key of 32 bytes"):
        load_or_create_key(path)

    assert path.read_bytes() == b"\xff not a key"


class Holder(msgspec.Struct):
    secret: Secret


def test_a_secret_prints_as_stars_wherever_it_is_printed() -> None:
    secret = Secret("sk_live_1")

    printed = [str(secret), repr(secret), f"{secret}", f"{secret:>20}", "%s %r" % (secret, secret)]  # noqa: UP031

    assert printed == ["***", "***", "***", "***", "*** ***"]
    assert "sk_live_1" not in repr(Holder(secret))


def test_a_secret_can_be_neither_encoded_nor_pickled_nor_copied() -> None:
    secret = Secret("sk_live_1")

    for give_away in (msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins, json.dumps, pickle.dumps):
        for holder in (secret, [secret], {"key": secret}):
            with pytest.raises(TypeError):
                give_away(holder)
    with pytest.raises(TypeError, match="pass the Secret itself"):
        copy.copy(secret)


def test_a_secret_matches_itself_as_text_and_as_bytes_only() -> None:
    secret = Secret("gehéim")

    assert secret.matches("gehéim")
    assert secret.matches("gehéim".encode())
    assert not secret.matches("gehéi")
    assert not secret.matches("")
    assert not secret.matches("\ud800")


def test_secrets_compare_by_value_but_never_with_text() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a") != "a"


def test_an_empty_secret_is_false() -> None:
    assert Secret("a")
    assert not Secret("")
