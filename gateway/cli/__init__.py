"""The `gateway` command. Results go to stdout, everything else to stderr.

Exit codes: 0 all is well, 1 something is wrong with what was asked about, 2 the command itself was used wrongly.
Commands import what they run where they run it, so that `gateway --help` is quick.
"""

import rich_click as click

from gateway import __version__
from gateway.cli import authoring, history, operating, people, serving

click.rich_click.TEXT_MARKUP = "rich"
click.rich_click.COMMAND_GROUPS = {
    "gateway": [
        {"name": "Run it", "commands": ["demo", "serve", "deliver", "doctor", "store"]},
        {"name": "Edit mappings", "commands": ["init", "check", "test", "translate", "explain", "send", "schema"]},
        {"name": "See and repair", "commands": ["webhooks", "deliveries", "dead", "replay"]},
        {"name": "Bring in the past", "commands": ["import", "reconcile"]},
        {"name": "Visitors and people", "commands": ["links", "link-token", "forget"]},
    ]
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """Payment webhooks in; attributed, privacy-safe analytics events out."""


for _command in (
    serving.demo,
    serving.serve,
    serving.deliver,
    serving.doctor,
    serving.store,
    authoring.check,
    authoring.translate,
    authoring.explain_command,
    authoring.test,
    authoring.schema,
    authoring.init,
    authoring.send,
    people.link_token,
    people.links,
    people.forget,
    operating.replay,
    operating.webhooks,
    operating.deliveries,
    operating.dead,
    history.import_command,
    history.reconcile,
):
    main.add_command(_command)
