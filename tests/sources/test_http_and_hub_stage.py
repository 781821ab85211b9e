"""Stage 01 over http, hub and local sources: killed and stopped in transfers, it ends with the files of a quiet run."""

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "c" * 40


def lines(name, count, **fields):
    return b"".join(json.dumps({"text": f"{name} {n}", **fields}).encode() + b"\n" for n in range(count))


@pytest.fixture
def config(server, hub, tmp_path):
    """A configuration with one source of each type, several files each."""
    urls = [server.put(f"/dump/{n}.jsonl.gz", gzip.compress(lines(f"dump {n}", 3000), 1, mtime=0)) for n in range(3)]
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": [f"hub {n}" for n in range(500)]}), stream)
    hub.put("owner/text", COMMIT, {"a.parquet": stream.getvalue(), "b.parquet": stream.getvalue()})
    pairs = b"".join(json.dumps({"chosen": f"yes {n}", "rejected": "no"}).encode() + b"\n" for n in range(50))
    hub.put("owner/pairs", COMMIT, {"train.jsonl": pairs})
    (tmp_path / "mine.jsonl").write_bytes(lines("mine", 100) + b"broken\n")
    waits = {"longest_wait_seconds": 0.1, "timeout_seconds": 30.0}
    sources = [
        {"name": "dump", "kind": "text", "type": "http", "urls": urls, **waits},
        {"name": "web", "kind": "text", "type": "hub", "repo": "owner/text", "files": ["*.parquet"], **waits},
        {"name": "mine", "kind": "text", "type": "local", "paths": [str(tmp_path / "mine.jsonl")]},
        {
            "name": "pairs",
            "kind": "preference",
            "format": "hh-rlhf",
            "type": "hub",
            "repo": "owner/pairs",
            "files": ["*.jsonl"],
        },
    ]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"download": {"sources": sources}}))
    return path


def start(server, config, run):
    command = [sys.executable, "scripts/01_download_data.py", "--config", str(config), "--run-dir", str(run)]
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


def wait_for_stall(server, path):
    deadline = time.monotonic() + 30
    while server.faults[path] or not server.sent[path]:
        assert time.monotonic() < deadline, f"{path} was never asked for"
        time.sleep(0.01)
    time.sleep(0.2)


def outputs(run):
    """Digests of everything the stage promises, the manifest and the log apart."""
    folder = run / "01_download"
    files = [
        file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in ("manifest.json", "log.txt")
    ]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_killed_and_stopped_in_transfers_ends_with_identical_files(server, hub, config, tmp_path):
    assert finish(start(server, config, tmp_path / "quiet"))[0] == 0
    expected = outputs(tmp_path / "quiet")
    assert len(expected) == 8, "three shards of the dump, one of each other text source, pairs, sources.json"
    server.sent.clear()
    server.misbehave("/dump/1.jsonl.gz", "stall", after=5000)
    first = start(server, config, tmp_path / "run")
    wait_for_stall(server, "/dump/1.jsonl.gz")
    first.send_signal(signal.SIGKILL)
    finish(first)
    hub_file = hub.resolve("owner/text", COMMIT, "a.parquet")
    server.misbehave(hub_file, "status", times=4, status=503)
    server.misbehave(hub_file, "stall", after=500)
    second = start(server, config, tmp_path / "run")
    wait_for_stall(server, hub_file)
    second.send_signal(signal.SIGTERM)
    code, words = finish(second)
    assert code == 143, words
    assert server.silent, "the stage left while the server said nothing"
    server.release()
    third = start(server, config, tmp_path / "run")
    code, words = finish(third)
    assert code == 0, words
    assert outputs(tmp_path / "run") == expected
    assert server.ranges_asked("/dump/1.jsonl.gz")[1:] == [None, "bytes=5000-"], "continued, not repeated"
    assert server.ranges_asked("/dump/0.jsonl.gz") == [None, None], "once per run"


@pytest.mark.slow
def test_bad_rows_and_sources_are_accounted_for(server, config, tmp_path):
    code, words = finish(start(server, config, tmp_path / "run"))
    assert code == 0
    assert "mine.jsonl:101: not JSON" in words
    catalog = json.loads((tmp_path / "run/01_download/sources.json").read_text())["sources"]
    assert [(entry["name"], entry["documents"]) for entry in catalog] == [
        ("dump", 9000),
        ("web", 1000),
        ("mine", 100),
        ("pairs", 50),
    ]
    assert catalog[1]["provenance"]["commit"] == COMMIT


@pytest.mark.parametrize(
    ("path", "fault", "code", "words"),
    [
        ("/dump/0.jsonl.gz", {"kind": "status", "status": 404}, 2, "correct the address"),
        ("/dump/0.jsonl.gz", {"kind": "wrong", "times": 2}, 1, "wrong bytes twice"),
        (
            "/dump/0.jsonl.gz",
            {"kind": "status", "status": 503, "headers": {"Retry-After": "900"}},
            1,
            "asks to wait 900 s",
        ),
    ],
)
def test_transfer_that_cannot_succeed_ends_in_one_clear_line(server, config, tmp_path, path, fault, code, words):
    server.misbehave(path, **fault)
    found, said = finish(start(server, config, tmp_path / "run"))
    assert found == code, said
    assert words in said
    assert "Traceback" not in said
