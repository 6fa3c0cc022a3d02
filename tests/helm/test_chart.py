"""What the chart makes of any values is valid, keeps to the `restricted` level, and fits the gateway that it runs."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import msgspec
import pytest

from gateway import __version__
from gateway.app import STOP_WITHIN, create_app
from gateway.cli import main
from gateway.sending import DEADLINE
from gateway.server import DRAIN
from gateway.settings import load_settings
from tests.helm.custom import CUSTOM
from tests.helm.engine import CHART, Helm, Refused, Thing, Version, container, documents, only, pods
from tests.helm.matrix import EVERYTHING, MAPPINGS, MATRIX, ROUTE

EACH = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
BOTH = pytest.mark.parametrize("version", ["v3", "v4"])
FILE = MATRIX["a file"]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


# Any values


@BOTH
@EACH
def test_the_linter_finds_nothing(helm: Helm, values: Thing, version: Version) -> None:
    assert helm.lint(values, version) == []


@EACH
def test_every_object_is_valid(helm: Helm, values: Thing) -> None:
    for each in helm.template(values):
        validate(msgspec.json.encode(each))


@cache
def validate(encoded: bytes) -> None:
    """Validate an object, once however many values make the same of it."""
    thing = msgspec.json.decode(encoded)
    if thing["apiVersion"] in CUSTOM:
        CUSTOM[thing["apiVersion"]](thing)
    else:
        kubernetes_validate.validate(thing, "1.37", strict=True)


@pytest.mark.parametrize(("version", "kind"), [("v1", "Service"), ("monitoring.coreos.com/v1", "ServiceMonitor")])
def test_what_is_not_valid_is_found_out(version: str, kind: str) -> None:
    thing = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": {"invented": 1}}
    with pytest.raises((kubernetes_validate.ValidationError, msgspec.ValidationError)):
        validate(msgspec.json.encode(thing))


@EACH
def test_both_versions_of_helm_make_the_same_of_it(helm: Helm, values: Thing) -> None:
    assert by_name(helm.template(values, "v3")) == by_name(helm.template(values, "v4"))


def by_name(things: list[Thing]) -> dict[tuple[str, str], Thing]:
    found = {(each["kind"], each["metadata"]["name"]): each for each in things}
    assert len(found) == len(things)
    return found


@EACH
def test_each_object_is_in_the_release_s_namespace_and_bears_its_labels(helm: Helm, values: Thing) -> None:
    for each in helm.template(values):
        assert each["metadata"]["namespace"] == "shop"
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "gateway"
        assert labels["app.kubernetes.io/version"] == __version__


@EACH
def test_every_pod_keeps_to_the_restricted_level(helm: Helm, values: Thing) -> None:
    found = pods(helm.template(values))
    assert found
    for name, pod in found.items():
        assert list(violations(pod)) == [], name


VOLUMES = {
    *("name", "configMap", "csi", "downwardAPI", "emptyDir"),
    *("ephemeral", "persistentVolumeClaim", "projected", "secret"),
}


def violations(pod: Thing) -> Iterator[str]:
    """Yield what the Pod Security Standards' level `restricted` forbids, and what we forbid beyond it."""
    security = pod["securityContext"]
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "system calls are not filtered"
    if any(pod.get(each) for each in ("hostNetwork", "hostPID", "hostIPC", "hostUsers")):
        yield "shares the host's namespaces"
    for volume in pod.get("volumes", []):
        if extra := volume.keys() - VOLUMES:
            yield f"volume {volume['name']}: {extra}"
    for each in [*pod["containers"], *pod.get("initContainers", [])]:
        held = each["securityContext"]
        if held["allowPrivilegeEscalation"] is not False or held.get("privileged"):
            yield "may gain privileges"
        if held["capabilities"] != {"drop": ["ALL"]}:
            yield "has capabilities"
        if any("hostPort" in port for port in each.get("ports", [])):
            yield "takes a port of the host"
        if held["readOnlyRootFilesystem"] is not True:  # ours
            yield "may write to its image"
    if pod["automountServiceAccountToken"] is not False or pod["enableServiceLinks"] is not False:  # ours
        yield "is told of the cluster"


@EACH
def test_no_object_is_a_secret_or_holds_one(helm: Helm, values: Thing) -> None:
    things = helm.template(values)
    assert all(each["kind"] != "Secret" for each in things)
    for pod in pods(things).values():
        for variable in pod["containers"][0].get("env", []):
            secret = variable["name"].endswith(("SECRET", "TOKEN", "PASSWORD", "KEY"))
            assert not secret or "secretKeyRef" in variable["valueFrom"]


