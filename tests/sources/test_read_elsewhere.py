"""Stage 01 by the tasks of an engine: the shards, records and accounts of a run that reads everything itself."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline_lib.config.download import DownloadSettings
from pipeline_lib.config.sources import SourceSettings
from pipeline_lib.sources import file_rows, units
from pipeline_lib.sources.read_elsewhere import start_reading
from pipeline_lib.stage import Unit, UserError
from pipeline_lib.stage.manifest import Manifest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))
import in_process  # noqa: E402
from slurm_stand_in import Job, install  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "01_download_data.py"


def lines(count: int, *broken: bytes, **fields: str) -> bytes:
    rows = [json.dumps({"text": f"document {n} " * 20} | fields).encode() + b"\n" for n in range(count)]
    return b"".join(row + bad for row, bad in zip(rows, [*broken, *[b""] * count], strict=False))


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> Path:
    """Text sources of several units each with broken lines, one with a limit, one with licences of some; and chats."""
    monkeypatch.setattr(file_rows, "SHARE_BYTES", 4000)
    monkeypatch.setattr(units, "SHARE_BYTES", 4000)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "large.jsonl").write_bytes(lines(60, b"broken\n", b'"\\ud800"\n', b'{"text": "\\ud800"}\n'))
    for number in range(5):
        (folder / f"small-{number}.jsonl").write_bytes(lines(9, license="MIT"))
    chats = [{"instruction": f"say {n} " * 30, "output": f"{n}"} for n in range(40)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    text = {"kind": "text", "type": "local", "license": "CC0-1.0"}
    sources = [
        {"name": "mine", **text, "paths": [str(folder)], "license_field": "license"},
        {"name": "few", **text, "paths": [str(folder)], "max_documents": 30},
        {"name": "more", **text, "paths": [str(folder / "large.jsonl")]},
        {"name": "chats", "kind": "sft", "format": "alpaca", "type": "local", "paths": [str(tmp_path / "chats.jsonl")]},
    ]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"download": {"sources": sources, "shard_megabytes": 0.003}, "threads": 1}))
    return path


def decisive(run: Path) -> dict:
    manifest = Manifest.read(run / "01_download" / "manifest.json")
    assert manifest is not None
    return manifest._decisive()


def test_tasks_read_to_the_same_files_and_accounts(config: Path, tmp_path: Path, monkeypatch, capsys):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    flags = ["--config", str(config), "--run-dir"]
    assert in_process.run_script(monkeypatch, SCRIPT.name, *flags, str(home)) == 0
    said = capsys.readouterr().out
    batches = in_process.take_the_place_of_ray(monkeypatch, tasks=3)
    assert in_process.run_script(monkeypatch, SCRIPT.name, *flags, str(elsewhere), *in_process.FLAGS) == 0
    said_elsewhere = capsys.readouterr().out
    assert decisive(elsewhere) == decisive(home)
    assert len([name for name in decisive(home)["files"] if name.startswith("part-")]) > 12
    done = {batch.step: len(batch.jobs) for batch in batches}
    assert (
        list(done) == ["read-text-mine", "read-text-few", "read-text-more", "read-sft-chats"] and min(done.values()) > 1
    )
    few = decisive(home)["ledger"]["text"]["few"]
    assert few["kept"]["documents"] == 30 and sum(amount["documents"] for amount in few["dropped"].values()) > 1
    examples = [line for line in said.splitlines() if "large.jsonl:" in line]
    first = f"(the first is {tmp_path}/in/large.jsonl:1)"
    note = f"mine: 60 of 105 documents state no licence in the field 'license' {first} and stand under that of the"
    assert f"{note} source, CC0-1.0" in decisive(home)["notes"]
    assert "  mine: so far no document states a licence in the field 'license'\n" in said
    assert len(examples) > 2 and examples == [line for line in said_elsewhere.splitlines() if "large.jsonl:" in line]


def test_a_unit_whose_files_were_being_taken_at_a_kill_is_not_read_again(config: Path, tmp_path: Path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    flags = ["--config", str(config), "--run-dir"]
    assert in_process.run_script(monkeypatch, SCRIPT.name, *flags, str(home)) == 0
    batches = in_process.take_the_place_of_ray(monkeypatch, tasks=2)

    class PowerCut(BaseException):
        pass

    commit = Unit.commit

    def cut_in_the_third_unit(self: Unit) -> None:
        if self.key.startswith("text/mine/00002"):
            raise PowerCut
        commit(self)

    monkeypatch.setattr(Unit, "commit", cut_in_the_third_unit)
    with pytest.raises(PowerCut):
        in_process.run_script(monkeypatch, SCRIPT.name, *flags, str(elsewhere), *in_process.FLAGS)
    monkeypatch.setattr(Unit, "commit", commit)
    assert in_process.run_script(monkeypatch, SCRIPT.name, *flags, str(elsewhere), *in_process.FLAGS) == 0
    assert [batch.step for batch in batches].count("read-text-mine") == 1
    assert decisive(elsewhere) == decisive(home)


def test_a_machine_that_sees_other_files_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(lines(3))
    entry = SourceSettings(name="mine", kind="text", type="local", paths=[str(tmp_path)])
    with pytest.raises(UserError, match="sees other files than the one where the script runs"):
        start_reading(DownloadSettings(sources=[entry]), tmp_path / "scratch", "text", "mine", "xxh3:other", 1000)


@pytest.mark.long
def test_slurm_tasks_download_and_read_what_one_process_does(server, tmp_path: Path, monkeypatch):
    urls = [server.put(f"/dump/{n}.jsonl.gz", gzip.compress(lines(300, page=f"{n}"), 1, mtime=0)) for n in range(5)]
    sources = [{"name": "dump", "kind": "text", "type": "http", "urls": urls}]
    settings = {"sources": sources, "shard_megabytes": 0.02}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"download": settings}))
    jobs = install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{jobs.parent}:{os.environ['PATH']}")
    slurm = ["--engine", "slurm", "--partition", "cpu", "--tasks", "2", "--poll_seconds", "0.1"]
    for run, flags in (("home", []), ("slurm_run", slurm)):
        command = [sys.executable, str(SCRIPT), "--config", str(config), "--run-dir", str(tmp_path / run), *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr + done.stdout
    assert decisive(tmp_path / "slurm_run") == decisive(tmp_path / "home")
    (job,) = [Job(jobs, folder.name) for folder in jobs.iterdir()]
    assert job.option("job-name") == "01_download-read-text-dump" and job.tasks() == [0, 1]
