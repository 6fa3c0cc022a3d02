"""JSON Schemas of the files that users write, so that an editor completes a key, explains it and marks a mistake.

The Structs say which keys there are and of what type. What they cannot say stands in the tables here: what a key is
for, where the Struct has no docstring for it, and what its text must look like. Only what is inside an expression is
left to `gateway check`. Draft 2020-12, but nothing that an editor of draft 7 would read differently: beside a `$ref`
stand only words.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from gateway.destinations import (
    BatchSpec,
    DedupSpec,
    DestinationSpec,
    ParkSpec,
    RateSpec,
    RetrySpec,
    RouteSpec,
    SignSpec,
)
from gateway.events import ProductIds
from gateway.expressions import MAX_LENGTH
from gateway.fetches import MAX_FETCHES, FetchSpec
from gateway.functions import MAPPING
from gateway.identity import PROFILES
from gateway.mapping_tests import LinkSpec, SkipSpec, TestSpec, TestsSpec, WebhookSpec
from gateway.signatures import Scheme, VerifySpec
from gateway.sources import IdentitySpec, RequestSpec, RuleSpec, SetupSpec, SourceSpec, SubjectSpec

SchemaKind = Literal["source", "destination", "tests"]
KINDS: tuple[SchemaKind, ...] = get_args(SchemaKind)
_Schema = dict[str, Any]

_STRUCTS: Mapping[SchemaKind, type[msgspec.Struct]] = {
    "source": SourceSpec,
    "destination": DestinationSpec,
    "tests": TestsSpec,
}


def schema(kind: SchemaKind) -> dict[str, object]:
    """Return the JSON Schema of one kind of file."""
    struct = _STRUCTS[kind]
    _, components = msgspec.json.schema_components(
        (struct,),
        schema_hook=lambda _: _VALUE.copy(),  # `object` is a place for a value, unless _FORMS says otherwise
        ref_template="#/$defs/{name}",
    )
    known = {each.__name__: each for each in _ABOUT}
    for name, written in components.items():
        del written["title"]
        if name in known:
            _improve(written, known[name])
    root = components.pop(struct.__name__)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "$defs": components | _definitions(kind),
    }


def write_schemas(folder: Path) -> list[Path]:
    """Write the schema of every kind of file as `<kind>.json` into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in KINDS:
        file = folder / f"{kind}.json"
        file.write_bytes(msgspec.json.format(msgspec.json.encode(schema(kind)), indent=2) + b"\n")
        written.append(file)
    return written


def _improve(written: _Schema, struct: type[msgspec.Struct]) -> None:
    """Add to the schema of a Struct what its types do not say."""
    about = {**_docstrings(struct), **_ABOUT[struct]}
    forms = _FORMS.get(struct, {})
    written["description"] = " ".join(written["description"].split())
    for name, found in written["properties"].items():
        form = _plain(found)
        default = form.pop("default", None)  # in words: an editor would write it into every new block
        if name in forms:
            form.pop("$ref", None)
            form |= forms[name]
        if name in about:
            told = default and isinstance(default, str | int) and "$ref" not in form
            form = {"description": about[name] + (f" Default: `{default}`." if told else "")} | form
        written["properties"][name] = form
    written["additionalProperties"] = False
    if not written["required"]:
        del written["required"]
    written |= _CONDITIONS.get(struct, {})


def _plain(form: _Schema) -> _Schema:
    """Write `anyOf` as one schema where its options are bare types, or an enumeration and null."""
    form = form.copy()
    match form.get("anyOf"):
        case [{"enum": words}, {"type": "null"}]:
            del form["anyOf"]
            return {"enum": [*words, None]} | form
        case [*options] if options and all(option.keys() == {"type"} for option in options):
            del form["anyOf"]
            return {"type": [option["type"] for option in options]} | form
    return form


