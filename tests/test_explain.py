"""`gateway explain`: what a user sees of one webhook, which is what happens to it, without anybody's data."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.destinations import iso
from gateway.documents import parse
from gateway.explain import Explanation, Step, explain, lines
from gateway.identity import PROFILES
from gateway.mappings import bundled, load_mappings, sample_headers
from gateway.money import Money
from gateway.sources import MalformedWebhook, Source, compile_source, read_verified
from gateway.translate import Emission, Translation, translate

MAPPINGS = load_mappings(bundled(), lambda _: None)
SAMPLES = sorted((bundled() / "samples").glob("*/*.json"))
every_sample = pytest.mark.parametrize("file", SAMPLES, ids=lambda file: f"{file.parent.name}/{file.stem}")
NOW = 1_793_000_000_000


def nobody(_subjects: Mapping[str, str]) -> Mapping[str, Mapping[str, str] | None]:
    return {}


def request(file: Path) -> tuple[Source, dict[str, str], bytes]:
    body = file.read_bytes()
    source = MAPPINGS.sources[file.parent.name]
    return source, sample_headers(bundled(), source.name, file.name, body, NOW / 1000), body


@cache
def explained(file: Path) -> Explanation:
    return explain(*request(file), MAPPINGS.profiles, nobody, NOW)


def translated(file: Path, kept: dict[str, str] | None = None) -> Translation:
    source, headers, body = request(file)

    def keep(name: str, value: str) -> bytes:
        (kept if kept is not None else {})[name] = value
        return b""

    return translate(read_verified(headers, body, source, NOW), source, MAPPINGS.profiles, keep)


def section(explanation: Explanation, name: str) -> tuple[Step, ...]:
    return next(step.inside for step in explanation.steps if step.name.startswith(name))


HEAD = """
source: s
verify: {scheme: token}
webhook: {id: id, type: type}
subjects: {user: user, s_cart: cart, email: email, phone: phone}
identity: {email: email, phone: phone, first_name: first, last_name: last}
visitor: {datalyr: anon}
rules:
"""


def rules(text: str, links: Mapping[str, Mapping[str, str] | None] | None = None, **document: object) -> list[str]:
    """Explain a small webhook under these rules."""
    source = compile_source(parse(HEAD + text, "s.yaml"), "v1", lambda _: None)
    body = msgspec.json.encode({"id": "w1", "type": "t", **document})
    return list(lines(explain(source, {}, body, [PROFILES["default"]], lambda _: links or {})))


def shown(line: str, told: list[str]) -> str:
    """Return what stands behind the arrow of the line that begins so."""
    return next(each.split(" → ")[1] for each in told if each.strip().startswith(line))


# What is said is what happens


@every_sample
def test_it_says_what_comes_of_every_sample(file: Path) -> None:
    translation = translated(file)
    told = [f"{step.name} {step.gave[0]}" for step in section(explained(file), "what comes of it")]
    assert told == [
        *(f"event {told_of(each)} ({each.event.rule})" for each in translation.emissions),
        *(f"payment keys {', '.join(map(text, each.keys))}" for each in translation.payments),
        *([f"privacy {translation.request.kind}"] if translation.request else []),
        *(f"skipped {note.skip}" + (f" ({note.rule})" if note.rule else "") for note in translation.notes),
    ]
    assert told


def told_of(emission: Emission) -> str:
    event, payment = emission.event, emission.payment
    return f"{event.name} {event.id} at {iso(event.at)}" + (
        f", held for {payment.hold // 1000}s" if payment and payment.hold else ""
    )


@every_sample
def test_it_says_of_each_rule_whether_it_matched(file: Path) -> None:
    translation = translated(file)
    told = {step.name: step.gave[0] for step in section(explained(file), "rules")}
    made = {each.event.rule: f"matched, makes {each.event.name}" for each in translation.emissions}
    skipped = {note.rule: "not matched" for note in translation.notes if note.rule}
    assert {**made, **skipped}.items() <= told.items()
    tied = [verdict for name, verdict in told.items() if name not in {**made, **skipped}]
    asks = [f"matched, asks about data: {translation.request.kind}"] if translation.request else []
    assert tied == ["matched, ties payment keys"] * len(translation.payments) + asks


@every_sample
def test_it_shows_the_values_that_the_event_carries(file: Path) -> None:
    told = {step.name: step.inside for step in section(explained(file), "rules")}
    for emission in translated(file).emissions:
        steps = {step.name: step for step in told[emission.event.rule]}
        leaves = [leaf for leaf in steps["properties"].inside if leaf.gave != ("nothing",)]
        columns = {each.split(": ")[0] for leaf in leaves for each in leaf.gave if each.startswith(leaf.name)}
        assert columns | {leaf.name for leaf in leaves if len(leaf.gave) == 1} >= {*paths(emission.event.properties)}
        for path, value in paths(emission.event.properties).items():
            assert any(each in {value, f"{path}: {value}"} for leaf in leaves for each in leaf.gave), path
        assert steps["event id"].gave == (emission.event.id,)


def paths(value: object, path: str = "") -> dict[str, str]:
    """Return each leaf of an event's properties as it is to be shown, those of a list in one line."""
    found: dict[str, list[str]] = {}

    def collect(value: object, path: str) -> None:
        if isinstance(value, dict) and value:
            for name, each in value.items():
                collect(each, f"{path}.{name}".lstrip("."))
        elif isinstance(value, list) and value:
            for each in value:
                collect(each, f"{path}[]")
        else:
            found.setdefault(path, []).append(cut("nothing" if value is None else text(value)))

    collect(value, path)
    return {name: cut(", ".join(texts)) for name, texts in found.items()}


