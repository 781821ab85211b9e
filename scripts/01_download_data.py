"""Read every source of the configuration into one folder: text shards, original records, and a list of both.

Out of the box it needs no network: the text is the documentation inside this Python installation. Other sources
(the Hugging Face hub, http, local files) are entries of `download.sources`; docs/add_a_source.md tells more.
"""

from typing import TYPE_CHECKING

from pipeline_lib.stage import Estimate, Stage, run_stage

if TYPE_CHECKING:
    from pipeline_lib.config.run import RunConfig


def run(stage: Stage) -> None:
    from pipeline_lib import engines
    from pipeline_lib.sources.base import Workbench
    from pipeline_lib.sources.growth import published_provenance
    from pipeline_lib.sources.registry import open_sources, what_is_missing, what_is_not_installed
    from pipeline_lib.sources.writer import write_sources

    engines.prepare(stage)
    bench = Workbench(
        stage.work / "scratch",
        stage.say,
        stage.stop_if_interrupted,
        stage.signals.while_waiting,
        note=stage.note,
        published=published_provenance(stage),
    )
    for line in what_is_missing(stage.settings):
        stage.note(line)
    for line in what_is_not_installed(stage.settings):
        stage.note(line, lasting=False)
    sources = open_sources(stage.settings, bench, stage.threads)
    entries = write_sources(stage, sources, int(stage.settings.shard_megabytes * 1e6))
    stage.result = {
        "sources": len(entries),
        "text_documents": sum(entry["documents"] for entry in entries if entry["kind"] == "text"),
        "text_bytes": sum(entry["bytes"] for entry in entries if entry["kind"] == "text"),
    }


def describe_inputs(config: "RunConfig") -> dict:
    from pipeline_lib.config import resolve_path
    from pipeline_lib.config.task_files import read_task_files
    from pipeline_lib.gates.gate_file import read_gate_file
    from pipeline_lib.sources.registry import fingerprints

    # A mistake in what the last stages will ask and demand is told by the first one, not after a night of training.
    read_task_files(config.evaluate)
    read_gate_file(resolve_path(config.gates.file), config.gates.only)
    return fingerprints(config.download)


def estimate(stage: Stage) -> Estimate:
    from pipeline_lib.sources.cost import expected_cost

    return expected_cost(stage.settings, stage.threads)


if __name__ == "__main__":
    run_stage("01_download", run, estimate=estimate, inputs=describe_inputs)
