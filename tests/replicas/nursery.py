"""Forks gateways that hurry: `python -m tests.replicas.nursery`.

A lease of theirs ends after `LEASE` ms, and a failed try is made again soon, as no test can wait for minutes. Each line
of stdin is the command line of a gateway and the file of its log; the answer is its process id. They end with stdin.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

import gateway.server  # noqa: F401 -- to have it, see `warm_up`
from gateway import delivery, pacing
from gateway.app import create_app
from gateway.cli import main as gateway_command
from gateway.settings import load_settings

LEASE = 2_000
MARGIN = 1_000


def hurry() -> None:
    delivery.LEASE, delivery.MARGIN, delivery.IDLE = LEASE, MARGIN, 0.2
    pacing.FIRST_PAUSE, pacing.LONGEST_PAUSE = 50, 200
    pacing.SHORTEST_REST, pacing.LONGEST_REST = 50, 200


def warm_up() -> None:
    """Have all that is imported on the way to a gateway before one is forked, so that it starts the sooner."""
    create_app(load_settings({**os.environ, "GATEWAY_STORE": "redis://127.0.0.1:1"}))


def fork(words: list[str], log: Path) -> int:
    if pid := os.fork():
        return pid
    with log.open("ab") as written, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    try:
        gateway_command(words)
    except SystemExit:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(1)


def main() -> None:
    hurry()
    warm_up()
    born: list[int] = []
    for line in sys.stdin:
        *words, log = line.split()
        born.append(fork(words, Path(log)))
        sys.stdout.write(f"{born[-1]}\n")
        sys.stdout.flush()
    for pid in born:
        os.kill(pid, signal.SIGKILL)  # nobody else's: the ids of those that ended before are not given away yet


if __name__ == "__main__":
    main()
