"""Only what a configured secret signed is accepted; everything else costs bounded work and says why."""

import base64
import hashlib
import hmac
import subprocess
import sys
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.signatures import (
    SignatureError,
    Verification,
    VerifySpec,
    compile_verification,
    sign,
    verify,
)

NOW = 1_795_227_280
few = settings(max_examples=10)  # each law is tried on a dozen schemes
BODY = '{"id":"evt_1","name":"Zoë"}'.encode()
STRIPE_SECRET = "whsec_test_1"
STANDARD_KEY = bytes(range(24))
STANDARD_SECRET = "whsec_" + base64.b64encode(STANDARD_KEY).decode()

SHOPIFY = VerifySpec(scheme="hmac", secrets="shpss_1", header="X-Shopify-Hmac-Sha256", encoding="base64")
PADDLE = VerifySpec(
    scheme="hmac",
    secrets="pdl_1",
    header="Paddle-Signature",
    signature="ts={timestamp};h1={signature}",
    payload="{timestamp}:{body}",
    tolerance=5,
)
GITHUB = VerifySpec(scheme="hmac", secrets="hub_1", header="X-Hub-Signature-256", signature="sha256={signature}")
SQUARE = VerifySpec(
    scheme="hmac",
    secrets="square_1",
    header="x-square-hmacsha256-signature",
    encoding="base64",
    payload="{url}{body}",
    url="https://shop.example/webhooks/square",
)
SPECS: Mapping[str, VerifySpec] = {
    "stripe": VerifySpec(scheme="stripe", secrets=STRIPE_SECRET),
    "standard-webhooks": VerifySpec(scheme="standard-webhooks", secrets=STANDARD_SECRET),
    "token": VerifySpec(scheme="token", secrets="gehéim"),
    "bearer": VerifySpec(scheme="token", secrets="bearer_1", header="X-Auth", signature="Bearer {signature}"),
    "basic": VerifySpec(scheme="basic", secrets="user:pässword"),
    "shopify": SHOPIFY,
    "paddle": PADDLE,
    "lemon-squeezy": VerifySpec(scheme="hmac", secrets="lemon_1", header="X-Signature"),
    "woocommerce": VerifySpec(scheme="hmac", secrets="woo_1", header="X-WC-Webhook-Signature", encoding="base64"),
    "github": GITHUB,
    "square": SQUARE,
    "separate headers, hex secret": VerifySpec(
        scheme="hmac",
        secrets="00ff",
        secret_encoding="hex",
        header="X-Sig",
        timestamp_header="X-Time",
        id_header="X-Id",
        payload="{timestamp}|{id}|{body}",
        algorithm="sha512",
        tolerance=60,
    ),
}
VERIFICATIONS = {name: compile_verification(spec) for name, spec in SPECS.items()}
BODY_SIGNED = sorted(VERIFICATIONS.keys() - {"token", "bearer", "basic"})


def refusal(verification: Verification, headers: Mapping[str, str], body: bytes = BODY, now: float = NOW) -> str:
    with pytest.raises(SignatureError) as refused:
        verify(verification, headers, body, now)
    return refused.value.reason