def text(value: object) -> str:
    return str(value) if isinstance(value, Money) else msgspec.json.encode(value).decode()


def cut(line: str) -> str:
    return line if len(line) <= 80 else line[:79] + "…"


@every_sample
def test_it_shows_the_keys_that_a_payment_claims(file: Path) -> None:
    translation = translated(file)
    steps = [each for rule in section(explained(file), "rules") for each in rule.inside if each.name == "once"]
    claimed = [key for each in translation.emissions if each.payment for key in each.payment.keys]
    claimed += [key for each in translation.payments for key in each.keys]
    assert {step.gave[0].strip('"') for step in steps} - {"nothing", "false"} == set(claimed)


@pytest.mark.parametrize("source", sorted(MAPPINGS.sources))
def test_the_subjects_that_it_looks_up_are_those_that_are_stored(source: str) -> None:
    asked: list[Mapping[str, str]] = []

    def ask(subjects: Mapping[str, str]) -> Mapping[str, None]:
        asked.append(subjects)
        return {}

    for file in SAMPLES:
        stored: dict[str, str] = {}
        if file.parent.name == source and translated(file, stored).subjects:
            explain(*request(file), MAPPINGS.profiles, ask, NOW)
            assert asked.pop() == stored


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    *("id", "type", "status", "email", "name", "amount_total", "amount_paid", "currency", "metadata", "customer"),
    *("object", "payment_status", "payment_intent", "total_price", "items", "data", "attributes", "event", "content"),
]


@given(st.sampled_from(sorted(MAPPINGS.sources)), st.dictionaries(st.sampled_from(FIELDS), JSON), st.data())
def test_whatever_arrives_is_explained_as_it_is_translated(
    name: str, thing: dict[str, object], data: st.DataObject
) -> None:
    source = MAPPINGS.sources[name]
    type = data.draw(st.sampled_from(sorted({type for rule in source.rules for type in rule.on})))
    document = {
        "id": "1",
        "type": type,
        "event_type": type,
        "event": thing,
        "content": thing,
        "data": thing | {"object": thing},
    }
    headers = dict.fromkeys(("x-shopify-topic", "x-wc-webhook-topic", "x-shopify-event-id", "webhook-id"), type)
    body = msgspec.json.encode(thing | document)
    told = [step.name for step in explain(source, headers, body, MAPPINGS.profiles, nobody).steps[-1].inside]
    try:
        translation = translate(read_verified(headers, body, source, 0), source, MAPPINGS.profiles, lambda *_: b"")
    except MalformedWebhook:
        assert told == []
    else:
        ends = len(translation.emissions), len(translation.payments), len(translation.notes)
        assert (told.count("event"), told.count("payment keys"), len(told)) == (ends[0], ends[1], sum(ends))


