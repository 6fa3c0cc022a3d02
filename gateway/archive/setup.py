"""What is configured and what is missing, with the next step."""

import re
from collections.abc import Callable

from gateway.archive.shapes import Setup, Thing
from gateway.checking import setup as setup_lines
from gateway.mappings import Mappings


def set_up(mappings: Mappings, variables: Callable[[str], str | None], problem: str | None) -> Setup:
    """Say what is on, and what is missing for the rest. `variables` are the settings that mappings name."""
    things: list[Thing] = []
    for source in mappings.sources.values():
        on, path = bool(source.verification.keys), f"/webhooks/{source.name}"
        names = re.findall(r"\$\{(\w+)", source.spec.verify.secrets)
        missing = [] if on else [name for name in names if not variables(name)]
        step = None if on else f"set {', '.join(missing) or '`verify.secrets`'}: until then every webhook gets 401"
        lines = list(setup_lines(source, f"https://YOUR-GATEWAY{path}"))
        things.append(Thing("source", source.name, on, missing, path, step, lines))
    for destination in (*mappings.destinations.values(), *mappings.off.values()):
        missing = [name for name in destination.enabled_by if not variables(name)]
        step = f"set {', '.join(missing)}, then replay what came before" if missing else None
        things.append(Thing("destination", destination.name, not missing, missing, None, step, []))
    return Setup(things, problem)
