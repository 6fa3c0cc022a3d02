"""A failure that nobody foresaw is logged with its place, and without what the failing frames held."""

from collections.abc import Iterator

import pytest
import structlog

from gateway.telemetry import configure_logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    configuration = structlog.get_config()
    yield
    structlog.configure(**configuration)


@pytest.mark.parametrize("json", [True, False], ids=["json", "lines"])
def test_a_traceback_holds_no_variables(json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(json=json)

    def fail(payload: dict[str, str]) -> None:
        raise ValueError("a defect in the gateway")

    try:
        fail({"email": "ada@" + "example.com"})
    except ValueError as error:
        structlog.get_logger("test").error("request_failed", exc_info=error)
    told = capsys.readouterr().err
    assert "a defect in the gateway" in told
    assert "in fail" in told
    assert "ada@example.com" not in told
