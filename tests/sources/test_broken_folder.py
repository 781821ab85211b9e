"""A folder as nobody wants it goes through stages 01 and 02: every row is kept or has a reason; the ledgers balance."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline_lib.stage import Ledger
from pipeline_lib.stage.manifest import MANIFEST, Manifest

WORDS = ["the", "river", "and", "stone", "of", "market", "with", "window", "to", "morning", "letter", "that", "garden"]


def prose(seed: int) -> str:
    rng = random.Random(seed)
    return "\n".join(" ".join(rng.choices(WORDS, k=14)).capitalize() + "." for _ in range(12))


def record(**fields) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def write_broken_folder(folder: Path) -> int:
    """Write files with sound and unsound rows; return the number of rows."""
    folder.mkdir()
    lines = [
        record(id="a", text=prose(1), note="another schema"),
        record(id=2, text=prose(2), nested={"deep": [1]}),
        b'{"id": "bytes", "text": "\xff\xfe"}\n',
        b"{not json\n",
        b"[1, 2]\n",
        b'"a string"\n',
        record(id="none", text=None),
        record(id="space", text=" \n\t "),
        record(id="number", text=17),
        record(id="missing"),
        record(text=prose(3)),
        b'{"id": "half", "text": "\\ud800"}\n',
        record(id="nul", text="\x00" + prose(4) + "\x00"),
        record(id="long", text=" ".join(f"word{i}" for i in range(70_000))),
        b"\x00\x00\x00\n",
        record(id="twin", text=prose(1)),
    ]
    (folder / "mixed.jsonl").write_bytes(b"".join(lines) + record(id="last", text=prose(5)).rstrip())
    with gzip.open(folder / "more.jsonl.gz", "wb") as stream:
        stream.write(record(id="zip", text=prose(6)) + b"\n\n" + record(id="cut")[:-3])
    table = {"id": ["p1", None, "p3"], "text": [prose(7), prose(8), None], "extra": [1.5, float("nan"), None]}
    pq.write_table(pa.table(table), folder / "rows.parquet")
    (folder / "rows.csv").write_text(f'id,text\nc1,"{prose(9)}"\nc2,too,many\n"c3,never closed\n', "utf-8")
    return len(lines) + 1 + 2 + 3 + 3


def run(script: str, scripts: Path, config: Path, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(scripts / script), "--config", str(config), "--run-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def configuration(path: Path, data: Path, **source) -> Path:
    entry = {"name": "broken", "kind": "text", "type": "local", "paths": [str(data)], "license": "CC0-1.0", **source}
    lenient = {"quality_rules": [], "language": {"keep": []}, "contamination": {"enabled": False}}
    path.write_text(yaml.safe_dump({"run": "broken", "download": {"sources": [entry]}, "clean": lenient}))
    return path


@pytest.mark.slow
def test_every_row_of_a_broken_folder_is_kept_or_has_a_reason(tmp_path, scripts):
    rows = write_broken_folder(tmp_path / "data")
    config = configuration(tmp_path / "c.yaml", tmp_path / "data", id_field="id")
    for script in ("01_download_data.py", "02_clean_deduplicate.py"):
        done = run(script, scripts, config, tmp_path / "run")
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = (Manifest.read(tmp_path / "run" / name / MANIFEST) for name in ("01_download", "02_clean"))
    entry = first.ledger["text"]["broken"]
    assert entry["in"]["documents"] == rows
    reasons = {reason: amount["documents"] for reason, amount in entry["dropped"].items()}
    assert reasons.pop("not UTF-8") == 2 and reasons.pop("not JSON") == 3 and reasons.pop("not a JSON object") == 2
    assert reasons.pop("no field 'text'") == 1 and reasons.pop("no field 'id'") == 2
    assert reasons.pop("empty text") == 3 and reasons.pop("field 'text' is not text") == 1
    assert reasons.pop("not as many CSV fields as the header") == 1
    assert [number for reason, number in reasons.items() if reason.startswith("not CSV")] == [1] and len(reasons) == 1
    assert second.ledger["text"]["broken"]["dropped"]["exact_duplicate"]["documents"] == 1
    for manifest in (first, second):
        Ledger.from_json(manifest.ledger).check()
    kept = [row for part in (tmp_path / "run" / "02_clean").glob("part-*") for row in pq.read_table(part).to_pylist()]
    assert len(kept) == rows - 16 - 1 and not any("\x00" in row["text"] for row in kept)


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.parquet", "cut.warc.gz", "none.jsonl", "column.parquet"])
def test_a_file_whose_rows_cannot_be_counted_is_one_line_that_names_it(tmp_path, scripts, name):
    data = tmp_path / "data"
    data.mkdir()
    noise = [f"{prose(i)} {i}" for i in range(50)]
    if name == "cut.warc.gz":
        head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: "
        records = (f"{head}{len(text)}\r\n\r\n{text}\r\n\r\n" for text in noise)
        whole = b"".join(gzip.compress(record.encode()) for record in records)
        (data / name).write_bytes(whole[: len(whole) // 2])
    elif name.endswith(".gz"):
        whole = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in noise).encode())
        (data / name).write_bytes(whole[: len(whole) // 2])
    elif name == "cut.parquet":
        pq.write_table(pa.table({"text": noise}), data / name)
        (data / name).write_bytes((data / name).read_bytes()[:-20])
    elif name == "column.parquet":
        pq.write_table(pa.table({"body": noise}), data / name)
    else:
        (data / name).write_text('{"content": "x"}\n')
    done = run("01_download_data.py", scripts, configuration(tmp_path / "c.yaml", data), tmp_path / "run")
    assert done.returncode == 2 and name in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.long
def test_one_line_of_50_megabytes_and_one_beyond_the_limit(tmp_path, scripts):
    data = tmp_path / "data"
    data.mkdir()
    long = " ".join(f"{i:x}" for i in range(8_000_000))[:50_000_000]
    with open(data / "long.jsonl", "wb") as stream:
        stream.write(record(text=prose(1)) + record(text=long) + record(text=long + long) + record(text=prose(2)))
    config = configuration(tmp_path / "c.yaml", data)
    for script in ("01_download_data.py", "02_clean_deduplicate.py"):
        done = run(script, scripts, config, tmp_path / "run")
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = (Manifest.read(tmp_path / "run" / name / MANIFEST) for name in ("01_download", "02_clean"))
    ledger = first.ledger["text"]["broken"]
    assert ledger["kept"]["documents"] == 3 and ledger["dropped"]["record longer than 64 MiB"]["documents"] == 1
    ledger = second.ledger["text"]["broken"]
    assert ledger["kept"]["documents"] == 2 and ledger["dropped"]["max_document_bytes"]["documents"] == 1
    assert first.run["peak_memory_bytes"] < 1e9 and second.run["peak_memory_bytes"] < 1e9
