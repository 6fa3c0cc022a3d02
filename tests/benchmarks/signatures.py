"""`python -m tests.benchmarks signatures`: what it costs to check who signed a webhook, against the digest alone."""

import hmac
import time
import timeit
from collections.abc import Callable
from functools import partial

from gateway.signatures import Scheme, VerifySpec, compile_verification, sign, verify
from tests.benchmarks.documents import session
from tests.benchmarks.report import Asked, Table, asked, show
from tests.benchmarks.servers import MEASURED, SECRET, on_core

SCHEMES: tuple[Scheme, ...] = ("stripe", "hmac")


def micro(function: Callable[[], object], repeat: int = 5) -> float:
    """Return microseconds of one call: the best of several rounds."""
    timer = timeit.Timer(function)
    number, _ = timer.autorange()
    return min(timer.repeat(repeat, number)) / number * 1e6


def main(asked: Asked) -> list[Table]:
    """Measure each scheme on a body of 5 KB."""
    body, key, now = session(), SECRET.encode(), time.time()
    repeat = 1 if asked.scale == "quick" else 5
    with on_core(MEASURED):
        took = {"`hmac.digest` alone": micro(lambda: hmac.digest(key, body, "sha256"), repeat)}
        for scheme in SCHEMES:
            header = "x-signature" if scheme == "hmac" else None
            checked = compile_verification(VerifySpec(scheme=scheme, secrets=SECRET, header=header))
            headers = sign(checked, body, now)
            took[f"`verify`, scheme `{scheme}`"] = micro(partial(verify, checked, headers, body, now), repeat)
    least = took["`hmac.digest` alone"]
    rows = tuple((name, each, each / least) for name, each in took.items())
    return [Table("signatures", f"Verification of {len(body):,} bytes", ("", "µs", "of `hmac.digest`"), rows)]


if __name__ == "__main__":
    show(main(asked()))
