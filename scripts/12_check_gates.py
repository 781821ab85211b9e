"""Stage 12: give the verdicts. Compare the metrics of stage 11 with the demands of a gate file.

Exit code 0: every gate passed. 1: at least one failed. 2: the gate file or the results are missing or invalid.
A metric that is missing, null or not finite fails its gate.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.stage import Estimate, UserError, run_stage, write_bytes_atomic

if TYPE_CHECKING:
    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.stage import Stage


def describe_inputs(config: "RunConfig") -> dict[str, str]:
    """Identify the gate file by content, so that editing it makes the verdict stale. Raises UserError if invalid."""
    from pipeline_lib.config import resolve_path
    from pipeline_lib.gates.gate_file import read_gate_file
    from pipeline_lib.stage import json_digest

    gates = read_gate_file(resolve_path(config.gates.file), config.gates.only)
    return {"gates": json_digest(gates.model_dump(mode="json"))}


def read_results(path: Path) -> dict:
    """Return results.json. Raises UserError when it is not a JSON object."""
    import json

    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); make it again with stage 11 --force") from None
    if not isinstance(results, dict):
        raise UserError(f"{path} does not hold a JSON object; make it again with stage 11 --force")
    return results


def run(stage: "Stage") -> None:
    from pipeline_lib.config import resolve_path
    from pipeline_lib.gates import verdict_files
    from pipeline_lib.gates.gate_file import read_gate_file
    from pipeline_lib.gates.verdict import judge

    gate_file = read_gate_file(resolve_path(stage.settings.file), stage.settings.only)
    results = read_results(stage.input("11_eval").file("results.json"))

    verdicts = [judge(gate, results) for gate in gate_file.gates]
    for verdict in verdicts:
        stage.say(f"  {'pass' if verdict.passed else 'FAIL'}  {verdict.gate.name}: {verdict.reason}")

    only = stage.settings.only
    content = verdict_files.as_json(gate_file, verdicts, only)
    outputs = {
        "gates.json": verdict_files.as_json_text(content).encode(),
        "gates.md": verdict_files.as_markdown(gate_file, verdicts, only).encode(),
        "gates.junit.xml": verdict_files.as_junit(verdicts, only),
    }
    for name, data in outputs.items():
        write_bytes_atomic(stage.work / name, data)
        stage.adopt(name)

    passed = sum(verdict.passed for verdict in verdicts)
    stage.result = {
        "verdict": "passed" if content["passed"] else "FAILED",
        "gates_passed": f"{passed} of {len(verdicts)}{f' (only the group {only})' if only else ''}",
    }
    if content["failed"]:
        stage.result["failed"] = "; ".join(content["failed"])
        stage.exit_code = 1


def estimate(stage: "Stage") -> Estimate:
    """The work is comparing a few numbers: what it costs is starting Python."""
    return Estimate(0.1, 40_000_000, 20_000, "constant: reading two files and comparing their numbers")


if __name__ == "__main__":
    run_stage("12_gates", run, estimate=estimate, inputs=describe_inputs)
