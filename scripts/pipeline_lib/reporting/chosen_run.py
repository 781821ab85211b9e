"""The run that a reporting command is about, or one line that says what is wrong."""

import sys

from pipeline_lib.config.run_choice import read_run_choice
from pipeline_lib.stage.catalog import STAGES
from pipeline_lib.stage.errors import UserError
from pipeline_lib.stage.inputs import repairing_command

from .run_facts import RunFacts, gather


def facts_of_chosen_run(description: str, argv: list[str]) -> RunFacts:
    """Return the facts of the run that the command line names; exit with code 2 when it holds no finished stage."""
    try:
        choice = read_run_choice(description, argv)
        facts = gather(choice.run_folder, choice.arguments, choice.config.packed)
        if not any(stage.manifest for stage in facts.stages):
            raise UserError(
                f"{choice.run_folder} holds no finished stage; start with:"
                f" {repairing_command(STAGES[0].name, choice.arguments)}"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    return facts