# Nobody's data


def people(value: object, key: str = "") -> Iterator[str]:
    """Yield every email, phone number and name of a person in a document."""
    if isinstance(value, dict):
        person = not value.keys().isdisjoint({"email", "phone", "address", "last_name", "external_id"})
        for name, each in value.items():
            yield from people(each, "full_name" if name == "name" and person else name)
    elif isinstance(value, list):
        for each in value:
            yield from people(each, key)
    elif isinstance(value, str) and len(value) > 2 and not value.startswith("#"):  # #1001 is an order's name
        yield from [value] if EMAIL.fullmatch(value) or PERSONAL.fullmatch(key) else []


EMAIL = re.compile(r"\S+@\S+\.\S+")
PERSONAL = re.compile(
    r"(first|last|full|given|family|user|customer|billing|cardholder|credit_card)_name|(\w+_)?phone(_number)?"
)


@every_sample
def test_nobody_s_email_phone_or_name_is_shown(file: Path) -> None:
    told = "\n".join(lines(explained(file)))
    found = set(people(msgspec.json.decode(file.read_bytes())))
    assert [each for each in found if re.search(rf"(?<!\w){re.escape(each)}(?!\w)", told)] == []


def test_the_samples_have_people_in_them() -> None:
    found = {each for file in SAMPLES for each in people(msgspec.json.decode(file.read_bytes()))}
    assert {"ada@example.com", "+12025550143", "Ada Example", "Emmy", "Beispiel", "Grace"} <= found


def test_a_property_with_somebody_s_email_is_masked_and_the_rule_says_what_to_do() -> None:
    rule = "  - {on: t, emit: a, name: r, properties: {x: note, y: '[note, `1`]'}}\n"
    told = rules(rule, email="Ada@Example.com", note="write to ada@example.com")
    assert (
        "  r: matched, but skipped as pii_leak: a property contains the email; hash it, or say `allow_pii: true`"
        in told
    )
    assert shown("x: note", told) == MASKED % "email"
    assert "ada@" not in "\n".join(told).lower()


MASKED = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}%s\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"


@pytest.mark.parametrize(
    ("note", "what"), [("call +1 202 555 0143", "phone"), ("by Ada Lovelace", "name"), ("ada", "first_name")]
)
def test_a_phone_number_or_a_name_is_masked_as_well(note: str, what: str) -> None:
    rule = "  - {on: t, emit: a, allow_pii: true, properties: {x: note}}\n"
    told = rules(rule, phone="+12025550143", first="Ada", last="Lovelace", note=note)
    assert shown("x: note", told) == MASKED % what
    assert shown("phone", told) == f"sha256:{hashlib.sha256(b'12025550143').hexdigest()[:8]}…"


def test_somebody_else_s_email_is_masked_too() -> None:
    told = rules("  - {on: t, emit: a, when: old && new}\n", email="ada@example.com", old="grace%40example.com")
    assert shown("old", told) == MASKED % "email"


def test_a_user_is_shown_only_as_a_hash_wherever_it_is() -> None:
    told = rules("  - {on: t, emit: a, properties: {x: user}}\n", user="user_42")
    assert shown("user", told) == f"sha256:{hashlib.sha256(b'user_42').hexdigest()[:8]}…"
    assert shown("x", told) == MASKED % "user"


def test_the_hashes_are_those_of_the_event() -> None:
    file = bundled() / "samples/stripe/checkout.session.completed.json"
    hashed = translated(file).emissions[0].event.identity["default"]
    told = {step.name: step.gave[0] for step in section(explained(file), "identity")}
    assert {f"{name} sha256:{digest[:8]}…" for name, digest in hashed.items()} <= {f"{n} {t}" for n, t in told.items()}


# Why


