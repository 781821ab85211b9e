"""The facts of one run, gathered from the manifests and the result files, for the run card and the HTML report.

Nothing is computed that a stage has not written: a number shown here can be found in a file of the run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.stage.catalog import BEFORE_PACKED, STAGES, StageSpec
from pipeline_lib.stage.inputs import StageInput
from pipeline_lib.stage.ledger import Ledger
from pipeline_lib.stage.manifest import MANIFEST, Manifest, inputs_made_anew

MODEL_FOLDERS = {
    "init": "04_init",
    "pretrained": "05_pretrain/final",
    "sft": "07_sft/final",
    "dpo": "09_dpo/final",
    "lora": "10_lora/merged",
}


@dataclass(frozen=True)
class StageFacts:
    """A stage of the catalogue and its manifest, None when it has not finished or the run does without it.

    missing: why there is no manifest, for a person.
    """

    spec: StageSpec
    manifest: Manifest | None
    missing: str = "not finished"


@dataclass(frozen=True)
class RunFacts:
    """A run: its folder, its stages in order, the evaluation (results.json) and the verdicts (gates.json) if made.

    left_out: stages that the run does without, because it starts from a packed cache; arguments: the flags that lead a
    script to this run.
    """

    folder: Path
    stages: tuple[StageFacts, ...]
    evaluation: dict[str, Any] | None
    verdicts: dict[str, Any] | None
    left_out: tuple[str, ...] = ()
    arguments: str = ""

    @property
    def stale(self) -> list[str]:
        """One line per stage that was made from another version of an earlier stage than the one that lies there."""
        lines = []
        for facts in self.stages:
            changed = inputs_made_anew(facts.manifest, self.folder, self.left_out) if facts.manifest else []
            if changed:
                lines.append(f"{facts.spec.name} was made from an earlier {', '.join(changed)}; run it again")
        return lines

    @property
    def last_model(self) -> Path | None:
        """The folder of the last model of the pipeline that exists."""
        finished = {facts.spec.name for facts in self.stages if facts.manifest}
        folders = [self.folder / name for name in MODEL_FOLDERS.values() if name.split("/")[0] in finished]
        return folders[-1] if folders else None


def gather(run_folder: Path, arguments: str = "", packed: str | None = None) -> RunFacts:
    """Read what the run's stages wrote; stages that have not finished are there with no manifest.

    arguments: the flags that lead a script to this run; packed: the packed cache that the run starts from instead of
    its own stages before it, which are not read then. Raises UserError, with the command to type, when a result file
    is not the one that its stage wrote.
    """
    left_out = BEFORE_PACKED if packed else ()
    stages = tuple(
        StageFacts(spec, None, f"not needed (packed: {packed})")
        if spec.name in left_out
        else StageFacts(spec, Manifest.read(run_folder / spec.name / MANIFEST))
        for spec in STAGES
    )
    finished = {facts.spec.name for facts in stages if facts.manifest}
    return RunFacts(
        folder=run_folder,
        stages=stages,
        evaluation=_read(run_folder, "11_eval", "results.json", arguments) if "11_eval" in finished else None,
        verdicts=_read(run_folder, "12_gates", "gates.json", arguments) if "12_gates" in finished else None,
        left_out=left_out,
        arguments=arguments,
    )


def _read(run_folder: Path, stage: str, name: str, arguments: str) -> dict[str, Any]:
    return json.loads(StageInput(run_folder, stage, arguments).file(name).read_bytes())


def in_and_out(manifest: Manifest) -> tuple[str, str]:
    """Return what entered and what was kept, flows joined, in short words for a table cell.

    A stage without records of its own, which makes a model or a verdict, is told by its result.
    """
    ledger = Ledger.from_json(manifest.ledger)
    if not ledger.flows():
        return _from_result(manifest.stage, manifest.result)
    sides = []
    for side in ("entered", "kept"):
        cells = []
        for flow in ledger.flows():
            amounts = ledger.total(flow, side)
            unit = "tokens" if amounts["tokens"] else "documents"
            cells.append(f"{flow} {short(amounts[unit])}{' tok' if unit == 'tokens' else ''}")
        sides.append(", ".join(cells))
    if manifest.stage == "05_pretrain":
        sides[1] += f", {manifest.result['val_bits_per_byte_after']:.3f} bits per byte"
    return sides[0], sides[1]


def _from_result(stage: str, result: dict[str, Any]) -> tuple[str, str]:
    match stage:
        case "04_init":
            return "-", f"{short(result['parameters']['total'])} parameters"
        case "12_gates":
            return "-", f"{result['gates_passed']} gates passed"
    return "-", "-"


def short(count: float) -> str:
    """Spell a count with at most four characters and a suffix: 950, 12.3k, 4.6M."""
    for unit in ("", "k", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.0f}{unit}" if unit == "" or abs(count) >= 100 else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}T"


def evaluation_table(evaluation: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return (models, rows): one row per task and metric, one cell per model as `value [low, high]`.

    The arrow behind a metric points to where better is.
    """
    models = list(evaluation["models"])
    names = {
        (task, metric): facts["higher_is_better"]
        for tasks in evaluation["models"].values()
        for task, metrics in tasks.items()
        for metric, facts in metrics.items()
    }
    rows = []
    for (task, metric), higher in names.items():
        cells = [spell_interval(evaluation["models"][model].get(task, {}).get(metric)) for model in models]
        rows.append((f"{task} {metric.replace('_', ' ')} {'↑' if higher else '↓'}", cells))
    return models, rows


def contamination_rows(evaluation: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return two rows, clean and dirty items, for each metric of each task with items that stand in the raw text.

    Cells are those of `evaluation_table`; no rows when nothing is dirty.
    """
    rows = []
    for task, entry in evaluation.get("contamination", {}).items():
        scores = entry.get("scores", {})
        metrics = list(dict.fromkeys(metric for by_metric in scores.values() for metric in by_metric))
        for metric in metrics:
            name = task if len(metrics) == 1 else f"{task} {metric.replace('_', ' ')}"
            clean = f"{name}: {entry['items'] - entry['dirty']} clean items"
            dirty = f"{name}: {entry['dirty']} dirty, {entry['in_training']} read"
            for label, group in ((clean, "clean"), (dirty, "dirty")):
                facts = (scores.get(model, {}).get(metric, {}).get(group) for model in evaluation["models"])
                rows.append((label, [spell_interval(fact) for fact in facts]))
    return rows


def evaluation_title(evaluation: dict[str, Any]) -> str:
    """Return the heading of the table, with the confidence of its intervals."""
    percent = f"{100 * evaluation['confidence']:g} %"
    return f"Evaluation, with {percent} confidence intervals (↑ higher is better, ↓ lower is better)"


def spell_interval(facts: dict[str, Any] | None) -> str:
    """Spell a metric with its interval; a dash where it was not measured, or has no uncertainty (one item)."""
    if facts is None:
        return "-"
    if facts["low"] is None:
        return f"{facts['value']:.3f} [-]"
    return f"{facts['value']:.3f} [{facts['low']:.3f}, {facts['high']:.3f}]"
