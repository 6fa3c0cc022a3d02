"""Every setting of the process, read once from the environment into one frozen Struct.

Only the composition root and the command line import this. Secrets print as `***`. Any setting may come from a file:
`NAME_FILE` names one, and its content, without trailing white space, is the value.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.documents import duration
from gateway.mappings import bundled
from gateway.sealing import Secret, load_or_create_key, parse_key

REDIS = ("redis:", "rediss:", "unix:", "redis+sentinel:", "rediss+sentinel:", "redis+cluster:", "rediss+cluster:")
"""How addresses of a Redis begin."""
MAX_PARTITIONS = 1024
MIN_SECRET = 32
"""Characters of ours. Whoever holds a page's token can guess at the secret that signed it, without us noticing."""


class SettingsError(Exception):
    """Every mistake in the environment, one a line."""


class Settings(Struct, frozen=True, kw_only=True):
    """How this gateway runs. `retention` is in ms, `max_body` in bytes."""

    store: str
    mappings: Path
    secret_key: Secret
    link_secret: Secret
    link_origins: tuple[str, ...]
    admin_token: Secret
    alert_webhook: Secret
    retention: int
    test_events: Literal["skip", "forward"]
    max_body: int
    trusted_proxies: str
    exports: Path
    partitions: int
    wait_aof: bool
    environment: "Environment"

    @property
    def embedded(self) -> bool:
        """Whether the store is a file of this machine's, and not a Redis that several gateways share."""
        return self.store.startswith("sqlite:///")

    @property
    def store_shown(self) -> str:
        """The store's address without its password."""
        return re.sub(r"//[^@/]*@", "//***@", self.store)

    @property
    def store_path(self) -> Path:
        """The file of the embedded store."""
        return Path(self.store.removeprefix("sqlite:///"))

    def master_key(self) -> bytes:
        """Return the sealing key; beside an embedded store it is made on first use. Raises `SettingsError`."""
        if not self.secret_key and not self.embedded:
            raise SettingsError(
                "GATEWAY_SECRET_KEY is not set, and every gateway that shares a Redis needs the same: make one with "
                "`openssl rand -base64 32 | tr '+/' '-_'`"
            )
        try:
            if self.secret_key:
                return parse_key(self.secret_key.reveal())
            self.store_path.parent.mkdir(parents=True, exist_ok=True)
            return load_or_create_key(self.store_path.with_name("gateway.key"))
        except (ValueError, OSError) as error:
            raise SettingsError(f"GATEWAY_SECRET_KEY: {error}") from None


class Environment:
    """The environment, with `NAME_FILE` standing in for `NAME`. Asked also for what mapping files refer to."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def __call__(self, name: str) -> str | None:
        """Return a setting, or None when it is not set. Raises `SettingsError` when its file cannot be read."""
        if value := self._values.get(name, "").strip():
            return value
        if not (file := self._values.get(f"{name}_FILE")):
            return None
        try:
            return Path(file).read_text().strip() or None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name}_FILE: {file} cannot be read: {error}") from None

    def __repr__(self) -> str:
        return "Environment(***)"


def load_settings(values: Mapping[str, str]) -> Settings:
    """Read the settings from an environment. Raises `SettingsError` that names every mistake."""
    mistakes: list[str] = []
    environment = Environment(values)

    def text(name: str, default: str = "") -> str:
        try:
            return environment(name) or default
        except SettingsError as error:
            mistakes.append(str(error))
            return default

    store = text("GATEWAY_STORE", "sqlite:///data/gateway.db")
    if store == "sqlite:///" or not store.startswith(("sqlite:///", *REDIS)):
        mistakes.append(
            f"GATEWAY_STORE: `{store.partition('://')[0]}` is not supported: write sqlite:///path/to/gateway.db, "
            "or redis://host:6379/0"
        )
    partitions = text("GATEWAY_PARTITIONS", "1")
    if not partitions.isdecimal() or not 1 <= int(partitions) <= MAX_PARTITIONS:
        mistakes.append(f"GATEWAY_PARTITIONS: `{partitions}`: write a number from 1 to {MAX_PARTITIONS}")
    wait_aof = text("GATEWAY_WAIT_AOF", "false").lower()
    if wait_aof not in {"true", "false"}:
        mistakes.append(f"GATEWAY_WAIT_AOF: `{wait_aof}`: write true or false")
    mistakes += [
        f"{name}: shorter than {MIN_SECRET} characters; make one with `openssl rand -hex 32`"
        for name in ("GATEWAY_LINK_SECRET", "GATEWAY_ADMIN_TOKEN")
        if 0 < len(text(name)) < MIN_SECRET
    ]
    origins = tuple(origin.strip().rstrip("/") for origin in text("GATEWAY_LINK_ORIGINS").split(",") if origin.strip())
    mistakes += [
        f"GATEWAY_LINK_ORIGINS: `{origin}` is no origin; write it as https://shop.example"
        for origin in origins
        # `null` is the origin of every sandboxed frame: for Shopify's custom pixels, and only if it is listed.
        if origin != "null" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2)
    ]
    retention = 0
    try:
        retention = duration(text("GATEWAY_RETENTION", "30d"))
    except ValueError as error:
        mistakes.append(f"GATEWAY_RETENTION: {error}")
    test_events = text("GATEWAY_TEST_EVENTS", "skip")
    if test_events not in {"skip", "forward"}:
        mistakes.append(f"GATEWAY_TEST_EVENTS: `{test_events}`: write skip or forward")
    max_body = text("GATEWAY_MAX_BODY", "1048576")
    if not max_body.isdigit() or not 1024 <= int(max_body) <= 64 * 1024 * 1024:
        mistakes.append(f"GATEWAY_MAX_BODY: `{max_body}`: write a number of bytes from 1024 to 67108864")
    alert_webhook = text("GATEWAY_ALERT_WEBHOOK")
    if alert_webhook and not _may_be_told(alert_webhook):
        mistakes.append("GATEWAY_ALERT_WEBHOOK: write https://…, as your chat gives it; http only to this machine")
    folder = text("GATEWAY_MAPPINGS")
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return Settings(
        store=store,
        mappings=Path(folder) if folder else bundled(),
        secret_key=Secret(text("GATEWAY_SECRET_KEY")),
        link_secret=Secret(text("GATEWAY_LINK_SECRET")),
        link_origins=origins,
        admin_token=Secret(text("GATEWAY_ADMIN_TOKEN")),
        alert_webhook=Secret(alert_webhook),
        retention=retention,
        test_events="forward" if test_events == "forward" else "skip",
        max_body=int(max_body),
        trusted_proxies=text("GATEWAY_TRUSTED_PROXIES"),
        exports=Path(text("GATEWAY_EXPORTS", "data/exports")),
        partitions=int(partitions),
        wait_aof=wait_aof == "true",
        environment=environment,
    )


def _may_be_told(url: str) -> bool:
    """Whether alerts may be posted there: over TLS, or without it on the loopback interface."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not host or parts.port == 0 or not url.isprintable() or " " in url:
            return False
        return parts.scheme == "https" or (
            parts.scheme == "http" and (host == "localhost" or ip_address(host).is_loopback)
        )
    except ValueError:  # a port beyond 65535, brackets that do not close; with http a host that is no address
        return False