def test_a_condition_that_is_not_met_shows_which_part_failed() -> None:
    rule = "  - {on: t, emit: a, name: r, when: \"status == 'paid' && (total > `0` || !free)\"}\n"
    told = rules(rule, status="paid", total=0, free=True)
    start = told.index("  r: not matched")
    assert told[start + 1 : start + 9] == [
        "    when: status == 'paid' && (total > `0` || !free) → false",
        "      status == 'paid' → true",
        '        status → "paid"',
        "      (total > `0` || !free) → false",
        "        total > `0` → false",
        "          total → 0",
        "        !free → false",
        "          free → true",
    ]


@pytest.mark.parametrize(
    ("when", "parts"),
    [
        ("'paid' == status && a", ["'paid' == status → false", "  status → nothing", "a → nothing"]),
        ("!(b == (c))", ["b == (c) → true", "  b → nothing", "  (c) → nothing"]),
        ("!(type(b))", ['type(b) → "null"']),
        ("!type", ['type → "t"']),
        ("a == 'x || y'", ["a → nothing"]),
        ("( (a) )", []),
    ],
)
def test_a_part_is_what_stands_on_its_own(when: str, parts: list[str]) -> None:
    told = rules(f'  - {{on: t, emit: a, name: r, when: "{when}"}}\n')
    start = told.index("  r: not matched")
    assert told[start + 2 : told.index("what comes of it")] == [f"      {part}" for part in parts]


@pytest.mark.parametrize(
    "when", ["a || b | c", "(a || b) | c", "items[?a && b]", "contains(['a || b'], a)", "map(&(a || b), items)"]
)
def test_what_does_not_start_from_the_document_is_not_taken_apart(when: str) -> None:
    told = rules(f'  - {{on: t, emit: a, name: r, when: "{when}"}}\n', items=[])
    start = told.index("  r: not matched")
    assert told[start + 1].startswith(f"    when: {when} → ")
    assert told[start + 2] == "what comes of it"


def test_a_condition_shows_how_many_there_are_not_what_they_are() -> None:
    told = rules("  - {on: t, emit: a, when: people && shop && no}\n", people=["Ada", "Grace"], shop={"name": "S"})
    assert [shown(name, told) for name in ("people →", "shop →", "no →")] == ["a list of 2", "a map of 1", "nothing"]


def test_a_condition_that_gives_zero_is_met() -> None:
    told = rules("  - {on: t, emit: a, name: r, when: n, properties: {x: n}}\n", n=0)
    assert "  r: matched, makes a" in told
    assert shown("x: n", told) == "0"


def test_an_expression_that_fails_is_shown_with_its_message() -> None:
    told = rules("  - {on: t, emit: a, name: r, properties: {x: length(n), y: n}}\n", n=5)
    message = "`length` argument 1: expected string or array or object, got number"
    assert f"  r: failed: {message}" in told
    assert shown("x: length(n)", told) == f"fails: {message}"
    assert shown("y: n", told) == "5"
    assert told[-1] == f"  failed: {message} (r)"


def test_it_says_which_subject_gives_the_visitor() -> None:
    links = {"user": None, "s_cart": {"": "v_1"}, "email": {"datalyr": "anon_1", "nexly": "n_1"}}
    told = rules("  - {on: t, emit: a}\n", links, user="u", cart="c1", email="a@b.example")
    assert shown("user", told).endswith("…, not linked")
    assert shown("s_cart", told) == '"c1", linked to "v_1": this gives the visitor'
    assert shown("email: email → sha256", told).endswith(', linked to datalyr "anon_1", nexly "n_1"')


def test_a_link_without_a_visitor_id_is_a_link() -> None:
    links: dict[str, Mapping[str, str] | None] = {"user": {}, "s_cart": {"nexly": ""}}
    told = rules("  - {on: t, emit: a}\n", links, user="u", cart="c1")
    assert shown("user", told).endswith("…, linked to no visitor id: this gives the visitor")
    assert shown("s_cart", told) == '"c1", linked to no visitor id'


def test_a_subject_that_was_not_looked_up_is_not_called_unlinked() -> None:
    assert shown("s_cart", rules("  - {on: t, emit: a}\n", cart="c1")) == '"c1"'