@EACH
def test_selectors_find_their_own_pods_and_no_others(helm: Helm, values: Thing) -> None:
    things = helm.template(values)
    made = {each["metadata"]["name"]: each for each in things if each["kind"] in {"Deployment", "StatefulSet"}}
    for each in things:
        if each["kind"] not in {"Service", "PodDisruptionBudget", "Deployment", "StatefulSet"}:
            continue
        wanted = each["spec"]["selector"].get("matchLabels", each["spec"]["selector"])
        labels = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in made.items()}
        assert [name for name, its in labels.items() if wanted.items() <= its.items()] == [each["metadata"]["name"]]


def test_names_stay_short_enough_for_what_kubernetes_puts_behind_them(helm: Helm) -> None:
    for each in helm.template(MATRIX["everything, a Redis for a trial"], release="a" * 53):
        longest = 63 - len("-0123456789") if each["kind"] == "StatefulSet" else 63
        assert len(each["metadata"]["name"]) <= longest


# The gateway


def test_the_chart_is_of_the_gateway_s_version() -> None:
    (chart,) = documents((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


@EACH
def test_the_command_line_takes_the_arguments(helm: Helm, values: Thing) -> None:
    for name, pod in pods(helm.template(values)).items():
        command, *arguments = pod["containers"][0].get("args", [None])
        if command is not None:
            assert main.commands[command].make_context(command, arguments).params, name
        else:
            assert name == "StatefulSet/gateway-redis"


@EACH
def test_each_port_that_is_named_is_the_one_that_the_gateway_is_told(helm: Helm, values: Thing) -> None:
    for name, pod in pods(helm.template(values)).items():
        first = pod["containers"][0]
        if name.startswith("Deployment/"):
            port = int(first["args"][first["args"].index("--port") + 1])
            assert first["ports"] == [{"name": "http", "containerPort": port, "protocol": "TCP"}]
            assert {first[probe]["httpGet"]["port"] for probe in PROBES} == {"http"}


def test_what_is_probed_scraped_and_exposed_is_there(helm: Helm, tmp_path: Path) -> None:
    things = helm.template(EVERYTHING)
    first = container(things)
    paths = {first[probe]["httpGet"]["path"] for probe in PROBES}
    paths |= {each["path"] for each in only(things, "ServiceMonitor")["spec"]["endpoints"]}
    exposed = {each["path"] for each in only(things, "Ingress")["spec"]["rules"][0]["http"]["paths"]}
    app = create_app(
        load_settings({"GATEWAY_STORE": f"sqlite:///{tmp_path}/gateway.db", "GATEWAY_ADMIN_TOKEN": "t" * 32})
    )
    served = {route.path for route in app.routes}
    assert paths | exposed <= served
    assert exposed == {"/webhooks", "/link", "/link.js"}


def test_the_settings_that_the_chart_makes_are_those_of_the_gateway(helm: Helm) -> None:
    plain = load_settings({})
    made = load_settings(environment(helm.template({**FILE, "mappings": MAPPINGS, "settings": EVERYTHING["settings"]})))
    assert (made.store_path, made.exports) == (Path("/data/gateway.db"), Path("/data/exports"))
    assert made.mappings == Path("/etc/gateway/mappings") != plain.mappings
    assert (made.max_body, made.wait_aof, made.link_origins) == (2097152, True, ("https://shop.example",))


def environment(things: list[Thing]) -> dict[str, str]:
    """Return the plain variables of the gateway's container."""
    return {each["name"]: each["value"] for each in container(things)["env"] if "value" in each}


def test_what_the_gateway_writes_to_is_a_volume(helm: Helm) -> None:
    for values in MATRIX.values():
        things = helm.template(values)
        mounts = {each["mountPath"] for each in container(things)["volumeMounts"] if not each.get("readOnly")}
        assert {"/tmp", "/data"} <= mounts
        assert environment(things)["GATEWAY_EXPORTS"].startswith("/data/")


def test_a_pod_without_its_store_s_address_does_not_start(helm: Helm) -> None:
    store = next(each for each in container(helm.template())["env"] if each["name"] == "GATEWAY_STORE")
    assert store["valueFrom"]["secretKeyRef"] == {"name": "gateway", "key": "GATEWAY_STORE"}  # and not `optional`
    assert container(helm.template())["envFrom"] == [{"secretRef": {"name": "gateway"}}]


def test_an_edit_of_mappings_reaches_a_gateway_that_looks_for_it(helm: Helm) -> None:
    for name in ("mappings by value", "mappings that are there"):
        first = container(helm.template(MATRIX[name]))
        folders = {each["mountPath"]: each for each in first["volumeMounts"] if each["mountPath"].startswith("/etc/")}
        assert folders.keys() == {"/etc/gateway/mappings/sources", "/etc/gateway/mappings/destinations"}
        assert all("subPath" not in each for each in folders.values())  # the kubelet never renews one
        assert "--reload" in first["args"]


def test_mappings_arrive_as_they_were_given(helm: Helm) -> None:
    text = '# on: "{{ .Values.secret.name }}"\nsource: acme\nrules:\n  - on: a.*\n    emit: b\n\n'
    given = {"sources": {"a.yaml": text}, "destinations": MAPPINGS["destinations"]}
    assert only(helm.template({"mappings": given}), "ConfigMap", "gateway-sources")["data"] == {"a.yaml": text}


def test_there_is_time_for_a_stop_to_drain(helm: Helm) -> None:
    for leave in (0, 10, 60):
        stop = {"rollout": {"leaveSeconds": leave}}
        with pytest.raises(Refused, match=f"write {leave + 40} or more"):
            helm.template({**stop, "terminationGracePeriodSeconds": leave + 39})
        (pod, *_) = pods(helm.template({**stop, "terminationGracePeriodSeconds": leave + 40})).values()
        assert pod["terminationGracePeriodSeconds"] - leave >= DRAIN + STOP_WITHIN + DEADLINE


def test_an_update_takes_no_pod_away_before_another_is_ready(helm: Helm) -> None:
    spec = only(helm.template(), "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["replicas"] == 2
    assert container(helm.template())["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}


# Choices


def test_a_file_has_one_process_at_a_time_and_a_volume_that_stays(helm: Helm) -> None:
    things = helm.template(FILE)
    assert only(things, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert only(things, "PersistentVolumeClaim")["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert environment(things)["GATEWAY_STORE"] == "sqlite:////data/gateway.db"
    assert not [each for each in things if each["kind"] in {"PodDisruptionBudget", "Pod"}]


def test_roles_apart_take_in_here_and_deliver_there(helm: Helm) -> None:
    things = helm.template(MATRIX["roles apart"])
    assert "--no-deliver" in container(things)["args"]
    assert container(things, "gateway-deliver")["args"][0] == "deliver"
    assert "--no-deliver" not in container(helm.template())["args"]


def test_an_autoscaler_decides_how_many_there_are(helm: Helm) -> None:
    things = helm.template(MATRIX["autoscaling"])
    assert "replicas" not in only(things, "Deployment")["spec"]
    scaled = only(things, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert scaled == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gateway"}


def test_an_http_route_and_an_ingress_expose_the_same(helm: Helm) -> None:
    things = helm.template(EVERYTHING)
    ingress = only(things, "Ingress")["spec"]["rules"]
    route = only(things, "HTTPRoute")["spec"]
    assert [each["host"] for each in ingress] == ["gateway.example", "pay.example"]
    kinds = {"PathPrefix": "Prefix", "Exact": "Exact"}
    matched = [(each["path"]["value"], kinds[each["path"]["type"]]) for each in route["rules"][0]["matches"]]
    assert matched == [(each["path"], each["pathType"]) for each in ingress[0]["http"]["paths"]]
    assert route["parentRefs"] == ROUTE["parentRefs"]
    assert route["rules"][0]["backendRefs"] == [{"name": "gateway", "port": 8080}]


def test_pods_reach_dns_their_redis_and_https_and_nothing_else(helm: Helm) -> None:
    policy = only(helm.template(), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 6379, 443}
    with_file = only(helm.template(FILE), "NetworkPolicy")["spec"]
    assert {port["port"] for rule in with_file["egress"] for port in rule["ports"]} == {53, 443}


def test_the_trial_s_redis_is_for_the_gateway_s_pods_alone(helm: Helm) -> None:
    (rule,) = only(helm.template(MATRIX["a Redis for a trial"]), "NetworkPolicy", "gateway-redis")["spec"]["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "gateway"
    assert "namespaceSelector" not in peer


def test_a_digest_takes_the_place_of_a_tag(helm: Helm) -> None:
    assert container(helm.template())["image"] == f"webhook-translation-gateway:{__version__}"
    assert container(helm.template({"image": {"tag": "2"}}))["image"] == "webhook-translation-gateway:2"
    digest = EVERYTHING["image"]["digest"]
    assert container(helm.template(EVERYTHING))["image"] == f"registry.example/team/gateway@{digest}"
