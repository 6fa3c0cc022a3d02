"""Objects that Kubernetes itself does not know: what the chart uses of them, as their own references define it.

Rules: Gateway API, "HTTPRoute" (v1); Prometheus Operator, "API reference" (monitoring.coreos.com/v1).
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Text = Annotated[str, Meta(min_length=1)]
Duration = Annotated[str, Meta(pattern=r"^([0-9]+(ms|[smhdwy]))+$")]
Labels = dict[str, str]


class Strict(Struct, forbid_unknown_fields=True, rename="camel"):
    """Takes no field but its own. They are written as in Kubernetes: `matchLabels`."""


class Metadata(Strict):
    name: Text
    namespace: Text
    labels: Labels
    annotations: Labels = {}


class Expression(Strict):
    key: Text
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[Text]


class Selector(Strict):
    match_labels: Labels
    match_expressions: list[Expression]


class Names(Strict):
    match_names: list[Text]


class Key(Strict):
    name: Text
    key: Text


class Authorization(Strict):
    type: Literal["Bearer"]
    credentials: Key


class Endpoint(Strict):
    port: Text
    path: Text
    interval: Duration
    scrape_timeout: Duration
    authorization: Authorization


class Monitored(Strict):
    selector: Selector
    namespace_selector: Names
    endpoints: list[Endpoint]


class ServiceMonitor(Strict, tag_field="kind"):
    api_version: str
    metadata: Metadata
    spec: Monitored


class Alert(Strict):
    alert: Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
    expr: Text
    labels: Labels
    annotations: Labels
    held_for: Duration | None = msgspec.field(name="for", default=None)


class Group(Strict):
    name: Text
    rules: Annotated[list[Alert], Meta(min_length=1)]


class Groups(Strict):
    groups: list[Group]


class PrometheusRule(Strict, tag_field="kind"):
    api_version: str
    metadata: Metadata
    spec: Groups


class Parent(Strict):
    name: Text
    namespace: Text | None = None
    section_name: Text | None = None


class Path(Strict):
    type: Literal["Exact", "PathPrefix"]
    value: Annotated[str, Meta(pattern="^/")]


class Match(Strict):
    path: Path


class Backend(Strict):
    name: Text
    port: Annotated[int, Meta(ge=1, le=65535)]


class RouteRule(Strict):
    matches: Annotated[list[Match], Meta(min_length=1, max_length=64)]
    backend_refs: list[Backend]


class Route(Strict):
    parent_refs: Annotated[list[Parent], Meta(min_length=1, max_length=32)]
    hostnames: Annotated[list[Text], Meta(max_length=16)]
    rules: Annotated[list[RouteRule], Meta(min_length=1, max_length=16)]


class HTTPRoute(Strict, tag_field="kind"):
    api_version: str
    metadata: Metadata
    spec: Route


def _as(kinds: Any) -> Callable[[Any], object]:
    return lambda thing: msgspec.convert(thing, kinds)


CUSTOM: dict[str, Callable[[Any], object]] = {
    "gateway.networking.k8s.io/v1": _as(HTTPRoute),
    "monitoring.coreos.com/v1": _as(ServiceMonitor | PrometheusRule),
}
"""By API version: checks an object, or raises `msgspec.ValidationError`."""
