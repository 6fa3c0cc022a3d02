"""Each profile hashes what its collector hashes, and no raw value passes the guard."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.identity import (
    PROFILES,
    PiiGuard,
    contains_pii,
    hash_identity,
    normalise_email,
    normalise_phone,
    normalise_subject,
)

HASHED = "ABCDEF0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789"
COMPOSED, DECOMPOSED = "Jos\u00e9", "Jose\u0301"

# profile, field, raw, country, what is hashed
VECTORS = [
    ("default", "email", " John.Doe+x@Gmail.com ", None, "john.doe+x@gmail.com"),
    ("default", "email", "\ufeffA@B.co\u3000", None, "a@b.co"),
    ("default", "email", "MÜLLER@Example.COM", None, "müller@example.com"),
    ("default", "email", "   ", None, None),
    ("default", "email", "n/a", None, None),
    ("default", "email", "@example.com", None, None),
    ("default", "phone", "+1 (555) 123-4567", None, "15551234567"),
    ("default", "phone", "(555) 123-4567", "US", "15551234567"),
    ("default", "phone", "(555) 123-4567", " us ", "15551234567"),
    ("default", "phone", "1-555-123-4567", "CA", "15551234567"),
    ("default", "phone", "+44 (0)20 7946 0958", None, "442079460958"),
    ("default", "phone", "+44 20 7946 0958", "US", "442079460958"),
    ("default", "phone", "020 7946 0958", "GB", "442079460958"),
    ("default", "phone", "0044 20 7946 0958", "DE", "442079460958"),
    ("default", "phone", "06 1234 5678", "IT", "390612345678"),
    ("default", "phone", "\uff0b\uff11 555 123 4567", None, "15551234567"),
    ("default", "phone", "+1 555 123 4567 ext. 5", None, "15551234567"),
    ("default", "phone", "(555) 123-4567", None, None),
    ("default", "phone", "(555) 123-4567", "ZZ", None),
    ("default", "phone", "(555) 123-4567", "United States", None),
    ("default", "phone", "123", "US", None),
    ("default", "phone", "0051374169", "BY", None),  # reads differently with +375 before it
    ("default", "phone", "ext. n/a", "US", None),
    ("default", "phone", "+" + "1" * 300, None, None),
    ("default", "first_name", " Mary Ann ", None, "mary ann"),
    ("default", "last_name", "O'Brien", None, "o'brien"),
    ("default", "city", "Paris", None, None),
    ("meta", "email", " Jane@Example.com", None, "jane@example.com"),
    ("meta", "phone", "+49 (0)30 901820", None, "4930901820"),
    ("meta", "first_name", " Anne-Marie ", None, "annemarie"),
    ("meta", "first_name", "Åsa", None, "åsa"),
    ("meta", "last_name", "O\u2019Brien, Jr.", None, "obrien jr"),
    ("meta", "last_name", "- . -", None, None),
    ("meta", "city", "St. John's  Wood", None, "stjohnswood"),
    ("meta", "state", " CA ", "US", "ca"),
    ("meta", "state", "Nova Scotia", "CA", "novascotia"),
    ("meta", "zip", "94103-1234", "US", "94103"),
    ("meta", "zip", "SW1A 1AA", "GB", "sw1a1aa"),
    ("meta", "country", " DE ", None, "de"),
    ("meta", "country", "Germany", None, None),
    ("tiktok", "email", " Jane@Example.com", None, "jane@example.com"),
    ("tiktok", "phone", "(555) 123-4567", "US", "+15551234567"),
    ("tiktok", "phone", "(555) 123-4567", None, None),
    ("tiktok", "first_name", " Mary-Ann ", None, "mary-ann"),
    ("google", "email", " John.Doe+x@Gmail.com ", None, "johndoe@gmail.com"),
    ("google", "email", "john.doe+x@googlemail.com", None, "johndoe@googlemail.com"),
    ("google", "email", "john.doe+x@example.com", None, "john.doe+x@example.com"),
    ("google", "email", "+x@gmail.com", None, None),
    ("google", "email", "cloudy.sanfrancisco+shopping@gmail.com", None, "cloudysanfrancisco@gmail.com"),
    ("google", "email", "user.name+NYC@Example.com", None, "user.name+nyc@example.com"),
    ("google", "email", " ada . l @ gmail.com", None, "adal@gmail.com"),
    ("google", "phone", "(800)555-0100", "US", "+18005550100"),
    ("google", "phone", "+44 (0)20 7946 0958", None, "+442079460958"),
    ("google", "last_name", " O'Brien ", None, "o'brien"),
    ("google", "city", "Paris", None, None),
    ("snap", "phone", "(555) 123-4567", "US", "15551234567"),
    ("snap", "last_name", "O'Brien", None, "obrien"),
    ("pinterest", "zip", "94103-1234", "US", "94103"),
    ("pinterest", "country", "us", None, "us"),
    ("layersync", "email", " John.Doe+x@Gmail.com ", None, "john.doe+x@gmail.com"),
    ("layersync", "email", "MÜLLER@Example.COM", None, "müller@example.com"),
    ("layersync", "email", "\u00a0a@b.co\u3000", None, "a@b.co"),
    ("layersync", "email", "\x1ca@b.co\x85", None, "\x1ca@b.co\x85"),
    ("layersync", "email", "n/a", None, "n/a"),
    ("layersync", "email", "", None, None),
    ("layersync", "phone", "+1 (555) 123-4567", "US", "15551234567"),
    ("layersync", "phone", "0044 20 7946 0958", "GB", "00442079460958"),
    ("layersync", "phone", "+44 (0)20 7946 0958", None, "4402079460958"),
    ("layersync", "phone", "5551234567", "US", "5551234567"),
    ("layersync", "phone", "\u0660\u0661\u0662\u0663", None, None),
    ("layersync", "phone", "ext. n/a", None, None),
    ("layersync", "first_name", COMPOSED, None, "jos\u00e9"),
    ("layersync", "first_name", DECOMPOSED, None, "jose\u0301"),
    ("layersync", "first_name", " Zürich ", None, "zürich"),
    ("layersync", "first_name", "\u0130stanbul", None, "i\u0307stanbul"),
    ("layersync", "last_name", "O'Brien", None, "o'brien"),
    ("layersync", "last_name", "van der Berg", None, "van der berg"),
]


@pytest.mark.parametrize(("profile", "field", "raw", "country", "normal"), VECTORS)
def test_a_profile_hashes_what_its_collector_hashes(
    profile: str, field: str, raw: str, country: str | None, normal: str | None
) -> None:
    expected = {} if normal is None else {field: hashlib.sha256(normal.encode()).hexdigest()}
    hashes = hash_identity({field: raw}, country, PROFILES[profile])
    if field != "country":
        hashes.pop("country", None)  # the one that a phone is read by

    assert hashes == expected


@pytest.mark.parametrize(
    ("field", "raw", "recorded"),
    [
        ("email", " John.Doe+x@Gmail.com ", "86500804d4aa2249bdf6687587eb061a86264d1e81d5a5c4750c88b2ec2d9093"),
        ("phone", "+1 (555) 123-4567", "d6736136ea896c1bfdc553e0e86e702c70d060d805696ca3e4e9e0961353860a"),
        ("phone", "0044 20 7946 0958", "6defaeb4edc8a39f558f59d8848bc1c4765e5ce060bb431793dc83932dbe4030"),
        ("phone", "+44 (0)20 7946 0958", "40f19965b0d0ebba641dbd9309c3ac18542d9ad976c47f8d35347daea67ee2c2"),
        ("phone", "5551234567", "3c95277da5fd0da6a1a44ee3fdf56d20af6c6d242695a40e18e6e90dc3c5872c"),
        ("first_name", COMPOSED, "d994e1d001886fe5b45b1267bd1fa2b752ac50742579bd3dad7b2a2aa0ed6866"),
        ("first_name", DECOMPOSED, "0c06649e61569bf7f121faa2a2cf294afb57f9e5f1b0a72424b80ca99419af67"),
        ("last_name", "O'Brien", "65b87174be3b1b122e2b0929f0b84888637d31a4a83bb96a860bcff411f5e668"),
        ("first_name", " Zürich ", "201f10d5d64518d86d2d3a47d28675d1c788762c5345df643dadec71d4e0a91e"),
        ("last_name", "van der Berg", "a6fe68a719fbd8e4466cb6992d9a64dd1f6837e26dfc5a024f1393f51d3737c0"),
        ("email", "MÜLLER@Example.COM", "39c030ac25030a19ba73533af6d5bad6de543475377193dd2589e3ed49f90d80"),
        ("email", "\u00a0a@b.co\u3000", "80305c9bb1bb2480e03894350e0a8a366dcbdeb302e69e0817aa0743abd77054"),
        ("email", "a" * 64, "a" * 64),
        (
            "email",
            "ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789",
            "abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789",
        ),
        ("first_name", "\u0130stanbul", "4a4df120f7d1f3c286f58651abfcec2aade892ace635f96f02b946c96e6e1f86"),
    ],
)
def test_layersync_hashes_are_those_its_own_sdk_sent(field: str, raw: str, recorded: str) -> None:
    assert hash_identity({field: raw}, None, PROFILES["layersync"]) == {field: recorded}


@pytest.mark.parametrize(
    ("field", "raw"), [("phone", "\u0660\u0661\u0662\u0663"), ("phone", "ext. n/a"), ("email", "")]
)
def test_layersync_gets_no_hash_of_nothing_as_its_sdk_sends_it(field: str, raw: str) -> None:
    assert hash_identity({field: raw}, None, PROFILES["layersync"]) == {}


@pytest.mark.parametrize(
    ("field", "raw", "published"),
    [
        ("email", "John_Smith@gmail.com", "62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f"),
        ("phone", "(650)555-1212", "e323ec626319ca94ee8bff2e4c87cf613be6ea19919ed1364124e16807ab3176"),
        ("first_name", "Mary", "6915771be1c5aa0c886870b6951b03d7eafc121fea0e80a5ea83beb7c449f4ec"),
        ("first_name", "\uc815", "8fa8cd9c440be61d0151429310034083132b35975c4bea67fdd74158eb51db14"),
        ("first_name", "Val\u00e9ry", "08e1996b5dd49e62a4b4c010d44e4345592a863bb9f8e3976219bac29417149c"),
    ],
)
def test_metas_hashes_are_those_its_page_has_as_examples(field: str, raw: str, published: str) -> None:
    assert hash_identity({field: raw}, "US", PROFILES["meta"])[field] == published


@pytest.mark.parametrize("profile", ["meta", "snap", "pinterest"])
def test_the_country_that_a_phone_is_read_by_is_hashed_as_well(profile: str) -> None:
    us = hashlib.sha256(b"us").hexdigest()

    assert hash_identity({"email": "a@b.co"}, " US ", PROFILES[profile])["country"] == us
    assert hash_identity({"country": "us"}, "DE", PROFILES[profile]) == {"country": us}


@pytest.mark.parametrize("profile", ["default", "tiktok", "google", "layersync"])
def test_other_profiles_hash_no_country(profile: str) -> None:
    assert hash_identity({"email": "a@b.co"}, "US", PROFILES[profile]).keys() == {"email"}


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_hashed_already_passes_in_lower_case(profile: str) -> None:
    raw = dict.fromkeys(PROFILES[profile].fields, HASHED)

    assert hash_identity(raw, "US", PROFILES[profile]) == dict.fromkeys(raw, HASHED.lower())


def test_only_64_ascii_hex_digits_are_taken_as_a_hash() -> None:
    hashes = hash_identity({"first_name": HASHED + "0", "last_name": "\uff11" * 64}, None, PROFILES["default"])

    assert hashes == {
        "first_name": hashlib.sha256((HASHED + "0").lower().encode()).hexdigest(),
        "last_name": hashlib.sha256(("\uff11" * 64).encode()).hexdigest(),
    }


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("value", ["", " \t\u3000", "\ud800@b.co", "a@b.co\udfff", "1" * 1001, "a@b.co" * 200])
def test_what_cannot_be_hashed_is_dropped(profile: str, value: str) -> None:
    assert hash_identity(dict.fromkeys(PROFILES[profile].fields, value), "US", PROFILES[profile]) == {}


def test_a_field_that_a_profile_does_not_know_is_dropped() -> None:
    assert hash_identity({"shoe_size": "42"}, None, PROFILES["meta"]) == {}


def test_fields_are_hashed_independently() -> None:
    raw = {"email": "a@b.co", "phone": "n/a", "first_name": " ", "last_name": "X"}

    assert hash_identity(raw, "US", PROFILES["default"]).keys() == {"email", "last_name"}


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=60)
@given(value=st.text(max_size=40) | st.text("aA.+@gmil 0'-\u0130\u03a3\u1e9e\u3000", max_size=12))
@example(value="\u0130@gmail.com")
def test_normalising_twice_changes_nothing_more(profile: str, value: str) -> None:
    for field, normalise in PROFILES[profile].fields.items():
        once = normalise(value, "US")
        if once and field != "phone":
            assert normalise(once, "US") == once


@given(st.text("+0123456789 ()-/", max_size=20), st.sampled_from(["US", "GB", "DE", "IT", "AR", "MX", "BR", None]))
@example("+44 (0)20 7946 0958", "US")
@example("06 1234 5678", "IT")
def test_a_normalised_phone_is_an_international_number_that_normalises_to_itself(
    value: str, country: str | None
) -> None:
    digits = normalise_phone(value, country)

    if digits:
        assert normalise_phone(f"+{digits}", None) == digits
        assert PROFILES["tiktok"].fields["phone"](value, country) == f"+{digits}"


@given(value=st.text(st.characters(), max_size=60), country=st.none() | st.text(max_size=3))
def test_no_text_makes_hashing_fail(value: str, country: str | None) -> None:
    for profile in PROFILES.values():
        for digest in hash_identity(dict.fromkeys(profile.fields, value), country, profile).values():
            assert len(digest) == 64
            assert digest != hashlib.sha256(b"").hexdigest()


def test_importing_identity_does_not_import_phonenumbers() -> None:
    code = "import sys, gateway.identity; sys.exit('phonenumbers' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Subjects


@pytest.mark.parametrize(
    ("kind", "value", "country", "expected"),
    [
        ("email", " Jane@Example.com ", None, "jane@example.com"),
        ("email", "none", None, None),
        ("phone", "(555) 123-4567", "US", "15551234567"),
        ("phone", "+1 555 123 4567", None, "15551234567"),
        ("phone", "555 123 4567", None, None),
        ("user", " User 42 ", None, "User 42"),
        ("stripe_customer", "cus_AbC", None, "cus_AbC"),
        ("user", " ", None, None),
        ("user", "\ud800", None, None),
        ("user", "x" * 1001, None, None),
    ],
)
def test_a_subject_is_looked_up_in_one_form(kind: str, value: str, country: str | None, expected: str | None) -> None:
    assert normalise_subject(kind, value, country) == expected


def test_the_public_normalisers_agree_with_the_default_profile() -> None:
    assert normalise_email(" A@b.CO ") == "a@b.co"
    assert normalise_phone("(555) 123-4567", "US") == "15551234567"


# The guard

JANE = {"email": "Jane.Doe+x@Example.com", "phone": "+1 (555) 123-4567", "first_name": "Jane", "last_name": "Doe"}


@pytest.mark.parametrize(
    ("text", "leaked"),
    [
        ("jane.doe+x@example.com", "email"),
        ("for <JANE.DOE+X@EXAMPLE.COM>", "email"),
        ("https://shop.example/?email=jane.doe%2Bx%40example.com&b=1", "email"),
        ("https://shop.example/?email=jane.doe+x%40example.com", "email"),
        ("+15551234567", "phone"),
        ("call 1-555-123-4567 now", "phone"),
        ("1.555.123.4567", "phone"),
        ("tel=%2B1%20555%20123%204567", "phone"),
        ("1 555\u2011123\u00a04567", "phone"),
        ("Jane Doe", "name"),
        ("Gift for JANE  DOE!", "name"),
        ("?name=Jane+Doe", "name"),
        ("?name=jane%20doe", "name"),
        (" jane ", "first_name"),
        ("DOE", "last_name"),
        ("Jane's blue dress", None),
        ("Mary-jane doe-eyed", "name"),
        ("Mary Janet Doer", None),
        ("janedoe", None),
        ("doe@example.com", None),
        ("1555123", None),
        ("15551234 order 567", None),
        ("", None),
        ("evt_1", None),
    ],
)
def test_the_guard_finds_raw_values_and_nothing_else(text: str, leaked: str | None) -> None:
    assert PiiGuard(JANE).leaks(text) == leaked
    assert contains_pii(text, JANE) == (leaked is not None)


@pytest.mark.parametrize(
    "raw", [{}, {"email": "", "phone": "", "first_name": " "}, {"email": "n/a", "phone": "123456"}]
)
def test_values_that_say_nothing_guard_nothing(raw: Mapping[str, str]) -> None:
    for text in ("", " ", "n/a", "123456", "Jane Doe"):
        assert PiiGuard(raw).leaks(text) is None


def test_a_national_number_is_found_with_its_country_code() -> None:
    assert PiiGuard({"phone": "07911 123456"}).leaks("+447911123456") == "phone"


def test_a_name_that_looks_like_a_pattern_is_taken_literally() -> None:
    assert PiiGuard({"first_name": "A.", "last_name": "(B"}).leaks("a. (b") == "name"
    assert PiiGuard({"first_name": "A.", "last_name": "(B"}).leaks("ax (b") is None


@given(st.text(max_size=80), st.text(max_size=20), st.text(max_size=20))
def test_the_guard_finds_the_values_wherever_they_stand(before: str, first: str, after: str) -> None:
    guard = PiiGuard(JANE | {"first_name": first})

    assert guard.leaks(f"{before}Jane.Doe+x@example.com{after}") == "email"
