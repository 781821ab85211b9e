"""The card that ends `make demo`: stages, evaluation, verdicts, and where the model is.

python -m pipeline_lib.reporting.run_card --config configs/demo.yaml
"""

import sys

from rich.console import Console
from rich.table import Table

from pipeline_lib.stage.card import spell_value
from pipeline_lib.stage.progress import duration, size

from .chosen_run import facts_of_chosen_run
from .run_facts import RunFacts, contamination_rows, evaluation_table, evaluation_title, in_and_out


def print_run_card(facts: RunFacts, console: Console) -> None:
    """Print everything a person wants to know at the end of a run.

    console: one without markup, or what gates, models and folders are called is read as such.
    """
    console.print(_stage_table(facts))
    if facts.evaluation:
        models, rows = evaluation_table(facts.evaluation)
        table = Table(title=evaluation_title(facts.evaluation), title_justify="left", title_style="bold")
        table.add_column("task and metric")
        for model in models:
            table.add_column(model, justify="right")
        for label, cells in rows:
            table.add_row(label, *cells)
        if dirty := contamination_rows(facts.evaluation):
            table.add_section()
            table.caption = "dirty: its text stands in the raw training text; read: and in what was trained on"
            for label, cells in dirty:
                table.add_row(label, *cells)
        console.print(table)
    if facts.verdicts:
        table = Table(title="Gates", title_justify="left", title_style="bold")
        for column in ("verdict", "gate", "demanded", "observed"):
            table.add_column(column)
        for gate in facts.verdicts["gates"]:
            observed = gate["reason"] if gate["observed"] is None else spell_value(gate["observed"])
            table.add_row("pass" if gate["passed"] else "FAIL", gate["name"], gate["demand"], observed)
        console.print(table)
        failed = facts.verdicts["failed"]
        part = f" of the group {facts.verdicts['only']}, the only one judged" if facts.verdicts.get("only") else ""
        console.print(f"Verdict: {'every gate passed' if not failed else 'FAILED: ' + ', '.join(failed)}{part}")
    for line in facts.stale:
        console.print(f"Stale:   {line}", soft_wrap=True)
    if facts.last_model:
        console.print(f"Model:   {facts.last_model}", soft_wrap=True)


def _stage_table(facts: RunFacts) -> Table:
    table = Table(title=f"Run {facts.folder.name}", title_justify="left", title_style="bold")
    for column, justify in (
        ("stage", "left"),
        ("in", "left"),
        ("out", "left"),
        ("time", "right"),
        ("peak memory", "right"),
    ):
        table.add_column(column, justify=justify)
    seconds, peak = 0.0, 0
    for stage in facts.stages:
        if stage.manifest is None:
            table.add_row(stage.spec.name, stage.missing, "", "", "")
            continue
        run = stage.manifest.run
        seconds, peak = seconds + run["seconds"], max(peak, run["peak_memory_bytes"])
        entered, kept = in_and_out(stage.manifest)
        resumed = " (resumed)" if run["resumed"] else ""
        table.add_row(
            stage.spec.name, entered, kept, duration(run["seconds"]) + resumed, size(run["peak_memory_bytes"])
        )
    table.add_section()
    table.add_row("all", "", "", duration(seconds), size(peak))
    return table


def main(argv: list[str]) -> None:
    """Print the card of the run that the command line names."""
    facts = facts_of_chosen_run("Print the card of a run.", argv)
    width = None if sys.stdout.isatty() else 150
    print_run_card(facts, Console(width=width, markup=False, emoji=False))


if __name__ == "__main__":
    main(sys.argv[1:])
