"""Values that cannot work are refused before anything reaches a cluster, and the message says which."""

import pytest

from tests.helm.engine import CHART, Helm, Refused, Thing, documents, only
from tests.helm.matrix import MATRIX

SQLITE: Thing = {"store": {"kind": "sqlite"}, "replicas": 1}
DIGEST = f"sha256:{'0a' * 32}"

REFUSED: dict[str, tuple[Thing, str]] = {
    # misspelt, or of the wrong kind
    "an unknown value": ({"replica": 3}, "additional properties 'replica' not allowed"),
    "an unknown value, deep": ({"store": {"trial": {"sise": "1Gi"}}}, "additional properties 'sise' not allowed"),
    "a number as text": ({"replicas": "two"}, "at '/replicas': got string, want integer"),
    "a size that is none": ({"store": {"sqlite": {"size": "ten"}}}, "at '/store/sqlite/size': 'ten' does not match"),
    "an interval that is none": (
        {"monitoring": {"serviceMonitor": {"interval": "0s"}}},
        "at '/monitoring/serviceMonitor/interval'",
    ),
    "a port that is none": ({"service": {"port": 65536}}, "at '/service/port'"),
    "a store that is none": ({"store": {"kind": "postgres"}}, "at '/store/kind': value must be one of 'redis'"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "at '/image/digest'"),
    "a tag with a digest": ({"image": {"repository": f"a@{DIGEST}"}}, "at '/image/repository'"),
    "a name that is too long": ({"fullnameOverride": "a" * 47}, "at '/fullnameOverride'"),
    "a name that breaks out": ({"secret": {"name": "a}, key: b"}}, "at '/secret/name'"),
    "an image that breaks out": (
        {"store": {"trial": {"image": "redis\nhostNetwork: true"}}},
        "at '/store/trial/image'",
    ),
    "a Redis setting that breaks out": (
        {"store": {"trial": {"maxmemory": "1mb\nrequirepass x"}}},
        "at '/store/trial/maxmemory'",
    ),
    # a file and several
    "replicas of a file": ({"store": {"kind": "sqlite"}}, "replicas: with store.kind `sqlite` write 1 (or 0)"),
    "an autoscaler over a file": (
        {**SQLITE, "autoscaling": {"enabled": True}},
        "so autoscaling.enabled and deliver.separate stay false",
    ),
    "roles apart over a file": (
        {**SQLITE, "deliver": {"separate": True}},
        "so autoscaling.enabled and deliver.separate stay false",
    ),
    # what only goes together
    "an Ingress without a host": ({"ingress": {"enabled": True}}, "at '/ingress/hosts': minItems"),
    "an HTTPRoute without a Gateway": ({"httpRoute": {"enabled": True}}, "at '/httpRoute/parentRefs': minItems"),
    "half of the mappings": ({"mappings": {"sources": {"a.yaml": "source: a"}}}, "`gateway init my-mappings` writes"),
    "half of the mappings' ConfigMaps": ({"mappings": {"existing": {"destinations": "a"}}}, "give both"),
    "a mapping that is no file of one": (
        {"mappings": {"sources": {"../a": "source: a"}}},
        "invalid propertyName '../a'",
    ),
    "fewer at most than at least": (
        {"autoscaling": {"enabled": True, "minReplicas": 7}},
        "minReplicas is more than maxReplicas",
    ),
    "an update that can never begin": ({"rollout": {"maxSurge": 0}}, "nothing could ever be replaced"),
    "a path that is none": ({"exposed": [{"path": "webhooks", "type": "Exact"}]}, "at '/exposed/0/path'"),
    # secrets, and what the chart sets
    "a secret among the settings": (
        {"settings": {"STRIPE_WEBHOOK_SECRET": "whsec_x"}},
        "put it into the Secret `gateway`",
    ),
    "a token among the settings": ({"settings": {"META_ACCESS_TOKEN": "x"}}, "settings: META_ACCESS_TOKEN is a secret"),
    "a key among the settings": ({"settings": {"DATALYR_API_KEY": "x"}}, "settings: DATALYR_API_KEY is a secret"),
    "the alerts' address among the settings": ({"settings": {"GATEWAY_ALERT_WEBHOOK": "https://x"}}, "is a secret"),
    "a collector's headers among the settings": ({"settings": {"OTEL_EXPORTER_OTLP_HEADERS": "x"}}, "is a secret"),
    "a secret as it is": (
        {"extraEnv": [{"name": "WEBHOOK_SECRET", "value": "x"}]},
        "extraEnv: WEBHOOK_SECRET is a secret",
    ),
    "another store than was chosen": (
        {"settings": {"GATEWAY_STORE": "redis://x"}},
        "the chart sets GATEWAY_STORE: choose by `store`",
    ),
    "another store by a file": (
        {"extraEnv": [{"name": "GATEWAY_STORE_FILE", "value": "/x"}]},
        "extraEnv: the chart sets GATEWAY_STORE_FILE",
    ),
    # what the restricted level forbids
    "root": ({"podSecurityContext": {"runAsUser": 0}}, "at '/podSecurityContext/runAsUser'"),
    "maybe root": ({"podSecurityContext": {"runAsNonRoot": False}}, "at '/podSecurityContext/runAsNonRoot'"),
    "every system call": (
        {"podSecurityContext": {"seccompProfile": {"type": "Unconfined"}}},
        "at '/podSecurityContext/seccompProfile/type'",
    ),
    # what would aim alerts or services at others
    "a label that the selectors use": (
        {"podLabels": {"app.kubernetes.io/component": "redis"}},
        "invalid propertyName 'app.kubernetes.io/component'",
    ),
    "a selector that breaks out": (
        {"monitoring": {"prometheusRule": {"selector": 'job="a"} or vector(1) #'}}},
        "at '/monitoring/prometheusRule/selector'",
    ),
    "an alert that there is not": (
        {"monitoring": {"prometheusRule": {"disabled": ["GatewayGne"]}}},
        "at '/monitoring/prometheusRule/disabled/0'",
    ),
}