def test_a_subject_that_nobody_can_link_says_so() -> None:
    told = rules("  - {on: t, emit: a}\n", email="no address", cart=["c1"], user="u" * 513)
    subjects = told[told.index("subjects, in order of trust") + 1 :][:4]
    assert [line.split(" → ")[1] for line in subjects] == [*["nothing usable"] * 3, "nothing"]


def test_the_visitor_ids_of_the_payload_are_shown() -> None:
    assert shown("datalyr", rules("  - {on: t, emit: a}\n", anon="anon_1")) == '"anon_1"'


def test_nested_properties_are_shown_leaf_by_leaf() -> None:
    rule = "  - {on: t, emit: a, properties: {cart: {total: 'money(n, c)', tags: [a, {const: b}]}, lines: lines}}\n"
    told = rules(rule, n="39.75", c="usd", a="x", lines=[{"id": 1}, {"id": None}, {"tags": ["y", "z"]}])
    start = told.index("    properties")
    assert told[start + 1 : start + 7] == [
        "      cart.total: money(n, c) → 39.75 USD",
        '      cart.tags[]: a → "x"',
        '      cart.tags[]: "b"',
        "      lines: lines",
        "        → lines[].id: 1, nothing",
        '        → lines[].tags[]: "y", "z"',
    ]


def test_a_long_value_is_cut_and_what_a_terminal_would_obey_is_written_out() -> None:
    told = rules("  - {on: t, emit: a, properties: {x: long, y: odd}}\n", long="x" * 500, odd="\x1b[31m\x9b\u202e")
    assert shown("x: long", told) == '"' + "x" * 78 + "…"
    assert shown("y: odd", told) == r'"\u001b[31m\x9b\u202e"'


def test_what_is_nested_without_end_is_shown_to_some_depth() -> None:
    deep: object = "x"
    for _ in range(400):
        deep = {"a": deep}
    told = rules("  - {on: t, emit: a, name: r, properties: {x: deep}}\n", deep=deep)
    assert shown("x: deep", told) == f"x{'.a' * 20}: …"
    assert told[-1] == "  failed: a property is nested deeper than 100 levels (r)"


def test_rules_of_other_types_are_only_counted() -> None:
    told = rules("  - {on: t, emit: a}\n  - {on: other, emit: b}\n  - {on: other, emit: c}\n")
    assert "rules for this type (2 are for others)" in told
    assert "  b on other" not in "\n".join(told)


def test_rules_with_the_same_name_are_told_apart() -> None:
    told = rules("  - {on: t, emit: a, name: r, when: no}\n  - {on: t, emit: b, name: r}\n")
    assert [line for line in told if line.startswith("  r: ")] == ["  r: not matched", "  r: matched, makes b"]


def test_events_of_one_webhook_are_shown_with_their_own_ids() -> None:
    told = rules("  - {on: t, emit: a, when: no}\n  - {on: t, emit: a}\n  - {on: t, emit: a}\n")
    ids = [line.split()[-1] for line in told if line.startswith("    event id: ")]
    assert len(set(ids)) == 2
    assert [line.split()[2] for line in told if line.startswith("  event: ")] == ids


def test_a_rule_that_only_ties_keys_says_what_it_ties_or_that_it_has_none() -> None:
    rule = "  - {on: t, emit: null, name: r, once: [a, b]}\n"
    assert rules(rule, a="x", b=2)[-1] == '  payment keys: "x", "2"'
    assert "  r: matched, but none of its keys has a value" in rules(rule)


def test_how_an_event_waits_is_shown() -> None:
    told = rules(
        "  - {on: t, emit: a, name: r, once: id, of: p, hold: 2m, wait_for_link: 5m, at: when}\n", p="x", when=1e9
    )
    start = told.index("  r: matched, makes a")
    assert told[start + 1 : start + 6] == [
        '    once: id → "w1"',
        '    of: p → "x"',
        "    hold: 2m",
        "    wait_for_link: 300s",
        '    at: when → "2001-09-09T01:46:40.000Z"',
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "refused: the body is not JSON that can be read"),
        (b'{"type": "t"}', "refused: it has no id: check the `webhook:` block of its source"),
    ],
)
def test_a_request_that_is_no_webhook_says_why(body: bytes, reason: str) -> None:
    source = compile_source(parse(HEAD + "  - {on: t, emit: a}\n", "s.yaml"), "v1", lambda _: None)
    told = list(lines(explain(source, {}, body, [], nobody)))
    assert told[:3] == ["s, mapping v1", "webhook", "  id: id → nothing"]
    assert told[-1].startswith(reason)


