"""One HTML file that tells a run from download to verdict: `python -m pipeline_lib.reporting.report --config YAML`."""

import sys
from pathlib import Path

from pipeline_lib.stage.atomic import write_bytes_atomic
from pipeline_lib.stage.card import card_rows
from pipeline_lib.stage.errors import UserError
from pipeline_lib.stage.inputs import StageInput
from pipeline_lib.stage.progress import duration, size

from .chosen_run import facts_of_chosen_run
from .plots import training_curve
from .run_facts import RunFacts, contamination_rows, evaluation_table, evaluation_title, in_and_out

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(facts: RunFacts) -> str:
    """Return the report as a self-contained HTML page; everything from the data is escaped.

    Raises UserError, with the command to type, when the metrics of a training are not those that its stage wrote.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    stages = []
    for stage in facts.stages:
        if stage.manifest is None:
            missing = {"finished": False, "missing": stage.missing}
            stages.append({"name": stage.spec.name, "does": stage.spec.does, **missing})
            continue
        run = stage.manifest.run
        entered, kept = in_and_out(stage.manifest)
        stages.append(
            {
                "name": stage.spec.name,
                "does": stage.spec.does,
                "finished": True,
                "entered": entered,
                "kept": kept,
                "time": duration(run["seconds"]),
                "memory": size(run["peak_memory_bytes"]),
                "rows": card_rows(stage.manifest),
                "machine": f"{run['machine']}, Python {run['python']}, "
                + ", ".join(f"{name} {version}" for name, version in run["packages"].items()),
                "curve": _curve(facts, stage.spec.name, stage.manifest.files),
            }
        )
    models, rows = evaluation_table(facts.evaluation) if facts.evaluation else ([], [])
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        run=facts.folder.name,
        stages=stages,
        stale=facts.stale,
        title=evaluation_title(facts.evaluation) if facts.evaluation else "",
        models=models,
        rows=rows,
        dirty_rows=contamination_rows(facts.evaluation) if facts.evaluation else [],
        comparisons=(facts.evaluation or {}).get("comparisons", {}),
        verdicts=facts.verdicts,
        model=str(facts.last_model or "none yet"),
    )


def _curve(facts: RunFacts, stage: str, files: dict) -> str | None:
    if "metrics.jsonl" not in files:
        return None
    return training_curve(StageInput(facts.folder, stage, facts.arguments).file("metrics.jsonl"), stage)


def main(argv: list[str]) -> None:
    """Write the report of the run that the command line names."""
    facts = facts_of_chosen_run("Write report.html of a run.", argv)
    path = facts.folder / "report.html"
    try:
        page = render(facts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    write_bytes_atomic(path, page.encode("utf-8", "replace"))
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
