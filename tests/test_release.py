"""What is shipped beside the code is true: compose.yaml, SECURITY.md, the locks, the audit, the changelog."""

import importlib.machinery
import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from gateway import __version__
from gateway.settings import load_settings
from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.servers import Server, free_port

ROOT = Path(__file__).parents[1]
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
ENV = {"REDIS_PASSWORD": "of-the-tests", "GATEWAY_SECRET_KEY": KEY}


def compose() -> Any:
    """Return the services of compose.yaml as Compose would read them, with `.env` put in."""
    text = (ROOT / "compose.yaml").read_text()
    text = re.sub(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}", lambda m: ENV.get(m[1]) or m[3], text)
    return YAML(typ="safe").load(text.replace("$$", "$"))["services"]


def test_compose_is_valid() -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_refuses_to_start_without_a_password() -> None:
    assert re.search(r"GATEWAY_STORE: redis://:\$\{REDIS_PASSWORD:\?", (ROOT / "compose.yaml").read_text())


@pytest.mark.parametrize("name", ["gateway", "redis"])
def test_no_service_can_do_more_than_it_must(name: str) -> None:
    service = compose()[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_redis_is_published_nowhere_and_reaches_nobody() -> None:
    whole = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())
    redis = whole["services"]["redis"]
    assert "ports" not in redis
    assert [whole["networks"][name]["internal"] for name in redis["networks"]] == [True]


def test_the_gateway_is_published_to_this_machine_alone() -> None:
    assert all(port.startswith("127.0.0.1:") for port in compose()["gateway"]["ports"])


def test_the_gateway_takes_the_settings_of_compose() -> None:
    settings = load_settings(ENV | compose()["gateway"]["environment"])
    assert settings.store_shown == "redis://***@redis:6379/0"
    assert len(settings.master_key()) == 32


async def test_the_redis_of_compose_leaves_nothing_to_warn_of(tmp_path: Path) -> None:
    redis = compose()["redis"]
    *_, command = redis["command"]
    for name, value in redis["environment"].items():
        command = command.replace(f'"${name}"', str(value).split(" #")[0])
    program, *settings = shlex.split(command.removeprefix("exec ").replace("--dir /data", ""))
    assert program == "redis-server"
    server = Server(*settings, port=free_port()).start()
    store = await RedisStore.open(f"redis://:{ENV['REDIS_PASSWORD']}@127.0.0.1:{server.port}", FINGERPRINT)
    assert await store.warnings() == []
    await store.close()
    server.remove()


def test_compose_builds_this_version() -> None:
    assert compose()["gateway"]["image"] == f"webhook-translation-gateway:{__version__}"


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_each_page_that_security_names_exists() -> None:
    named = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "SECURITY.md").read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_each_setting_that_security_names_is_documented() -> None:
    named = set(re.findall(r"\bGATEWAY_[A-Z_]+\b", (ROOT / "SECURITY.md").read_text()))
    assert named <= set(re.findall(r"\bGATEWAY_[A-Z_]+\b", (ROOT / "README.md").read_text()))


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements.build.lock"])
def test_each_locked_package_has_a_version_and_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text().replace("\\\n", "")
    for line in filter(lambda line: line and not line.startswith("#"), text.splitlines()):
        assert "--hash=sha256:" in line
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", line)


def test_the_lock_has_what_the_package_asks_for() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    for each in map(Requirement, asked):
        assert each.specifier.contains(locked[canonicalize_name(each.name)]), each


def audited(*packages: dict[str, object]) -> tuple[int, str]:
    """Return what .ci/audit says of a report of pip-audit's."""
    loader = importlib.machinery.SourceFileLoader("audit", str(ROOT / ".ci" / "audit"))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec is not None
    audit = importlib.util.module_from_spec(spec)
    loader.exec_module(audit)
    found: tuple[int, str] = audit.verdict(json.dumps({"dependencies": packages, "fixes": []}) if packages else "")
    return found


FINE: dict[str, object] = {"name": "fine", "version": "1", "vulns": []}
UNKNOWN: dict[str, object] = {"name": "unknown", "skip_reason": "Dependency not found on PyPI"}
WEAK: dict[str, object] = {"name": "weak", "version": "1", "vulns": [{"id": "PYSEC-1"}]}


def test_a_weakness_fails_the_audit() -> None:
    status, text = audited(FINE, WEAK)
    assert (status, text.splitlines()[0]) == (1, "weak 1: PYSEC-1")


@pytest.mark.parametrize("packages", [(), (UNKNOWN,), (UNKNOWN, FINE)])
def test_an_audit_that_did_not_happen_says_so(packages: tuple[dict[str, object], ...]) -> None:
    status, text = audited(*packages)
    assert status == 0
    assert "NOT AUDITED" in text


def test_an_audit_without_a_finding_says_what_was_asked() -> None:
    assert audited(FINE) == (0, "no known weakness in 1 packages")
