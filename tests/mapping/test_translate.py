"""Rules that fail or skip leave a note; personal data ends here."""

import msgspec
import pytest

from gateway.documents import parse
from gateway.identity import PROFILES
from gateway.sources import Source, compile_source, read_verified
from gateway.translate import Note, Translation, translate

HEAD = """
source: s
verify: {scheme: token}
webhook: {id: id, type: type}
subjects: {user: user, email: email}
identity: {email: email, phone: phone, first_name: first, last_name: last}
tables: {plans: {p1: Pro}}
rules:
"""


def source(rules: str) -> Source:
    return compile_source(parse(HEAD + rules, "s.yaml"), "v", lambda _: None)


def translated(rules: str, **document: object) -> Translation:
    made = source(rules)
    body = msgspec.json.encode({"id": "1", "type": "t", **document})
    return translate(read_verified({}, body, made, 0), made, [PROFILES["default"]], lambda kind, _: kind.encode())


def properties(rule: str, **document: object) -> dict[str, object]:
    return translated(rule, **document).emissions[0].event.properties


def test_a_rule_that_fails_leaves_a_note_and_the_others_go_on() -> None:
    rules = "  - {on: t, emit: a, name: bad, properties: {x: length(n)}}\n  - {on: t, emit: b}\n"
    translation = translated(rules, n=5)
    assert [emission.event.name for emission in translation.emissions] == ["b"]
    assert translation.notes[0].rule == "bad"
    assert "length" in str(translation.notes[0].error)


@pytest.mark.parametrize("given", [None, False, "", [], {}])
def test_a_condition_that_is_not_met_is_filtered(given: object) -> None:
    assert translated("  - {on: t, emit: a, name: r, when: x}\n", x=given).notes == (Note("r", skip="filtered"),)


def test_zero_is_true_as_in_jmespath() -> None:
    assert len(translated("  - {on: t, emit: a, when: x}\n", x=0).emissions) == 1


@pytest.mark.parametrize(
    "text",
    ["ada@example.com", "mail ADA@example.com now", "+1 (202) 555-0143", "by Ada Lovelace", "x%40=ada%40example.com"],
)
def test_a_property_that_repeats_personal_data_is_refused(text: str) -> None:
    person = {"email": "Ada@Example.com", "phone": "+12025550143", "first": "Ada", "last": "Lovelace"}
    translation = translated("  - {on: t, emit: a, properties: {x: note}}\n", note={"deep": [text]}, **person)
    assert translation.emissions == ()
    assert translation.notes[0].skip == "pii_leak"
    assert text not in str(translation.notes)


def test_a_rule_may_say_that_it_means_it() -> None:
    rule = "  - {on: t, emit: a, allow_pii: true, properties: {x: email}}\n"
    assert properties(rule, email="a@b.example") == {"x": "a@b.example"}


def test_a_user_that_is_an_email_address_goes_on_as_its_hash() -> None:
    event = translated("  - {on: t, emit: a}\n", user="Ada@Example.com").emissions[0].event
    assert event.user_id == "b5fc85e55755f9e0d030a10ab4429b6b2944855f9a0d60077fe832becbc41d72"


def test_a_user_that_is_a_number_is_a_user() -> None:
    assert translated("  - {on: t, emit: a}\n", user=42).emissions[0].event.user_id == "42"


def test_what_is_nested_too_deeply_is_a_note_and_no_crash() -> None:
    deep: object = "x"
    for _ in range(300):
        deep = [deep]
    note = translated("  - {on: t, emit: a, name: r, properties: {x: deep}}\n", deep=deep).notes[0]
    assert note == Note("r", error="a property is nested deeper than 100 levels")


def test_wildcards_and_tables() -> None:
    rule = "  - {on: 't*', emit: a, properties: {plan: 'lookup(`\"plans\"`, p)', gone: nothing}}\n"
    assert properties(rule, p="p1") == {"plan": "Pro"}


def test_a_rule_without_an_event_ties_keys_together() -> None:
    (payment,) = translated("  - {on: t, emit: null, once: [a, b, a, c]}\n", a="1", b=2).payments
    assert payment.keys == ("1", "2")


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("items | [@, @][] | [@, @][]", "a list of more than 10,000 items"),
        ("items[].{a: 'x'}", "a list of more than 10,000 items"),
        ("[items, items, items, items, items]", "the properties hold more than 200,000 values and characters"),
    ],
)
def test_no_payload_makes_an_event_without_end(expression: str, told: str) -> None:
    rules = f"  - {{on: t, emit: a, name: r, properties: {{x: {msgspec.json.encode(expression).decode()}}}}}\n"
    translation = translated(rules, items=list(range(50_000)))
    assert (translation.emissions, translation.notes) == ((), (Note("r", error=told),))