def test_subjects_that_fail_say_so_and_no_rule_is_tried() -> None:
    head = HEAD.replace("s_cart: cart", "s_cart: length(cart)")
    source = compile_source(parse(head + "  - {on: t, emit: a, name: r}\n", "s.yaml"), "v1", lambda _: None)
    told = list(lines(explain(source, {}, b'{"id": "1", "type": "t", "cart": 5}', [], nobody)))
    assert shown("s_cart", told).startswith("fails: `length`")
    assert any(line.startswith("  r: failed: subjects, visitor or identity: `length`") for line in told)


# The whole of it

STRIPE = """\
stripe, mapping %s
webhook
  id: id → "evt_1SGateway0004Sample"
  type: type → "refund.created"
  occurred_at: created → "2026-10-27T07:33:20.000Z"
  account: account || '' → ""
  test: livemode == `false` → false
subjects, in order of trust
  user: data.object.metadata.user_id || data.object.parent.subscription_details.metadata.user_id ||
      data.object.subscription_details.metadata.user_id || ([data.object.client_reference_id][?@ &&
      !starts_with(@, 'anon_') && !starts_with(@, 'vis_')] | [0])
    → nothing
  stripe_checkout: data.object.object == 'checkout.session' && data.object.id → nothing
  stripe_reference: data.object.metadata.gateway_reference ||
      data.object.parent.subscription_details.metadata.gateway_reference ||
      data.object.subscription_details.metadata.gateway_reference || ([data.object.client_reference_id][?@ &&
      (starts_with(@, 'anon_') || starts_with(@, 'vis_'))] | [0])
    → nothing
  stripe_customer: data.object.customer || (data.object.object == 'customer' && data.object.id) → nothing
  stripe_payment: data.object.payment_intent || (data.object.object == 'payment_intent' && data.object.id)
    → "pi_3SGatewayOnce0001"
  email: data.object.customer_details.email || data.object.customer_email || data.object.receipt_email ||
      data.object.billing_details.email || (data.object.object == 'customer' && data.object.email)
    → nothing
identity
  email: data.object.customer_details.email || data.object.customer_email || data.object.receipt_email ||
      data.object.billing_details.email || (data.object.object == 'customer' && data.object.email)
    → nothing
  phone: data.object.customer_details.phone || data.object.customer_phone || data.object.billing_details.phone
      || (data.object.object == 'customer' && data.object.phone)
    → nothing
  first_name: split(data.object.customer_details.name || data.object.customer_name ||
      data.object.billing_details.name || (data.object.object == 'customer' && data.object.name) || '', ' ') |
      [0]
    → nothing
  last_name: join(' ', split(data.object.customer_details.name || data.object.customer_name ||
      data.object.billing_details.name || (data.object.object == 'customer' && data.object.name) || '',
      ' ')[1:])
    → nothing
  country: data.object.customer_details.address.country || data.object.customer_address.country ||
      data.object.billing_details.address.country || data.object.address.country
    → nothing
visitor ids in the payload
  datalyr: data.object.metadata.visitor_id || ([data.object.client_reference_id][?@ && starts_with(@,
      'anon_')] | [0])
    → nothing
  databuddy: data.object.metadata.databuddy_anonymous_id → nothing
rules for this type (28 are for others)
  refund: matched, makes refund
    when: data.object.status != 'failed' && data.object.status != 'canceled' → true
    once: data.object.id → "re_3SGatewayOnce0001"
    of: data.object.payment_intent → "pi_3SGatewayOnce0001"
    of: data.object.charge → "ch_3SGatewayOnce0001"
    properties
      order_id: data.object.metadata.order_id || data.object.payment_intent || data.object.charge
        → "pi_3SGatewayOnce0001"
      refund_id: data.object.id → "re_3SGatewayOnce0001"
      value: money_minor(data.object.amount, data.object.currency) → 20.00 USD
      currency: upper(data.object.currency) → "USD"
      reason: data.object.reason → "requested_by_customer"
    event id: 83dee153-1c4c-5792-a7d6-3d14c4872e31
what comes of it
  event: refund 83dee153-1c4c-5792-a7d6-3d14c4872e31 at 2026-10-27T07:33:20.000Z (refund)"""

