"""The image's recipe, carried out without Docker: its own steps on its own context, then the gateway they install.

A virtual environment stands for the base image, a folder for each absolute path that the recipe names. The gateway is
the first process of a PID namespace, on a file system that is read-only but for the data folder, where the kernel lets
the user have both (Linux; as root or with user namespaces); elsewhere it is a plain process.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct
from pathspec import PathSpec

from gateway import __version__
from tests.stores.servers import free_port

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0
ACME = """
source: acme
verify: {scheme: token, header: X-Token, secrets: "${ACME_SECRET}"}
webhook: {id: id, type: type}
rules: [{on: paid, emit: purchase, once: id}]
"""


class Instruction(Struct, frozen=True):
    """One instruction of the Dockerfile, with its continuation lines."""

    name: str
    rest: str


def instructions() -> list[Instruction]:
    """Return the Dockerfile's instructions in order."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line]


def last(name: str) -> str:
    """Return what the last instruction of this name says: of the image that is left."""
    return [each.rest for each in instructions() if each.name == name][-1]


def copied() -> list[str]:
    """Return what the recipe takes from the context."""
    ours = (each.rest.split() for each in instructions() if each.name == "COPY" and not each.rest.startswith("--from"))
    return [source for *sources, _target in ours for source in sources]


@cache
def context() -> set[str]:
    """Return the files that Docker would be given, of those that are here."""
    found = set()
    for place, folders, names in os.walk(ROOT):
        here = Path(place).relative_to(ROOT)
        folders[:] = [name for name in folders if not ignored(f"{here / name}/")]
        found |= {str(here / name) for name in names if not ignored(str(here / name))}
    return found


def ignored(path: str) -> bool:
    """Say whether a path is kept from Docker. Git's patterns mean the same, if anchored or begun with `**/`."""
    return ignoring().match_file(path)


@cache
def ignoring() -> PathSpec[Any]:
    return PathSpec.from_lines("gitignore", (ROOT / ".dockerignore").read_text().splitlines())


@cache
def namespaces() -> tuple[str, ...]:
    """Return the command that runs another one as PID 1 with mounts of its own; empty where that is not to be had."""
    mine = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    for command in (mine, (*mine, "--user", "--map-root-user")):
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0
        ):
            return command
    return ()


class Image(Struct, frozen=True):
    """What the recipe leaves, under a folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def of(self, command: str) -> list[str]:
        """Return a command in exec form as the image would run it."""
        program, *arguments = json.loads(command)
        return [str(self.folder / "opt/gateway/bin" / program), *arguments]

    @contextmanager
    def run(self, **settings: str) -> Iterator["Running"]:
        """Run the image's own command on a free port, and wait until it is healthy."""
        port = free_port()
        arguments = ["--host", "127.0.0.1", "--port", str(port)]
        command = shlex.join([*self.of(last("ENTRYPOINT")), json.loads(last("CMD"))[0], *arguments])
        data = shlex.quote(str(self.data))
        read_only = f"mount --bind {data} {data} && mount -o remount,bind,ro / && cd {data}/.. && exec {command}"
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(
                [*namespaces(), "sh", "-c", read_only if namespaces() else f"exec {command}"],
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **settings},
                stderr=log,
            )
        try:
            yield Running(self, process, port).healthy()
        finally:
            process.kill()
            process.wait()


