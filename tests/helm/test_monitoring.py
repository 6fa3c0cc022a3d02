"""Alerts and dashboard ask for what the gateway exports, under labels that it has, in PromQL that parses."""

import re
import time
from collections.abc import Iterator

import httpx
import msgspec
import promql_parser as promql
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.server import running
from tests.helm.engine import CHART, Helm, Thing, documents, only
from tests.promises.collector import Collector
from tests.promises.served import Served, payment

TOKEN = "admin token of the tests 0123456789"
SCRAPED = {"namespace", "job", "pod", "instance"}
"""Labels that Prometheus puts on each series."""
SELECTOR = 'namespace="shop",job=~"gateway(-deliver)?"'
WITHIN = 30.0
UNSEEN = {"gateway_late_links_total"}
"""What a gateway exports only after more than a few payments: known by its name alone."""

Exported = dict[str, set[str]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return the labels of what a gateway exports: a payment arrived, one died, one was forged, all stored."""
    collector = Collector([(200, {}), (400, {})])
    with running(collector.app()) as url:
        sink = {"WEBHOOK_URL": f"{url}/sink", "WEBHOOK_SECRET": "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ="}
        served = Served(tmp_path_factory.mktemp("exported"), GATEWAY_ADMIN_TOKEN=TOKEN, **sink)
        with served.up():
            for number in range(2):
                assert served.post(payment(number)).is_success
                collector.wait_for(number + 1)
            assert served.post(payment(2), {"stripe-signature": "x"}).status_code == 401
            counted = scraped(served, until="gateway_deliveries_total")
        with served.up():  # what is stored is looked at first when it comes up
            return scraped(served, until="gateway_stored_deliveries") | counted


def scraped(served: Served, *, until: str) -> Exported:
    """Return the labels of each series, once there is one of this name."""
    deadline = time.monotonic() + WITHIN
    while not (found := series(served)).get(until):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return {name: labels for name, labels in found.items() if labels is not None}


def series(served: Served) -> dict[str, set[str] | None]:
    answer = httpx.get(f"{served.url}/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    found: dict[str, set[str] | None] = {}
    for family in text_string_to_metric_families(answer.text):
        found[f"{family.name}_total" if family.type == "counter" else family.name] = None
        for sample in family.samples:
            found[sample.name] = set(sample.labels)
    return found


@pytest.fixture(scope="module")
def dashboard() -> Thing:
    board: Thing = msgspec.json.decode((CHART / "files/dashboard.json").read_bytes())
    return board


def rules(helm: Helm, **values: object) -> list[Thing]:
    given = {"monitoring": {"prometheusRule": {"enabled": True, **values}}}
    found: list[Thing] = only(helm.template(given), "PrometheusRule")["spec"]["groups"][0]["rules"]
    return found


def queries(board: Thing) -> dict[str, list[str]]:
    """Return the queries of each panel, as Prometheus gets them."""
    return {
        panel["title"]: [
            target["expr"].replace("$__rate_interval", "2m").replace("$namespace", ".*").replace("$job", ".*")
            for target in panel["targets"]
        ]
        for panel in board["panels"]
        if panel["type"] != "row"
    }


def nodes(query: str) -> list[promql.Expr]:
    """Return all nodes of a query. Raises `ValueError` when it is no PromQL, or of types that do not fit."""
    found: list[promql.Expr] = []
    promql.walk(promql.parse(query), found.append)
    return found


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each series that a query asks for, with the labels that it asks for."""
    for node in nodes(query):
        vector = node.vector_selector if isinstance(node, promql.MatrixSelector) else node
        if isinstance(vector, promql.VectorSelector):
            assert vector.name is not None
            yield vector.name, {each.name for each in vector.matchers.matchers}


def grouped(query: str) -> set[str]:
    """Return the labels that the aggregations of a query keep."""
    kept: set[str] = set()
    for node in nodes(query):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            kept |= set(node.modifier.labels)
    return kept


def unknown(query: str, exported: Exported) -> set[str]:
    """Return what a query asks for and the gateway does not export: series, and labels of them."""
    wrong: set[str] = set()
    labels: set[str] = set()
    for name, asked in selectors(query):
        its = exported.get(name)
        if its is None and name not in UNSEEN:
            wrong.add(name)
        wrong |= {f"{name}{{{each}}}" for each in asked - SCRAPED - (its or set())}
        labels |= its or {"destination"}
    return wrong | grouped(query) - labels - SCRAPED


# Alerts


def test_each_alert_asks_for_what_the_gateway_exports(helm: Helm, exported: Exported) -> None:
    for rule in rules(helm):
        assert unknown(rule["expr"], exported) == set(), rule["alert"]


def test_what_is_not_exported_is_found_out(exported: Exported) -> None:
    query = 'sum by (planet) (rate(gateway_event_total[1h])) / sum(rate(gateway_events_total{moon="1"}[1h]))'
    assert unknown(query, exported) == {"planet", "gateway_event_total", "gateway_events_total{moon}"}
    with pytest.raises(ValueError, match="expected type matrix in call to function 'rate', got vector"):
        nodes("rate(gateway_events_total)")


def test_each_alert_is_about_this_release_alone(helm: Helm) -> None:
    for rule in rules(helm):
        for name, asked in selectors(rule["expr"]):
            assert {"namespace", "job"} <= asked, (rule["alert"], name)
        assert "SELECTOR" not in rule["expr"]


def test_the_series_of_another_scraper_can_be_named(helm: Helm) -> None:
    (gone,) = [each for each in rules(helm, selector='job="shop"') if each["alert"] == "GatewayGone"]
    assert gone["expr"] == 'absent(gateway_info{job="shop"})'


def test_the_jobs_that_alerts_and_dashboard_ask_for_are_those_that_are_scraped(helm: Helm) -> None:
    given = {"monitoring": {"serviceMonitor": {"enabled": True}}, "deliver": {"separate": True}}
    things = helm.template(given)
    (wanted,) = only(things, "ServiceMonitor")["spec"]["selector"]["matchExpressions"]
    component = "app.kubernetes.io/component"
    services = [each for each in things if each["kind"] == "Service"]
    jobs = {each["metadata"]["name"] for each in services if each["metadata"]["labels"][component] in wanted["values"]}
    assert jobs == {"gateway", "gateway-deliver"}  # a Service's name is its job's
    assert SELECTOR in rules(helm)[0]["expr"]


def test_metrics_are_fetched_with_the_token_of_the_secret(helm: Helm) -> None:
    (endpoint,) = only(helm.template({"monitoring": {"serviceMonitor": {"enabled": True}}}), "ServiceMonitor")["spec"][
        "endpoints"
    ]
    reference = {"name": "gateway", "key": "GATEWAY_ADMIN_TOKEN"}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": reference}


def test_an_alert_can_be_left_out_and_all_can_be_labelled(helm: Helm) -> None:
    found = {
        each["alert"]: each
        for each in rules(helm, disabled=["GatewayGone"], alertLabels={"severity": "page", "team": "shop"})
    }
    assert "GatewayGone" not in found
    assert found["GatewayDeadLetters"]["labels"] == {"severity": "page", "team": "shop"}


def test_those_that_can_be_left_out_are_those_that_there_are(helm: Helm) -> None:
    (schema,) = documents((CHART / "values.schema.json").read_text())
    its = schema["properties"]["monitoring"]["properties"]["prometheusRule"]["properties"]
    assert its["disabled"]["items"]["enum"] == [each["alert"] for each in rules(helm)]


def test_what_an_alert_tells_names_only_labels_that_it_keeps(helm: Helm) -> None:
    for rule in rules(helm):
        told = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", told)) <= grouped(rule["expr"]), rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description"}


