"""Values that people install with, by name: each is rendered, validated and held to the promises."""

from tests.helm.engine import Thing

SOURCE = "source: acme\nverify: {scheme: token, header: X-Token, secrets: secret}\n"

INGRESS: Thing = {
    "enabled": True,
    "className": "nginx",
    "annotations": {"cert-manager.io/cluster-issuer": "main"},
    "hosts": ["gateway.example", "pay.example"],
    "tls": [{"secretName": "tls", "hosts": ["gateway.example", "pay.example"]}],
}
ROUTE: Thing = {
    "enabled": True,
    "annotations": {"team": "shop"},
    "parentRefs": [{"name": "public", "namespace": "infra", "sectionName": "https"}],
    "hostnames": ["gateway.example"],
}
MONITORING: Thing = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "alertLabels": {"team": "shop"}},
    "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Shop"}},
}
MAPPINGS: Thing = {"sources": {"acme.yaml": SOURCE}, "destinations": {"meta.yaml": "destination: meta\n"}}
EVERYTHING: Thing = {
    "image": {"repository": "registry.example/team/gateway", "digest": f"sha256:{'0a' * 32}", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "secret": {"name": "settings"},
    "settings": {"GATEWAY_LINK_ORIGINS": "https://shop.example", "GATEWAY_MAX_BODY": 2097152, "GATEWAY_WAIT_AOF": True},
    "extraEnv": [{"name": "META_ACCESS_TOKEN", "valueFrom": {"secretKeyRef": {"name": "meta", "key": "token"}}}],
    "extraEnvFrom": [{"secretRef": {"name": "more"}}],
    "extraVolumes": [{"name": "more", "secret": {"secretName": "more"}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/run/secrets/more", "readOnly": True}],
    "store": {"kind": "redis", "url": {"secretName": "redis", "key": "url"}},
    "deliver": {"separate": True, "replicas": 3, "resources": {"requests": {"cpu": 1}}},
    "mappings": MAPPINGS,
    "exports": {"existingClaim": "exports"},
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"internal": "true"}},
    "ingress": INGRESS,
    "httpRoute": ROUTE,
    "autoscaling": {"enabled": True},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "redisPorts": [6380, 26379],
        "redisTo": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "httpsTo": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}],
        "extraEgress": [{"ports": [{"port": 4318, "protocol": "TCP"}]}],
    },
    "serviceAccount": {"annotations": {"role": "gateway"}},
    "monitoring": MONITORING,
    "annotations": {"team": "shop"},
    "podAnnotations": {"team": "shop"},
    "podLabels": {"team": "shop"},
    "priorityClassName": "high",
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "shop", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
}

MATRIX: dict[str, Thing] = {
    "defaults": {},
    "a Redis": {"store": {"kind": "redis", "url": {"secretName": "redis", "key": "url"}}},
    "a Redis for a trial": {"store": {"kind": "trial", "trial": {"storageClass": "fast"}}},
    "a file": {"store": {"kind": "sqlite", "sqlite": {"storageClass": "fast"}}, "replicas": 1},
    "a file on a volume that is there": {
        "store": {"kind": "sqlite", "sqlite": {"existingClaim": "mine"}},
        "replicas": 1,
    },
    "an Ingress": {"ingress": INGRESS},
    "an HTTPRoute": {"httpRoute": ROUTE},
    "autoscaling": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 9}},
    "roles apart": {"deliver": {"separate": True}},
    "mappings by value": {"mappings": MAPPINGS},
    "mappings that are there": {"mappings": {"existing": {"sources": "my-sources", "destinations": "my-destinations"}}},
    "monitoring": {"monitoring": MONITORING},
    "nothing that can be left out": {
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
        "topologySpread": [],
        "resources": None,
        "rollout": {"leaveSeconds": 0},
    },
    "users of the cluster's choice": {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    },
    "everything": EVERYTHING,
    "everything, a Redis for a trial": {**EVERYTHING, "store": {"kind": "trial"}},
}