def hex_hmac(secret: str, signed: bytes) -> str:
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def base64_hmac(secret: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


# Every scheme


@pytest.mark.parametrize("name", VERIFICATIONS)
@few
@given(text=st.text(max_size=60), message_id=st.from_regex(r"[a-z0-9_]{1,20}", fullmatch=True))
def test_what_is_signed_verifies(name: str, text: str, message_id: str) -> None:
    body = text.encode("utf-8", "replace")

    assert verify(VERIFICATIONS[name], sign(VERIFICATIONS[name], body, NOW, message_id), body, NOW) == 0


@pytest.mark.parametrize("name", BODY_SIGNED)
@few
@given(body=st.binary(min_size=1, max_size=60), data=st.data())
def test_a_body_with_any_bit_flipped_is_refused(name: str, body: bytes, data: st.DataObject) -> None:
    headers = sign(VERIFICATIONS[name], body, NOW, "msg_1")
    changed = bytearray(body)
    changed[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    assert refusal(VERIFICATIONS[name], headers, bytes(changed)) == "mismatch"


@pytest.mark.parametrize("name", sorted(VERIFICATIONS.keys() - {"stripe"}))
@few
@given(body=st.binary(max_size=60))
def test_a_body_that_is_not_utf8_is_signed_to_the_byte(name: str, body: bytes) -> None:
    assert verify(VERIFICATIONS[name], sign(VERIFICATIONS[name], body, NOW, "msg_1"), body, NOW) == 0


@pytest.mark.parametrize("name", VERIFICATIONS)
def test_another_secret_is_refused(name: str) -> None:
    spec = SPECS[name]
    other = {"hex": "aaaa", "base64": "AAAA"}.get(spec.secret_encoding or "", "AAAA:AAAA")
    if spec.scheme == "standard-webhooks":
        other = "AAAA"
    stranger = compile_verification(msgspec.structs.replace(spec, secrets=other))

    assert refusal(VERIFICATIONS[name], sign(stranger, BODY, NOW, "msg_1")) == "mismatch"


@pytest.mark.parametrize("name", VERIFICATIONS)
def test_each_secret_of_a_rotation_is_accepted_and_named_by_its_index(name: str) -> None:
    spec = SPECS[name]
    other = "aaaa" if spec.secret_encoding == "hex" else "AAAA" if spec.scheme == "standard-webhooks" else "AAAA:AAAA"
    both = compile_verification(msgspec.structs.replace(spec, secrets=f"{other}, {spec.secrets},"))

    assert verify(both, sign(VERIFICATIONS[name], BODY, NOW, "msg_1"), BODY, NOW) == 1
    assert verify(both, sign(both, BODY, NOW, "msg_1"), BODY, NOW) == 0


@pytest.mark.parametrize("name", VERIFICATIONS)
@pytest.mark.parametrize("secrets", ["", ",,", " , "])
def test_without_a_secret_nothing_is_accepted(name: str, secrets: str) -> None:
    bare = compile_verification(msgspec.structs.replace(SPECS[name], secrets=secrets))

    assert refusal(bare, sign(VERIFICATIONS[name], BODY, NOW, "msg_1")) == "no_secret"
    with pytest.raises(SignatureError) as refused:
        sign(bare, BODY, NOW)
    assert refused.value.reason == "no_secret"


@pytest.mark.parametrize("name", VERIFICATIONS)
def test_a_request_without_its_headers_is_refused(name: str) -> None:
    headers = sign(VERIFICATIONS[name], BODY, NOW, "msg_1")

    for missing in headers:
        assert refusal(VERIFICATIONS[name], headers | {missing: ""}) == "missing_signature"
        assert refusal(VERIFICATIONS[name], without(headers, missing)) == "missing_signature"


def without(headers: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


@pytest.mark.parametrize("name", VERIFICATIONS)
def test_a_repeated_header_is_refused_if_the_scheme_reads_it(name: str) -> None:
    headers = sign(VERIFICATIONS[name], BODY, NOW, "msg_1")

    assert verify(VERIFICATIONS[name], headers, BODY, NOW, frozenset({"x-forwarded-for"})) == 0
    for header in headers:
        with pytest.raises(SignatureError) as refused:
            verify(VERIFICATIONS[name], headers, BODY, NOW, frozenset({header}))
        assert refused.value.reason == "repeated_header"


@pytest.mark.parametrize("name", VERIFICATIONS)
def test_a_header_longer_than_4096_characters_is_refused(name: str) -> None:
    headers = sign(VERIFICATIONS[name], BODY, NOW, "msg_1")

    for header in headers:
        assert refusal(VERIFICATIONS[name], headers | {header: "a" * 4097}) == "malformed_signature"


@pytest.mark.parametrize("name", VERIFICATIONS)
@few
@given(junk=st.text(min_size=1, max_size=60) | st.text("tv10s=,;. {}ÿ\x00Bearic", min_size=1, max_size=60))
def test_junk_in_the_header_is_refused_and_never_fails_otherwise(name: str, junk: str) -> None:
    headers = sign(VERIFICATIONS[name], BODY, NOW, "msg_1")

    for header in headers:
        if header not in {"x-id", "webhook-id"}:
            assert refusal(VERIFICATIONS[name], headers | {header: junk}) in {
                "malformed_signature",
                "missing_signature",
                "mismatch",
            }


@pytest.mark.parametrize("name", VERIFICATIONS)
def test_no_message_tells_a_secret_a_signature_or_the_body(name: str) -> None:
    verification, headers = VERIFICATIONS[name], sign(VERIFICATIONS[name], BODY, NOW, "msg_1")
    private = {SPECS[name].secrets, SPECS[name].secrets.partition(":")[2] or "evt_1", *headers.values(), "evt_1"}
    changed = {key: value + "x" for key, value in headers.items()}
    unreadable = {key: value + "\u2603" for key, value in headers.items()}

    for sent, body in ((headers, b"evt_1"), (changed, BODY), (unreadable, BODY), ({}, BODY)):
        if sent is headers and name not in BODY_SIGNED:
            continue
        with pytest.raises(SignatureError) as refused:
            verify(verification, sent, body, NOW)
        assert not [text for text in private if text in str(refused.value)]
        assert refused.value.__context__ is None


def test_nothing_that_holds_a_secret_prints_it() -> None:
    for name, spec in SPECS.items():
        assert spec.secrets not in repr(spec)
        assert spec.secrets not in repr(VERIFICATIONS[name])


def test_refusals_say_what_is_wrong_and_what_to_do() -> None:
    verification = VERIFICATIONS["stripe"]
    headers = sign(verification, BODY, NOW)

    def message(*arguments: object, **options: object) -> str:
        with pytest.raises(SignatureError) as refused:
            verify(*arguments, **options)  # type: ignore[arg-type]
        return str(refused.value)

    assert message(compile_verification(VerifySpec(scheme="stripe")), headers, BODY, NOW) == (
        "no secret is set for this source, so nothing can be trusted: set what `secrets` in its `verify:` names "
        "(`gateway check` says which), and restart the gateway"
    )
    assert message(verification, {}, BODY, NOW) == (
        "the request has no `stripe-signature` header: check that the sender signs its webhooks, and that no proxy "
        "removes the header"
    )
    assert message(verification, headers, BODY, NOW, repeated={"stripe-signature"}) == (
        "the request has more than one `stripe-signature` header, and which one counts is not defined: look for a "
        "proxy that adds one"
    )
    assert message(verification, {"stripe-signature": "v0=1"}, BODY, NOW) == (
        "the `stripe-signature` header is not of the form that this source expects: compare its `verify:` block with "
        "the sender's documentation"
    )
    assert message(verification, headers, b"", NOW) == (
        "none of the configured secrets made this signature: check that `secrets` holds the secret of this very "
        "endpoint, and that no proxy changes the body"
    )
    assert message(verification, headers, BODY, NOW + 301) == (
        "signed 301 s ago, 300 s are allowed: check the clocks of both sides; an older webhook must be sent again by "
        "the sender"
    )
    assert message(verification, headers, BODY, NOW - 301) == (
        "signed 301 s in the future, 300 s are allowed: check the clocks of both sides; an older webhook must be sent "
        "again by the sender"
    )


# Stripe, by its page "Webhook signatures"


def stripe_v1(secret: str = STRIPE_SECRET, at: int = NOW, body: bytes = BODY) -> str:
    return hex_hmac(secret, b"%d.%s" % (at, body))


def stripe_says(header: str, now: float = NOW, body: bytes = BODY) -> int:
    return verify(VERIFICATIONS["stripe"], {"stripe-signature": header}, body, now)


def stripe_refuses(header: str, now: float = NOW, body: bytes = BODY) -> str:
    return refusal(VERIFICATIONS["stripe"], {"stripe-signature": header}, body, now)


def test_stripe_takes_its_signature() -> None:
    assert stripe_says(f"t={NOW},v1={stripe_v1()}") == 0


def test_stripe_takes_either_of_two_signatures_while_a_secret_is_rolled() -> None:
    assert stripe_says(f"t={NOW},v1={stripe_v1('whsec_new')},v1={stripe_v1()}") == 0
    assert stripe_says(f"t={NOW},v1={stripe_v1()},v1={stripe_v1('whsec_new')},v0=00") == 0


def test_stripe_ignores_v0() -> None:
    assert stripe_refuses(f"t={NOW},v0={stripe_v1()}") == "malformed_signature"
    assert stripe_refuses(f"t={NOW},v0={stripe_v1()},v1=00") == "mismatch"


@pytest.mark.parametrize("age", [-300, 0, 299.9, 300])
def test_stripe_takes_a_signature_up_to_300_seconds_old_or_early(age: float) -> None:
    assert stripe_says(f"t={NOW},v1={stripe_v1()}", now=NOW + age) == 0


@pytest.mark.parametrize("age", [-301, 301, 10**9])
def test_stripe_refuses_a_signature_of_another_time(age: int) -> None:
    assert stripe_refuses(f"t={NOW},v1={stripe_v1()}", now=NOW + age) == "timestamp_out_of_tolerance"


def test_stripe_signs_the_time_too() -> None:
    assert stripe_refuses(f"t={NOW + 1},v1={stripe_v1()}") == "mismatch"


@pytest.mark.parametrize(
    "header",
    ["t=", "v1=00", ",", "=", "t=1,t=2,v1=00", f"t={NOW},v1=", f"t={NOW}", f"v1={stripe_v1()}", f"T={NOW},V1=00"],
)
def test_stripe_refuses_a_header_without_one_time_and_a_signature(header: str) -> None:
    assert stripe_refuses(header) == "malformed_signature"


@pytest.mark.parametrize("time", ["x", "-1", "1.5", "1e9", "9" * 400, f"{NOW}=1", "1_0", "٣"])
def test_stripe_refuses_a_time_that_is_no_number(time: str) -> None:
    header = f"t={time},v1={hex_hmac(STRIPE_SECRET, time.encode() + b'.' + BODY)}"

    assert stripe_refuses(header) in {"malformed_signature", "mismatch", "timestamp_out_of_tolerance"}


@pytest.mark.parametrize("header", [f"t=+{NOW},v1={stripe_v1()}", f"t=1_795_227_280,v1={stripe_v1()}"])
def test_stripe_refuses_a_time_that_only_python_would_read(header: str) -> None:
    assert stripe_refuses(header) == "malformed_signature"


def test_stripe_refuses_signatures_that_are_not_ascii() -> None:
    assert stripe_refuses(f"t={NOW},v1=é") == "mismatch"


def test_stripe_refuses_a_body_that_is_not_utf8_even_if_signed() -> None:
    body = b'{"id":"\xff"}'

    assert stripe_refuses(f"t={NOW},v1={stripe_v1(body=body)}", body=body) == "mismatch"


def test_at_most_16_signatures_are_tried() -> None:
    many = ",v1=00" * 15

    assert stripe_says(f"t={NOW}{many},v1={stripe_v1()}") == 0
    assert stripe_refuses(f"t={NOW}{many},v1=00,v1={stripe_v1()}") == "malformed_signature"


def test_a_gateway_without_a_stripe_secret_does_not_import_stripe() -> None:
    code = (
        "import sys; from gateway.signatures import *;"
        "compile_verification(VerifySpec(scheme='stripe'));"
        "compile_verification(VerifySpec(scheme='token', secrets='a'));"
        "sys.exit('stripe' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The other senders


def test_shopify_signs_the_body_in_base64() -> None:
    header = base64_hmac(b"shpss_1", BODY)

    assert verify(VERIFICATIONS["shopify"], {"x-shopify-hmac-sha256": header}, BODY, NOW) == 0
    for other in (header.rstrip("="), header.swapcase(), hex_hmac("shpss_1", BODY)):
        assert refusal(VERIFICATIONS["shopify"], {"x-shopify-hmac-sha256": other}) == "mismatch"


def test_paddle_signs_time_and_body_and_may_sign_twice() -> None:
    good = hex_hmac("pdl_1", b"%d:%s" % (NOW, BODY))

    for header in (f"ts={NOW};h1={good}", f"ts={NOW};h1=00;h1={good}", f"h1={good}; ts={NOW}; h2=00"):
        assert verify(VERIFICATIONS["paddle"], {"paddle-signature": header}, BODY, NOW) == 0
    assert refusal(VERIFICATIONS["paddle"], {"paddle-signature": f"ts={NOW};h1={good}"}, now=NOW + 6) == (
        "timestamp_out_of_tolerance"
    )


def test_github_signs_in_hex_of_either_case_after_its_algorithm() -> None:
    good = hex_hmac("hub_1", BODY)

    for header in (f"sha256={good}", f"sha256={good.upper()}"):
        assert verify(VERIFICATIONS["github"], {"x-hub-signature-256": header}, BODY, NOW) == 0
    for header in (good, f"sha1={good}", "sha256="):
        assert refusal(VERIFICATIONS["github"], {"x-hub-signature-256": header}) == "malformed_signature"


def test_square_signs_its_url_and_the_body() -> None:
    header = base64_hmac(b"square_1", b"https://shop.example/webhooks/square" + BODY)

    assert verify(VERIFICATIONS["square"], {"x-square-hmacsha256-signature": header}, BODY, NOW) == 0


def test_an_unconfigured_square_compiles_and_a_configured_one_needs_its_url() -> None:
    compile_verification(msgspec.structs.replace(SQUARE, secrets="", url=""))

    assert mistakes(msgspec.structs.replace(SQUARE, url="")) == [
        "`payload` signs {url}: write the URL that is registered with the sender as `url`"
    ]


@pytest.mark.parametrize("family", ["webhook", "svix"])
def test_standard_webhooks_takes_any_of_its_signatures_under_both_names(family: str) -> None:
    good = base64_hmac(STANDARD_KEY, b"msg_1.%d.%s" % (NOW, BODY))
    headers = {
        f"{family}-id": "msg_1",
        f"{family}-timestamp": str(NOW),
        f"{family}-signature": f"v1,AAAA v1a,BBBB v1,{good}",
    }

    assert verify(VERIFICATIONS["standard-webhooks"], headers, BODY, NOW) == 0
    assert refusal(VERIFICATIONS["standard-webhooks"], headers | {f"{family}-id": "msg_2"}) == "mismatch"
    assert refusal(VERIFICATIONS["standard-webhooks"], headers, now=NOW + 301) == "timestamp_out_of_tolerance"
    assert refusal(VERIFICATIONS["standard-webhooks"], headers, now=NOW - 301) == "timestamp_out_of_tolerance"


def test_standard_webhooks_takes_the_example_of_its_own_libraries() -> None:
    """The vector of the Standard Webhooks reference libraries."""
    verification = compile_verification(
        VerifySpec(scheme="standard-webhooks", secrets="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    )
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }

    assert verify(verification, headers, b'{"test": 2432232314}', 1614265330) == 0


def test_standard_webhooks_does_not_mix_its_two_families() -> None:
    headers = sign(VERIFICATIONS["standard-webhooks"], BODY, NOW, "msg_1")
    headers["svix-timestamp"] = headers.pop("webhook-timestamp")

    assert refusal(VERIFICATIONS["standard-webhooks"], headers) == "missing_signature"


def test_standard_webhooks_takes_a_secret_in_plain_text_where_the_sender_uses_one() -> None:
    verification = compile_verification(
        VerifySpec(scheme="standard-webhooks", secrets="polar_whs_1", secret_encoding="utf-8")
    )
    header = "v1," + base64_hmac(b"polar_whs_1", b"msg_1.%d.%s" % (NOW, BODY))
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(NOW), "webhook-signature": header}

    assert verify(verification, headers, BODY, NOW) == 0


def test_a_token_must_be_the_whole_value() -> None:
    assert verify(VERIFICATIONS["bearer"], {"x-auth": "Bearer bearer_1"}, BODY, NOW) == 0
    for value in ("Bearer bearer_", "Bearer bearer_11", "Bearer Bearer_1"):
        assert refusal(VERIFICATIONS["bearer"], {"x-auth": value}) == "mismatch"
    assert refusal(VERIFICATIONS["bearer"], {"x-auth": "bearer_1"}) == "malformed_signature"


def test_basic_takes_user_and_password() -> None:
    header = "Basic " + base64.b64encode("user:pässword".encode()).decode()

    assert verify(VERIFICATIONS["basic"], {"authorization": header}, BODY, NOW) == 0
    assert refusal(VERIFICATIONS["basic"], {"authorization": "Basic dXNlcjo="}) == "mismatch"


# The `verify:` block itself


def mistakes(spec: VerifySpec) -> list[str]:
    with pytest.raises(ValueError) as found:
        compile_verification(spec)
    return str(found.value).split("\n")


def test_an_unknown_field_or_scheme_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `hedaer`"):
        msgspec.convert({"scheme": "hmac", "hedaer": "X"}, VerifySpec)
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'none'"):
        msgspec.convert({"scheme": "none"}, VerifySpec)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"header": None}, "scheme `hmac` needs the header that carries the signature, such as `header: X-Signature`"),
        ({"algorithm": "md5"}, "unknown algorithm `md5`: write one of sha1, sha256, sha384, sha512"),
        ({"payload": "{timestamp}"}, None),
        ({"payload": "x"}, "`payload: x` must hold {body} once: what is not signed cannot be trusted"),
        ({"payload": "{body}{nonce}"}, "`payload` knows {body}, {timestamp}, {id} and {url}, not {nonce}: remove it"),
        ({"payload": "{{body}"}, "`payload: {{body}` has a brace that belongs to no placeholder: remove it"),
        (
            {"payload": "{id}.{body}"},
            "`payload` signs {id}: say which header carries it, such as `id_header: X-Webhook-Id`",
        ),
        (
            {"payload": "{url}{body}"},
            "`payload` signs {url}: write the URL that is registered with the sender as `url`",
        ),
        (
            {"payload": "{timestamp}{body}"},
            "`payload` signs {timestamp}: say which header carries it, such as `timestamp_header: X-Timestamp`",
        ),
        (
            {"tolerance": 5},
            "`tolerance` needs a signed timestamp: put {timestamp} into `payload`, or remove `tolerance`",
        ),
        (
            {"tolerance": 0, "timestamp_header": "X-T", "payload": "{timestamp}{body}"},
            "`tolerance: 0` must be seconds above 0; without it, the scheme's own holds",
        ),
        (
            {"timestamp_header": "X-T", "signature": "t={timestamp},s={signature}"},
            "`timestamp_header` and {timestamp} in `signature` both give the timestamp: remove one",
        ),
        (
            {"signature": "sha256="},
            "`signature: sha256=` must hold {signature} once, such as `sha256={signature}`",
        ),
        (
            {"signature": "{signature}!"},
            "each part of `signature: {signature}!` must end in one placeholder, such as `h1={signature}`",
        ),
        (
            {"signature": "{timestamp},{signature}"},
            "each part of `signature: {timestamp},{signature}` needs a name to tell it by, such as `h1={signature}`",
        ),
        (
            {"signature": "a={nonce};b={signature}"},
            "`signature` knows {signature}, {timestamp} and {id}, not {nonce}: remove it",
        ),
        (
            {"secrets": "ab,no-hex", "secret_encoding": "hex"},
            "secret 2 of `secrets` is no hex key: copy it again from the sender",
        ),
        (
            {"secrets": "!", "secret_encoding": "base64"},
            "secret 1 of `secrets` is no base64 key: copy it again from the sender",
        ),
        (
            {"secrets": "pre_", "secret_prefix": "pre_"},
            "secret 1 of `secrets` is no usable key: copy it again from the sender",
        ),
    ],
)
def test_a_mistake_says_what_to_write_instead(wrong: dict[str, object], said: str | None) -> None:
    found = mistakes(msgspec.convert({"scheme": "hmac", "header": "X-Sig", "secrets": "ab", **wrong}, VerifySpec))

    assert said is None or said in found


@pytest.mark.parametrize("scheme", ["stripe", "standard-webhooks", "token", "basic"])
def test_what_a_scheme_fixes_cannot_be_set(scheme: str) -> None:
    assert mistakes(msgspec.convert({"scheme": scheme, "payload": "{body}!"}, VerifySpec))[0] == (
        f"`payload` is fixed by scheme `{scheme}`: remove it, or describe all of it with `scheme: hmac`"
    )


def test_all_mistakes_of_a_block_are_told_at_once() -> None:
    assert len(mistakes(VerifySpec(scheme="hmac", algorithm="md5", payload="x", signature="y", tolerance=0))) > 4


def test_a_basic_secret_needs_a_user() -> None:
    assert mistakes(VerifySpec(scheme="basic", secrets="hunter2")) == [
        "secret 1 of `secrets` must be written `user:password` for scheme `basic`"
    ]


def test_the_tolerance_of_a_scheme_can_be_changed() -> None:
    patient = compile_verification(VerifySpec(scheme="stripe", secrets=STRIPE_SECRET, tolerance=3600))

    assert verify(patient, {"stripe-signature": f"t={NOW},v1={stripe_v1()}"}, BODY, NOW + 3600) == 0