SHOPIFY = """\
shopify, mapping %s
webhook
  id: header('X-Shopify-Event-Id') || header('X-Shopify-Webhook-Id') → "6d8dd2f8fb1b9475312d1b41e039e85c"
  type: header('X-Shopify-Topic') → "checkouts/create"
  occurred_at: header('X-Shopify-Triggered-At') → "2026-10-26T07:33:20.000Z"
  account: header('X-Shopify-Shop-Domain') → "demo-shop.myshopify.com"
  test: header('X-Shopify-Test') == 'true' || test → false
subjects, in order of trust
  user: note_attributes[?name == 'user_id'].value | [0] → nothing
  shopify_cart: cart_token → "hWN2Gatewaycart7f3c9d1e5b8a4c60"
  shopify_checkout: checkout_token || token → "c0ffee7f3c9d1e5b8a4c60d2e9f1a3b5"
  shopify_reference: note_attributes[?name == '_gateway_reference'].value | [0] → nothing
  shopify_order: order_id || (financial_status && id) → nothing
  shopify_customer: customer.id || ((accepts_marketing != `null` || verified_email != `null`) && id)
    → "7012345678901"
  email: email || contact_email || customer.email → sha256:2ec3b659…
identity
  email: email || contact_email || customer.email → sha256:2ec3b659…
  phone: phone || customer.phone || billing_address.phone || shipping_address.phone || default_address.phone
    → sha256:476c058c…
  first_name: customer.first_name || billing_address.first_name || first_name → sha256:c541435b…
  last_name: customer.last_name || billing_address.last_name || last_name → sha256:64c2963a…
  country: billing_address.country_code || shipping_address.country_code ||
      customer.default_address.country_code || default_address.country_code
    → sha256:959a45d4…
visitor ids in the payload
  datalyr: note_attributes[?name == '_datalyr_visitor_id'].value | [0]
    → "anon_3f0c5d2a-9b1e-4a77-8c66-0a1b2c3d4e5f"
rules for this type (11 are for others)
  checkout begun: matched, makes begin_checkout
    when: !completed_at → true
    once: token → "c0ffee7f3c9d1e5b8a4c60d2e9f1a3b5"
    at: created_at → "2026-10-26T08:52:00.000Z"
    properties
      checkout_id: token → "c0ffee7f3c9d1e5b8a4c60d2e9f1a3b5"
      value: money(total_price, currency) → 94.96 EUR
      currency: currency → "EUR"
      items: line_items[].{item_id: not_null(sku, to_string(product_id)), name: title, quantity: quantity,
          price: to_number(price)}
        → items[].item_id: "MUG-1", "9012345678911"
        → items[].name: "Analytical Mug", "Engine Poster"
        → items[].quantity: 2, 1
        → items[].price: 24.9, 35.0
    event id: d0689897-f1c7-5f96-83ee-8e5acebe654f
what comes of it
  event: begin_checkout d0689897-f1c7-5f96-83ee-8e5acebe654f at 2026-10-26T08:52:00.000Z (checkout begun)"""


@pytest.mark.parametrize(
    ("sample", "whole"), [("stripe/refund.created", STRIPE), ("shopify/checkouts.create", SHOPIFY)]
)
def test_the_whole_of_a_sample_reads_like_this(sample: str, whole: str) -> None:
    file = bundled() / f"samples/{sample}.json"
    assert "\n".join(lines(explained(file))) == whole.replace("%s", MAPPINGS.sources[file.parent.name].version)