# The dashboard


def test_each_panel_asks_for_what_the_gateway_exports(dashboard: Thing, exported: Exported) -> None:
    for title, asked in queries(dashboard).items():
        assert asked
        for query in asked:
            assert unknown(query, exported) == set(), title


def test_each_metric_is_on_the_dashboard(dashboard: Thing, exported: Exported) -> None:
    shown = {name for asked in queries(dashboard).values() for query in asked for name, _ in selectors(query)}
    bases = {re.sub("_(bucket|sum|count)$", "", each) for each in shown}
    own = {re.sub("_(bucket|sum|count)$", "", each) for each in exported if each.startswith("gateway_")}
    assert own | UNSEEN == {each for each in bases if each.startswith("gateway_")}


def test_each_query_asks_for_the_namespace_and_the_job_that_were_chosen(dashboard: Thing) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            for _, asked in selectors(target["expr"].replace("$__rate_interval", "2m")):
                assert {"namespace", "job"} <= asked
            assert target["datasource"]["uid"] == "${datasource}"
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "namespace", "job"]


def test_a_legend_names_only_labels_that_its_query_keeps(dashboard: Thing) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            query = target["expr"].replace("$__rate_interval", "2m")
            assert named <= grouped(query) | ({"pod"} if not grouped(query) else set()), panel["title"]


def test_panels_have_a_number_of_their_own_and_do_not_overlap(dashboard: Thing) -> None:
    panels = dashboard["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells


def test_the_dashboard_arrives_as_it_is(helm: Helm, dashboard: Thing) -> None:
    config = only(helm.template({"monitoring": {"dashboard": {"enabled": True}}}), "ConfigMap")
    assert msgspec.json.decode(config["data"]["gateway.json"]) == dashboard
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