def _docstrings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return the texts that stand below the fields of a Struct, by the names that the fields have in a file."""
    names = dict(zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True))
    tree = ast.parse(textwrap.dedent(inspect.getsource(struct))).body[0]
    assert isinstance(tree, ast.ClassDef)  # noqa: S101 -- a Struct is a class
    texts = {}
    for above, below in zip(tree.body, tree.body[1:], strict=False):
        match above, below:
            case (
                ast.AnnAssign(target=ast.Name(id=field)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[names[field]] = " ".join(text.split())
    return texts


# The forms of texts. Two words are not JSON Schema's but editors': `patternErrorMessage` is shown instead of the
# pattern, `defaultSnippets` are offered without being the only values.

_DURATION: _Schema = {
    "pattern": "^[0-9]{1,6}[smhd]$",
    "patternErrorMessage": "Write a number and a unit, such as 90s, 2m, 4h or 30d.",
}
_EXPRESSION: _Schema = {
    "pattern": r"\S",
    "patternErrorMessage": "Write an expression, or {const: ''} for the empty text.",
    "maxLength": MAX_LENGTH,
}
_SNAKE_CASE: _Schema = {
    "pattern": "^[a-z][a-z0-9_]*$",
    "patternErrorMessage": "Write snake_case, such as order_created.",
}
_VALUE: _Schema = {"$ref": "#/$defs/value"}
_CONST: _Schema = {"const": {"description": "Alone in its map: a literal text or structure, no expression."}}


def _placeholders(must: str, may: str) -> str:
    """Return the pattern of a text that holds the placeholder `must` once, and otherwise only those of `may`."""
    others = rf"(?:[^{{}}]|\{{(?:{may})\}})*"
    return rf"^{others}\{{{must}\}}{others}$"


def _definitions(kind: SchemaKind) -> _Schema:
    match kind:
        case "source":
            subject = {"anyOf": [{"type": "string", **_EXPRESSION}, {"$ref": "#/$defs/SubjectSpec"}]}
            return {"subject": subject, "value": _value()}
        case "destination":
            return {"value": _value()}
        case "tests":
            return {}


def _value() -> _Schema:
    signatures = ", ".join(f"`{function.signature.partition(' -> ')[0]}`" for function in MAPPING.values())
    return {
        "description": "A text is a JMESPath expression; a number, a boolean and null are themselves; {const: text} is "
        "a literal; maps and lists build structure of them. What yields null leaves its key out. Inside an expression "
        f"a literal is 'text', or JSON between backticks. Functions: {signatures}.",
        "anyOf": [
            {"type": ["string", "number", "boolean", "null"], **_EXPRESSION},
            _structure({}),
            {"type": "array", "items": _VALUE},
        ],
    }


def _structure(known: Mapping[str, str]) -> _Schema:
    """Return the form of a map of values, some of whose keys are known by name."""
    described = {name: {"description": text, **_VALUE} for name, text in known.items()}
    return {"type": "object", "properties": described | _CONST, "additionalProperties": _VALUE}


# What an editor offers where any name may stand.

EVENTS: Mapping[str, str] = {
    "purchase": "A payment arrived.",
    "refund": "Money was paid back.",
    "refund_failed": "Money that was to be paid back stays with the shop.",
    "begin_checkout": "A checkout was begun.",
    "checkout_completed": "A checkout was finished, and nothing was paid yet.",
    "checkout_expired": "A checkout was given up.",
    "payment_failed": "A payment was tried and failed.",
    "order_created": "An order was placed, to be paid later.",
    "order_cancelled": "An order was cancelled.",
    "order_fulfilled": "An order was sent or handed out.",
    "subscription_started": "A subscription became active.",
    "subscription_updated": "A subscription changed: its plan, its quantity, or whether it will end.",
    "subscription_paused": "A subscription rests.",
    "subscription_resumed": "A subscription goes on after a rest.",
    "subscription_cancelled": "A subscription ended.",
    "trial_started": "A trial began.",
    "trial_ending": "A trial is about to end.",
    "trial_converted": "A trial became a paid subscription.",
    "invoice_finalized": "An invoice is ready to be paid.",
    "invoice_payment_failed": "The payment of an invoice was tried and failed.",
    "dispute_opened": "A customer disputes a payment.",
    "dispute_closed": "A dispute was decided.",
    "customer_created": "A customer is new.",
    "customer_updated": "What is known of a customer changed.",
    "customer_deleted": "A customer was deleted.",
}
_OFFERED: _Schema = {
    "defaultSnippets": [{"label": name, "description": text, "body": name} for name, text in EVENTS.items()]
}
_PROPERTIES: Mapping[str, str] = {
    "order_id": "What purchase and refund have in common.",
    "value": "What was paid without tax and shipping, as money: `money(…)` or `money_minor(…)`.",
    "total": "What was paid in all, as money.",
    "tax": "The tax in it, as money.",
    "shipping": "The shipping in it, as money.",
    "discount": "What was taken off the price, as money.",
    "currency": "The currency's code by ISO 4217, in upper case.",
    "coupon": "The code of a discount.",
    "items": "What was bought: a list of maps with item_id, name, quantity and price.",
    "payment_type": "`one_time` or `subscription`.",
    "refund_id": "The refund's own id.",
    "checkout_id": "The checkout's own id.",
    "invoice_id": "The invoice's own id.",
    "subscription_id": "The subscription's own id.",
    "customer_id": "The customer's own id.",
    "dispute_id": "The dispute's own id.",
    "plan": "The id of what is subscribed to.",
    "status": "The state of the subscription or the dispute.",
    "reason": "Why it failed, ended or was paid back.",
    "billing_reason": "Why an invoice was made, such as the next period of a subscription.",
    "billing_interval": "How long a period of the subscription is.",
}
_CONTEXT: Mapping[str, str] = {"url": "The address of a page.", "path": "The path of a page."}
_SUBJECTS: Mapping[str, str] = {
    "user": "The user's id in the shop's own books; the same for every source.",
    "email": "An email address; the same for every source.",
    "phone": "A phone number; the same for every source.",
}

# What a key is for, where the Struct does not say it.

_ABOUT: Mapping[type[msgspec.Struct], Mapping[str, str]] = {
    SourceSpec: {
        "source": "The source's name: its webhooks come to /webhooks/<name>.",
        "verify": "How its requests prove where they come from.",
        "webhook": "How to read the request itself.",
        "rules": "Which types of webhooks become which events. All rules that match a type apply, in this order.",
        "subjects": "Who the payload speaks of, in order of trust: the first that is linked gives the visitor.",
        "visitor": "Visitor ids that the payload itself carries, by product.",
        "identity": "Who the person is. Hashed while translating; raw values go nowhere.",
        "wait_for_link": "How long an event with subjects but no visitor waits for a link, for all rules: `5m`.",
        "currencies": "The provider's exceptions to the decimals of ISO 4217: `{ISK: 2}`.",
        "tables": "Tables for `lookup`, by name: `{plans: {price_1: Pro}}`.",
        "fetch": "Objects that rules need and the payload lacks, by name: they are fetched from the provider, and "
        "rules see them as `fetched('<name>')`.",
        "setup": "How the sender's endpoint is made, for `gateway check` to print.",
    },
    FetchSpec: {
        "on": "A type or a list of types whose webhooks need the object; `*` matches anything.",
        "url": "Where the object is: https://host/path/{id}?query. A placeholder is a whole segment of the path.",
        "when": "Whether this webhook needs it. Default: always.",
        "with": "What stands in the placeholders' places, percent-encoded. What has no value is not fetched.",
        "headers": "The request's headers; may use `${NAME}`.",
        "enabled_by": "The settings that switch it on: without one of them nothing is fetched, and rules see null.",
    },
    VerifySpec: {
        "scheme": "How requests are signed: `stripe` and `standard-webhooks` (Svix too) as their makers define it, "
        "`hmac` as the other keys say, `token` and `basic` by showing the secret.",
        "secrets": "The secret, as `${NAME}`. Of several, separated by commas, any is accepted: while a secret is "
        "rotated, there are two.",
        "timestamp_header": "The header that carries the signed timestamp, for `{timestamp}`.",
        "id_header": "The header that carries the webhook's id, for `{id}`.",
        "algorithm": "The hash of the HMAC.",
    },
    RequestSpec: {
        "id": "The webhook's id. With account and type it is the duplicate key.",
        "type": "The webhook's type, which `on` names.",
        "occurred_at": "When it happened: seconds or milliseconds since 1970, or ISO 8601. Default: when it came.",
        "account": "Whose webhook it is, where one source serves several accounts.",
        "test": "Whether it is a test: such an event is marked, and not sent unless the gateway is told to.",
    },
    SubjectSpec: {
        "value": "The subject's value in the payload.",
        "browser": "Whether the value is unguessable, so that a browser may link it by itself.",
    },
    IdentitySpec: {
        "email": "The email address.",
        "phone": "The phone number, international or as dialled in `country`.",
        "first_name": "The first name.",
        "last_name": "The last name.",
        "country": "The country (ISO 3166-1 alpha-2) in which a national phone number is read.",
    },
    RuleSpec: {
        "on": "A type or a list of types; `*` matches anything. A type that no rule names is recorded as `unmapped`.",
        "emit": "The event's name in snake_case, GA4's where GA4 has one; null for a rule that only says which keys "
        "are one payment.",
        "name": "What the rule is called in skips and errors.",
        "when": "Whether the rule applies; if not, it is recorded as `filtered`. Default: always.",
        "kind": "What sort of event it is.",
        "once": "One key or a list of keys of the same payment. The event goes out only if none of them was claimed "
        "before for this name and account; it then claims all. Keys once claimed together stay one payment.",
        "of": "One key or a list of keys of the payment that this event belongs to: it takes over that purchase's "
        "order_id.",
        "hold": "Wait this long for a surer report of the same payment, and step back if one comes: `2m`.",
        "state_of": "The object whose state the event tells: when a newer state of it came before, this one is "
        "skipped as `stale`.",
        "wait_for_link": "How long an event with subjects but no visitor waits for a link: `5m`.",
        "at": "When it happened. Default: when the webhook says.",
        "properties": "What the event carries.",
        "context": "Where it happened, such as the page's url and path.",
        "privacy": "What the webhook asks about data, instead of an event: `forget` whom the subjects name, "
        "`forget_account`, or `export` what is kept of the person.",
        "allow_pii": "true lets properties repeat the email, phone or name of `identity`; otherwise such an event is "
        "skipped as `pii_leak`.",
    },
    SetupSpec: {
        "command": "The command that makes the endpoint; `{url}` is its address.",
        "each": "What the command repeats for every type that a rule names, as `{type}`.",
        "required": "Types that must be sent, and why.",
    },
    DestinationSpec: {
        "destination": "The destination's name.",
        "enabled_by": "The settings that switch it on: it is on when all of them are set.",
        "endpoint": "Where requests go; may use `${NAME}` and `${NAME:-default}`.",
        "event": "One event as this collector writes it, over id, name, event, kind, at, at_ms, user_id, identity, "
        "visitor, session, click_ids, linked_by, unlinked, late_for, properties, context, test, source, account, "
        "webhook_id, type, rule "
        "and settings.",
        "body": "The request's body, over `event` (or `events` in a batch), `secrets`, `settings` and `id`.",
        "product": "Which product's ids are meant by `visitor.<product>`. Default: the destination's name.",
        "kinds": "The kinds of events it takes; others are skipped as `not_routed`. Default: all.",
        "profile": "How identity is normalised before it is hashed.",
        "settings": "Plain settings that expressions see as `settings.<name>`; may use `${NAME}`.",
        "secrets": "Secrets that only `headers` and `body` see, as `secrets.<name>`; may use `${NAME}`.",
        "headers": "The request's headers, over `secrets`, `settings` and `id`, the idempotency key.",
        "sign": "How requests are signed.",
        "needs": "What an event must have; if not met, it is skipped as `no_person`. Default: nothing.",
        "names": "The collector's own names of events, by the gateway's.",
        "batch": "How many events go into one request. Default: one.",
        "concurrency": "How many requests are on their way at the same time.",
        "success": "Whether the answer, `status` and `body`, means that the event arrived. Default: any 2xx.",
        "retry": "Which answers are worth another try, and for how long.",
        "rejected": "Over the answer: the indexes, from 0, of a batch's events that were refused for good.",
        "park": "Answers that are not the event's fault, such as a wrong key or a quota: it waits, however long.",
        "uncertain": "What to do when no answer came and the collector would not recognise a repetition.",
        "dedup": "By what, and how long, the collector itself recognises a repeated event.",
        "rate": "How many requests it takes.",
        "endpoints": "Other URLs, by kind of event; may use `${NAME}`.",
        "only": "The events that go there; others are skipped as `not_routed`.",
        "except": "The events that do not go there; they are skipped as `not_routed`.",
        "when": "Consent, over what `event` sees; if not met, the event is skipped as `no_consent`.",
        "test_events": "Test events: `skip` or `forward` them, or `only` them. Default: as GATEWAY_TEST_EVENTS says.",
        "max_age": "Older events are skipped as `too_old`: `72h`.",
        "ordered": "Whether the events of one visitor go there one after another, in the order in which they happened.",
        "late": "Whether it is told, by an event of kind `identify`, of a link that came after an event went out "
        "without a visitor; `late_for` is then the id of that event.",
        "like": "The destination whose file this one is over: another instance of it.",
        "variables": "What its settings are called here, by what they are called in the file that it is like.",
    },
    RouteSpec: {
        "events": "Canonical names; `*` is a wildcard.",
        "sources": "Names of sources; `*` is a wildcard.",
        "accounts": "Accounts; `*` is a wildcard.",
    },
    ParkSpec: {"on": "Statuses. Default: 401, 402, 403.", "for": "How long to wait between two tries."},
    DedupSpec: {"field": "The field of the event.", "window": "For how long: `6h`."},
    RateSpec: {"per_second": "Requests a second, at the most."},
    SignSpec: {
        "secrets": "The secret to sign with, as `${NAME}`; of several, separated by commas, the first.",
        "scheme": "Standard Webhooks: the headers webhook-id, webhook-timestamp and webhook-signature.",
    },
    BatchSpec: {
        "max_events": "How many events one request may carry.",
        "max_bytes": "How many bytes its body may have.",
    },
    RetrySpec: {
        "on": "Statuses (429), their classes (5xx), and `network` for no answer. Default: 408, 425, 429, 5xx, network.",
        "for": "How long to try.",
    },
    TestsSpec: {"tests": "The tests, each with a store of its own."},
    TestSpec: {
        "name": "What must hold, in words; `gateway test -k` finds it by them.",
        "expect": "All events that go out, in order. What is written must be there; null means that it must not.",
        "sample": "A sample of this source, by its file's name without `.json`.",
        "payload": "A request body written out here.",
        "with": "What is different in the body, as a JSON merge patch: null removes a key, a list is replaced whole.",
        "headers": "Request headers, over the sample's.",
        "fetched": "The objects that the source's `fetch:` got, by name; a test fetches nothing.",
        "webhooks": "Several webhooks, one after another into one store.",
        "links": "Links that are known before the first webhook arrives.",
        "skips": "What must be recorded as skipped; there may be more.",
        "exact": "Whether events may have nothing but what is written.",
        "destination": "The destination whose requests are looked at.",
        "requests": "What it gets of each event: `url`, `headers` and `body`, or `skipped` with the reason.",
        "privacy": "What the webhooks ask about data, in order.",
    },
    WebhookSpec: {
        "sample": "A sample of this source, by its file's name without `.json`.",
        "payload": "A request body written out here.",
        "with": "What is different in the body, as a JSON merge patch: null removes a key, a list is replaced whole.",
        "headers": "Request headers, over the sample's.",
        "fetched": "The objects that the source's `fetch:` got, by name; a test fetches nothing.",
        "after": "How far the clock moves before it arrives: `10s`.",
    },
    LinkSpec: {
        "subjects": "The subjects that are linked, by name: `{email: ada@example.com}`.",
        "visitor_id": "The visitor, for every product without ids of its own.",
        "session_id": "The session, for every product without ids of its own.",
        "ids": "Visitor and session by product.",
    },
    ProductIds: {"visitor_id": "The product's id of the visitor.", "session_id": "The product's id of the session."},
    SkipSpec: {
        "reason": "Why it is skipped; `error` is a rule that failed.",
        "rule": "The rule that is skipped, by its name. Left out: any, or none.",
    },
}

# What a key may hold, beyond its type.

_TEXT: _Schema = {"type": ["string", "null"]}
_MAP: _Schema = {"type": ["object", "null"]}
_EVENT: Mapping[str, _Schema] = {
    "id": {"description": "The event's id, the same however often it is made.", **_TEXT},
    "name": {"description": "The event's name.", **_TEXT, **_OFFERED},
    "kind": {"description": "What sort of event it is.", "enum": ["group", "identify", "page", "track"]},
    "at": {"description": "When it happened: ISO 8601 in UTC with milliseconds.", **_TEXT},
    "user_id": {"description": "The user's id, as text; an email address is hashed.", **_TEXT},
    "identity": {"description": "Hashes by normalisation profile and field.", **_MAP},
    "visitor": {"description": "The visitor: ids by product, click_ids, linked_by, linked_at.", **_MAP},
    "unlinked": {"description": "Why there is no visitor: no_subject, unknown_subject or expired.", **_TEXT},
    "late_for": {"description": "The id of the event that a late link is told of.", **_TEXT},
    "subjects": {"description": "The names of its subjects, in order of trust.", "items": {"type": "string"}}
    | {"type": ["array", "null"]},
    "properties": {"description": "What it carries; money is a number in major units.", **_MAP},
    "context": {"description": "Where it happened.", **_MAP},
    "test": {"description": "Whether it is a test.", "type": ["boolean", "null"]},
    "source": {"description": "The source's name.", **_TEXT},
    "account": {"description": "Whose webhook it is.", **_TEXT},
    "webhook_id": {"description": "The webhook's id.", **_TEXT},
    "type": {"description": "The webhook's type.", **_TEXT},
    "rule": {"description": "The rule that made it.", **_TEXT},
}
_PAYLOAD: _Schema = {"type": ["object", "array"]}
_PATCH: _Schema = {"type": "object"}
_SETTING: _Schema = {
    "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
    "patternErrorMessage": "Write the setting's name, without ${}.",
}

_SUBJECT: _Schema = {"$ref": "#/$defs/subject"}

_FORMS: Mapping[type[msgspec.Struct], Mapping[str, _Schema]] = {
    SourceSpec: {
        "subjects": {
            "properties": {name: {"description": text, **_SUBJECT} for name, text in _SUBJECTS.items()},
            "additionalProperties": _SUBJECT,
        },
        "visitor": _structure({}),
        "wait_for_link": _DURATION,
        "currencies": {
            "propertyNames": {"pattern": "^[A-Z]{3}$", "patternErrorMessage": "Write a currency's code, such as ISK."},
            "additionalProperties": {"type": "integer", "minimum": 0},
        },
        "tables": {"additionalProperties": {"type": "object"}},
        "fetch": {
            "propertyNames": {**_SNAKE_CASE},
            "maxProperties": MAX_FETCHES,
            "additionalProperties": {"$ref": "#/$defs/FetchSpec"},
        },
    },
    FetchSpec: {
        "on": {"minItems": 1},
        "url": {
            "pattern": r"^https?://[^/?#{}@\s$]+(/(\{[^{}/]+\}|[^{}/?#\s$]*))*(\?[^{}#\s$]*)?$",
            "patternErrorMessage": "Write https://host/path/{id}: a placeholder is a whole segment of the path.",
        },
        "with": _structure({}),
        "headers": {"additionalProperties": {"type": "string"}},
        "enabled_by": {"items": {"type": "string", **_SETTING}},
    },
    VerifySpec: {
        "signature": {
            "pattern": _placeholders("signature", "timestamp|id"),
            "patternErrorMessage": "Write {signature} once, and besides it only {timestamp} and {id}.",
        },
        "payload": {
            "pattern": _placeholders("body", "timestamp|id|url"),
            "patternErrorMessage": "Write {body} once, and besides it only {timestamp}, {id} and {url}.",
        },
        "algorithm": {"enum": ["sha1", "sha256", "sha384", "sha512"]},
        "tolerance": {"exclusiveMinimum": 0},
    },
    RuleSpec: {
        "on": {"minItems": 1},
        "emit": {**_SNAKE_CASE, **_OFFERED},
        "hold": _DURATION,
        "wait_for_link": _DURATION,
        "properties": _structure(_PROPERTIES),
        "context": _structure(_CONTEXT),
    },
    DestinationSpec: {
        "enabled_by": {"items": {"type": "string", **_SETTING}},
        "endpoint": {
            "pattern": r"^(https?://|\$\{)",
            "patternErrorMessage": "Write an http(s) URL, or ${NAME} for a setting that holds one.",
        },
        "profile": {"enum": list(PROFILES)},
        "headers": _structure({}),
        "names": {"properties": {name: {"description": text, "type": "string"} for name, text in EVENTS.items()}},
        "concurrency": {"minimum": 1},
        "max_age": _DURATION,
    },
    ParkSpec: {"on": {"items": {"type": "integer", "minimum": 100, "maximum": 599}}, "for": _DURATION},
    DedupSpec: {"window": _DURATION},
    BatchSpec: {"max_events": {"minimum": 1}, "max_bytes": {"minimum": 1}},
    RetrySpec: {
        "on": {
            "items": {
                "type": ["integer", "string"],
                "minimum": 100,
                "maximum": 599,
                "pattern": "^([1-5]xx|network)$",
                "patternErrorMessage": "Write a status such as 429, a class such as 5xx, or network.",
            }
        },
        "for": _DURATION,
    },
    TestSpec: {
        "expect": {"items": {"type": "object", "properties": _EVENT, "additionalProperties": False}},
        "requests": {"items": {"type": "object"}},
        "sample": {"type": "string"},
        "payload": _PAYLOAD,
        "with": _PATCH,
        "fetched": {"type": "object"},
    },
    WebhookSpec: {
        "sample": {"type": "string"},
        "payload": _PAYLOAD,
        "with": _PATCH,
        "fetched": {"type": "object"},
        "after": _DURATION,
    },
}

# Which keys need or exclude each other.

_OPEN: Mapping[Scheme, set[str]] = {
    "stripe": {"tolerance"},
    "standard-webhooks": {"tolerance", "secret_encoding", "secret_prefix"},
    "token": {"header", "signature"},
    "basic": {"header"},
}
"""The keys that a scheme leaves to the author, besides `secrets`; `hmac` leaves all."""


def _schemes() -> list[_Schema]:
    forms: dict[Scheme, _Schema] = {
        scheme: {"properties": {name: False for name in VerifySpec.__struct_fields__[2:] if name not in keys}}
        for scheme, keys in _OPEN.items()
    }
    forms["hmac"] = {"required": ["header"], "properties": {"header": {"type": "string", "minLength": 1}}}
    return [_if({"scheme": {"const": scheme}}, form) for scheme, form in forms.items()]


def _if(properties: _Schema, then: _Schema) -> _Schema:
    return {"if": {"properties": properties, "required": list(properties)}, "then": then}


_HAS_BODY: _Schema = {"anyOf": [{"required": ["sample"]}, {"required": ["payload"]}]}

_CONDITIONS: Mapping[type[msgspec.Struct], _Schema] = {
    VerifySpec: {"allOf": _schemes()},
    DestinationSpec: {
        "required": ["destination"],
        "anyOf": [{"required": ["like"]}, {"required": ["enabled_by", "endpoint", "event", "body"]}],
    },
    RuleSpec: {
        "anyOf": [
            {"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in ("emit", "once", "privacy")
        ]
    },
    TestSpec: {
        "anyOf": [*_HAS_BODY["anyOf"], {"required": ["webhooks"], "properties": {"webhooks": {"minItems": 1}}}],
        "not": {"required": ["sample", "payload"]},
        "allOf": [_if({name: True}, _HAS_BODY) for name in ("with", "headers", "fetched")],
    },
    WebhookSpec: {"oneOf": _HAS_BODY["anyOf"]},
}
