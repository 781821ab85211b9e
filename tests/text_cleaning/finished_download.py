"""A finished stage 01 made of given documents, as stage 02 finds it: shards, evaluation sets, ledger and manifest."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.config.download import DownloadSettings
from pipeline_lib.stage import Ledger
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.stage.stage import describe_files

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "url", "origin", "license")])


def document(identity: str, text: str, source: str = "web") -> dict[str, str]:
    """One row of a text shard."""
    origin = f"{source}.jsonl, record {identity}"
    return {"id": identity, "text": text, "source": source, "url": "", "origin": origin, "license": "CC0-1.0"}


def finish_download(
    run_folder: Path, shards: Sequence[Sequence[dict[str, str]]], evaluation: Mapping[str, Sequence[dict]] = {}
) -> Path:
    """Write runs/<run>/01_download with these shards and evaluation records; return its folder.

    Each evaluation set gets a task of its name in <run>/eval_tasks, which `asking_tasks` makes the configuration ask.
    """
    folder = run_folder / "01_download"
    folder.mkdir(parents=True)
    ledger = Ledger()
    files = {}
    for number, rows in enumerate(shards):
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path, compression="zstd")
        files.update(describe_files(path, path.name))
        for row in rows:
            size = len(row["text"].encode())
            ledger.enter("text", row["source"], documents=1, bytes=size)
            ledger.keep("text", row["source"], documents=1, bytes=size)
    for name, records in evaluation.items():
        path = folder / "eval" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        files.update(describe_files(path, f"eval/{path.name}"))
        write_task(run_folder, name)
    entries = [{"name": name, "kind": "eval", "files": [f"eval/{name}.jsonl"]} for name in evaluation]
    (folder / "sources.json").write_text(json.dumps({"sources": entries}), "utf-8")
    files.update(describe_files(folder / "sources.json", "sources.json"))
    fingerprint = {
        "settings": DownloadSettings().model_dump(mode="json"),
        "inputs": {},
        "data": {},
        "code": {},
        "seed": 0,
    }
    Manifest("01_download", fingerprint, files, ledger.to_json(), {}, [], 0).write(folder / MANIFEST)
    return folder


def write_task(run_folder: Path, name: str) -> None:
    """Write a task that asks the evaluation source of the same name."""
    folder = run_folder / "eval_tasks"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\nsource: {name}\nmetrics: {{bits_per_byte: bits_per_byte}}\noutput_type: loglikelihood_rolling\n"
        "doc_to_target: question\n",
        "utf-8",
    )


def asking_tasks(run_folder: Path) -> str:
    """Return the YAML section that asks every task of the run folder; the default one when it has none."""
    names = sorted(path.stem for path in (run_folder / "eval_tasks").glob("*.yaml"))
    return f"evaluate: {{tasks: [{', '.join(names)}], tasks_folder: {run_folder / 'eval_tasks'}}}\n" if names else ""