@pytest.mark.parametrize("version", ["v3", "v4"])
@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_values_that_cannot_work_are_refused(helm: Helm, values: Thing, said: str, version: str) -> None:
    with pytest.raises(Refused) as refused:
        helm.template(values, "v3" if version == "v3" else "v4")
    assert said in str(refused.value)


def test_a_misspelling_is_refused_at_every_depth() -> None:
    (schema,) = documents((CHART / "values.schema.json").read_text())
    (values,) = documents((CHART / "values.yaml").read_text())
    assert schema["additionalProperties"] is False
    assert open_objects(schema, values) == []


def open_objects(schema: Thing, values: Thing, path: str = "") -> list[str]:
    """Return the values with keys of their own whose schema takes any other key."""
    found: list[str] = []
    for name, value in values.items():
        its = schema["properties"][name]
        if isinstance(value, dict) and value and "properties" in its:
            if its.get("additionalProperties") is not False:
                found.append(f"{path}{name}")
            found += open_objects(its, value, f"{path}{name}.")
    return found


def test_every_value_is_in_the_schema_and_every_property_has_a_value() -> None:
    (schema,) = documents((CHART / "values.schema.json").read_text())
    (values,) = documents((CHART / "values.yaml").read_text())
    assert values.keys() == schema["properties"].keys() - {"global"}


@pytest.mark.parametrize(
    "name", ["GATEWAY_SECRET_KEY_FILE", "LAYERSYNC_KEY_HEADER", "WEBHOOK_URL", "GATEWAY_PARTITIONS"]
)
def test_a_setting_that_is_no_secret_may_be_a_value(helm: Helm, name: str) -> None:
    pod = only(helm.template({"settings": {name: "x"}}), "Deployment")["spec"]["template"]["spec"]
    assert {"name": name, "value": "x"} in pod["containers"][0]["env"]


def test_a_chart_that_is_part_of_another_takes_its_globals(helm: Helm) -> None:
    assert helm.template({"global": {"registry": "a"}}) == helm.template()


# What an install prints


def test_the_notes_say_how_to_make_the_secret_that_is_waited_for(helm: Helm) -> None:
    told = helm.notes({"secret": {"name": "mine"}})
    assert "kubectl -n shop create secret generic mine \\\n    --from-literal=GATEWAY_STORE='redis://" in told
    assert "helm test gateway -n shop --logs" in told


def test_the_notes_of_a_trial_say_that_it_is_one(helm: Helm) -> None:
    told = helm.notes(MATRIX["a Redis for a trial"])
    assert '--from-literal=REDIS_PASSWORD="$(openssl rand -hex 24)"' in told
    assert "WARNING: the Redis of store.kind `trial` is one pod with one disk." in told
    assert "WARNING" not in helm.notes()


def test_the_notes_end_with_the_way_in(helm: Helm) -> None:
    assert "port-forward service/gateway 8080:80" in helm.notes()
    for name in ("an Ingress", "an HTTPRoute"):
        told = helm.notes(MATRIX[name])
        assert "-- gateway check --setup stripe --url https://gateway.example" in told
        assert "port-forward" not in told


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_a_command_of_the_notes_can_be_copied_whole(helm: Helm, values: Thing) -> None:
    lines = helm.notes(values).splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert line.rstrip() == line
        assert line.endswith("\\") == following.startswith("    --")