class Running(Struct, frozen=True):
    """The gateway of an image, on a port of loopback."""

    image: Image
    process: "subprocess.Popen[bytes]"
    port: int

    def health(self) -> int:
        """Return what the recipe's own check says: 0 is healthy."""
        check = re.sub(r"^.*?CMD ", "", last("HEALTHCHECK")).replace("8080", str(self.port))
        return subprocess.run(self.image.of(check), check=False, capture_output=True).returncode

    def healthy(self) -> "Running":
        deadline = time.monotonic() + PATIENCE
        while self.health():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)
        return self

    def log(self) -> str:
        return (self.image.folder / "log").read_text()

    def knows(self, source: str) -> bool:
        """Say whether a mapping of this source is in force: an unsigned webhook of it is refused, not unheard of."""
        deadline = time.monotonic() + PATIENCE
        while (status := self.asked_of(source)) == HTTPStatus.SERVICE_UNAVAILABLE:  # mappings are still being read
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)
        assert status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND}
        return status == HTTPStatus.UNAUTHORIZED

    def asked_of(self, source: str) -> int:
        return httpx.post(f"http://127.0.0.1:{self.port}/webhooks/{source}", content=b"{}").status_code

    def terminate(self) -> int:
        """Send SIGTERM to the gateway itself; return its exit status."""
        ours = self.process.pid
        if namespaces():
            (ours,) = map(int, Path(f"/proc/{ours}/task/{ours}/children").read_text().split())
        os.kill(ours, signal.SIGTERM)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Carry the recipe's steps out, in order."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "src"
    subprocess.run([sys.executable, "-m", "virtualenv", "--quiet", folder / "base"], check=True)  # with pip, and soon
    (folder / "opt").mkdir()
    source.mkdir()
    shared = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON"))}
    environment = shared | {"PATH": f"{folder / 'base' / 'bin'}:{os.environ['PATH']}", "PIP_NO_COMPILE": "1"}
    files = context()
    for step in instructions():
        if step.name == "COPY" and not step.rest.startswith("--from"):
            *names, target = step.rest.split()
            for name in (file for file in files for each in names if file == each or file.startswith(f"{each}/")):
                place = source / (name if target in {"./", name.split("/")[0]} else target)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place)
        if step.name == "RUN":
            command = step.rest.replace("/opt/gateway", f"{folder}/opt/gateway").replace(" /data", f" {folder}/data")
            done = subprocess.run(
                ["sh", "-ec", command], check=False, cwd=source, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{step.rest}\n{done.stdout}{done.stderr}"
    return Image(folder)


def test_the_recipe_has_no_lint() -> None:
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_exists_and_reaches_the_builder(source: str) -> None:
    assert any(file == source or file.startswith(f"{source}/") for file in context())


def test_nothing_but_what_is_copied_reaches_the_builder() -> None:
    assert {file.split("/")[0] for file in context()} == set(copied())


@pytest.mark.parametrize(
    "name", [".env", "gateway/.env", "gateway/gateway.key", "mappings/gateway.db", "data/gateway.db"]
)
def test_no_key_and_no_data_reaches_the_builder(name: str) -> None:
    assert ignored(name)


def test_the_image_is_of_this_version() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in last("LABEL")


def test_the_image_runs_as_nobody_in_particular() -> None:
    user, group = last("USER").split(":")
    assert user.isdecimal()
    assert group.isdecimal()
    assert int(user) >= 10_000
    assert int(group) >= 10_000


@pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD"])
def test_no_shell_stands_between_the_gateway_and_signals(name: str) -> None:
    assert all(isinstance(each, str) for each in json.loads(last(name)))


def test_the_recipe_fetches_nothing_by_address() -> None:
    assert "://" not in (ROOT / "Dockerfile").read_text() + (ROOT / "requirements.build.lock").read_text()


def test_the_image_serves_where_only_its_data_folder_can_be_written_and_stops_when_told(image: Image) -> None:
    with image.run() as gateway:
        ready = httpx.get(f"http://127.0.0.1:{gateway.port}/readyz").json()
        assert ready["checks"] == {"store": "ok", "workers": "ok", "mappings": "ok"}
        assert gateway.knows("stripe")
        assert gateway.terminate() == 0, gateway.log()
        assert '"stopped"' in gateway.log()
    assert {each.name for each in image.data.iterdir()} >= {"gateway.db", "gateway.key"}


def test_a_folder_takes_the_place_of_the_bundled_mappings(image: Image) -> None:
    mine = image.folder / "mappings"
    (mine / "sources").mkdir(parents=True)
    (mine / "sources" / "acme.yaml").write_text(ACME)
    with image.run(GATEWAY_MAPPINGS=str(mine), ACME_SECRET="of the tests") as gateway:
        assert gateway.knows("acme")
        assert not gateway.knows("stripe")


def test_who_does_not_answer_is_not_healthy(image: Image) -> None:
    nobody = Running(image, subprocess.Popen(["true"]), free_port())
    nobody.process.wait()
    assert nobody.health() != 0


def test_the_wheel_is_typed_and_brings_the_mappings(image: Image) -> None:
    (package,) = (image.folder / "opt/gateway").glob("lib/python*/site-packages/gateway")
    assert (package / "py.typed").is_file()
    assert {each.name for each in (package / "bundled" / "sources").iterdir()} >= {"stripe.yaml", "shopify.yaml"}
