"""The Redis that comes along for a trial starts as the chart says: with its password, its file and no eviction."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from tests.helm.engine import Helm, Thing, only
from tests.helm.matrix import MATRIX
from tests.stores.servers import binary, free_port

PASSWORD = "dGVzdHMtb25seQ-_0123456789"
WITHIN = 30.0
KEPT = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}


def redis(helm: Helm) -> Thing:
    """Return the container of the Redis."""
    pod = only(helm.template(MATRIX["a Redis for a trial"]), "StatefulSet")["spec"]["template"]["spec"]
    first: Thing = pod["containers"][0]
    return first


@contextmanager
def started(helm: Helm, folder: Path, port: int) -> Iterator[Redis]:
    """Run the chart's own command, with its port and the folder `/data` elsewhere, until it answers."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    if not (programs / "redis-server").exists():
        (programs / "redis-server").symlink_to(binary())
    shell, flags, script = redis(helm)["command"]
    assert "dir /data\n" in script
    script = script.replace("dir /data\n", f"dir {folder}\nport {port}\nbind 127.0.0.1\n")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "REDIS_PASSWORD": PASSWORD}
    process = subprocess.Popen([shell, flags, script], env=environment, stdout=subprocess.DEVNULL)
    client = Redis(port=port, password=PASSWORD, retry=Retry(NoBackoff(), 0))
    try:
        deadline = time.monotonic() + WITHIN
        while not answers(client):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(WITHIN)


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def test_it_keeps_all_that_it_answered_for_over_a_restart(helm: Helm, tmp_path: Path) -> None:
    port = free_port()
    with started(helm, tmp_path, port) as client:
        told = {name: client.config_get(name)[name] for name in KEPT}
        assert told == KEPT
        assert client.config_get("maxmemory") == {"maxmemory": str(256 * 2**20)}
        client.set("kept", "yes")
    with started(helm, tmp_path, port) as client:
        assert client.get("kept") == b"yes"


def test_it_answers_nobody_without_the_password(helm: Helm, tmp_path: Path) -> None:
    port = free_port()
    with (
        started(helm, tmp_path, port),
        Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.ping()


@pytest.mark.parametrize("password", ["", "with space", "a/b", 'quote"', "x\nprotected-mode no"])
def test_a_password_that_no_url_can_hold_is_refused_with_a_way_to_make_one(helm: Helm, password: str) -> None:
    environment = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": password}
    ended = subprocess.run(
        redis(helm)["command"], env=environment, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert ended.returncode == 1
    assert "REDIS_PASSWORD: it stands in a URL" in ended.stderr


def test_it_is_ready_when_it_answers_under_the_password(helm: Helm) -> None:
    probes = {redis(helm)[f"{each}Probe"]["exec"]["command"][-1] for each in ("startup", "liveness", "readiness")}
    assert probes == {'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli ping | grep -q PONG'}
