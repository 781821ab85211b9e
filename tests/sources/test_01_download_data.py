"""Stage 01 as a user meets it: whole runs of the script, killed runs, limits, and errors in one line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import yaml

SMALL = {
    "distributions": ["python"], "chat_examples": 300, "arithmetic_problems": 100, "preference_pairs": 100,
    "domain_examples": 100, "choice_questions": 40, "arithmetic_questions": 20, "preference_questions": 30,
    "domain_questions": 30, "heldout_documents": 5, "heldout_characters": 800,
}  # fmt: skip


class Download:
    """One run folder of stage 01 with its configuration."""

    def __init__(self, folder: Path, scripts: Path, settings: dict[str, Any], threads: int = 2):
        folder.mkdir(exist_ok=True)
        self.folder = folder / "run" / "01_download"
        self.config = folder / "download.yaml"
        self.config.write_text(yaml.safe_dump({"threads": threads, "download": settings}))
        self._command = [
            sys.executable, str(scripts / "01_download_data.py"), "--config", str(self.config),
            "--run-dir", str(folder / "run"),
        ]  # fmt: skip

    def run(self, *flags: str) -> tuple[int, str, str]:
        done = subprocess.run([*self._command, *flags], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    def kill_after(self, units: int) -> None:
        """Start, and SIGKILL the process once it has finished that many units; then the workers it left behind."""
        journal = self.folder / "work" / "journal.jsonl"
        process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= units):
            time.sleep(0.002)
        process.kill()
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def run_well(self, *flags: str) -> str:
        code, out, err = self.run(*flags)
        assert code == 0, out + err
        return out

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())

    def digests(self) -> dict[str, str]:
        return {name: file["digest"] for name, file in self.manifest()["files"].items()}

    def rows(self) -> list[dict[str, str]]:
        return [row for part in sorted(self.folder.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]

    def ledger(self, flow: str, source: str) -> dict[str, Any]:
        return self.manifest()["ledger"][flow][source]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Download:
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    download = Download(tmp_path_factory.mktemp("finished"), scripts, {"python_docs": SMALL})
    download.run_well()
    return download


@pytest.fixture
def lines(tmp_path: Path) -> list[dict[str, Any]]:
    """`sources` with one entry: fifty documents of about 500 bytes in a JSON lines file."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {number} " * 40}) + "\n" for number in range(50)))
    return [{"name": "lines", "kind": "text", "type": "local", "paths": [str(path)], "license": "CC0-1.0"}]


def test_every_promised_file_is_there_with_the_promised_records(finished: Download):
    expected = {
        "sft/python_chat.jsonl": ({"instruction", "input", "output", "id"}, 300),
        "reasoning/arithmetic.jsonl": ({"question", "answer", "id"}, 100),
        "preference/python_pairs.jsonl": ({"prompt", "chosen", "rejected", "id"}, 100),
        "domain/python_signatures.jsonl": ({"instruction", "input", "output", "id"}, 100),
        "eval/python_choice.jsonl": ({"question", "choices", "answer", "id"}, 40),
        "eval/arithmetic.jsonl": ({"question", "answer", "id"}, 20),
        "eval/preference.jsonl": ({"prompt", "chosen", "rejected", "id"}, 30),
        "eval/heldout_docs.jsonl": ({"text", "id"}, 5),
        "eval/domain.jsonl": ({"instruction", "output", "id"}, 30),
    }
    for name, (fields, count) in expected.items():
        records = [json.loads(line) for line in (finished.folder / name).read_text("utf-8").splitlines()]
        assert len(records) == count and len({record["id"] for record in records}) == count, name
        assert all(set(record) == fields for record in records), name
    catalog = json.loads((finished.folder / "sources.json").read_text())["sources"]
    files = {file for source in catalog for file in source["files"]}
    assert files == {*expected, *(part.name for part in finished.folder.glob("part-*.parquet"))}
    for source in catalog:
        assert source["documents"] == finished.ledger(source["kind"], source["name"])["kept"]["documents"]
        assert {"name", "kind", "format", "license", "files", "documents", "bytes"} <= set(source)


def test_text_rows_are_whole_and_their_ids_come_from_source_key_and_text(finished: Download):
    rows = finished.rows()
    assert len({row["id"] for row in rows}) == len(rows) > 300
    for row in rows:
        module = row["text"].split("\n", 1)[0]
        identity = xxhash.xxh3_128_hexdigest(f"python_docs\0{module}\0{row['text']}".encode())
        assert row["id"] == f"python_docs-{identity}"
        assert (row["source"], row["license"]) == ("python_docs", "PSF-2.0")
        assert row["url"].startswith("pkg:generic/python@")
    kept = finished.ledger("text", "python_docs")["kept"]
    assert kept == {"documents": len(rows), "bytes": sum(len(row["text"].encode()) for row in rows)}


def test_a_second_start_is_up_to_date(finished: Download):
    assert "up to date" in finished.run_well()


@pytest.mark.slow
def test_one_worker_writes_the_same_bytes_as_three(finished: Download, tmp_path: Path, scripts: Path):
    for threads in (1, 3):
        other = Download(tmp_path / str(threads), scripts, {"python_docs": SMALL}, threads)
        other.run_well()
        assert other.digests() == finished.digests()


@pytest.mark.slow
@pytest.mark.parametrize("after_units", [1, 4])
def test_killed_runs_continue_to_the_same_bytes(finished: Download, tmp_path: Path, scripts: Path, after_units: int):
    download = Download(tmp_path, scripts, {"python_docs": SMALL})
    download.kill_after(after_units)
    assert not (download.folder / "manifest.json").exists()
    download.run_well()
    assert download.digests() == finished.digests()
    assert download.manifest()["ledger"] == finished.manifest()["ledger"]


@pytest.mark.slow
def test_shards_end_at_their_size_and_hold_the_same_rows(tmp_path: Path, scripts: Path, lines: list[dict[str, Any]]):
    whole = Download(tmp_path / "whole", scripts, {"sources": lines})
    cut = Download(tmp_path / "cut", scripts, {"sources": lines, "shard_megabytes": 0.003})
    whole.run_well()
    cut.run_well()
    assert cut.rows() == whole.rows() and len(whole.rows()) == 50
    sizes = [
        sum(len(text) for text in pq.read_table(part)["text"].to_pylist()) for part in sorted(cut.folder.glob("part-*"))
    ]
    assert len(sizes) > 5 and all(size >= 3000 for size in sizes[:-1]) and max(sizes) < 3000 + 600


def test_max_documents_keeps_the_first_and_the_ledger_says_so(
    tmp_path: Path, scripts: Path, lines: list[dict[str, Any]]
):
    download = Download(tmp_path, scripts, {"sources": [{**lines[0], "max_documents": 7}]})
    download.run_well()
    assert [row["text"].split()[1] for row in download.rows()] == [str(number) for number in range(7)]
    ledger = download.ledger("text", "lines")
    assert ledger["kept"]["documents"] == 7
    assert ledger["dropped"]["beyond max_documents (reading stopped)"]["documents"] == 1


@pytest.mark.slow
def test_max_documents_stops_python_docs_before_its_last_unit(tmp_path: Path, scripts: Path):
    sources = [{"name": "python_docs", "kind": "text", "type": "python_docs", "max_documents": 9}]
    download = Download(tmp_path, scripts, {"sources": sources, "python_docs": SMALL})
    out = download.run_well()
    assert len(download.rows()) == 9
    assert "units not read (max_documents)" in out


def test_text_that_is_not_unicode_is_dropped_by_name(tmp_path: Path, scripts: Path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "good words"}\n{"text": "half \\ud800 a pair"}\n')
    download = Download(
        tmp_path, scripts, {"sources": [{"name": "odd", "kind": "text", "type": "local", "paths": [str(path)]}]}
    )
    download.run_well()
    assert [row["text"] for row in download.rows()] == ["good words"]
    assert sum(reason["documents"] for reason in download.ledger("text", "odd")["dropped"].values()) == 1


def test_a_file_whose_name_is_not_utf8_keeps_its_documents(tmp_path: Path, scripts: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("good words")
    (folder / "caf\xe9.txt").write_text("other words")
    source = {"name": "odd", "kind": "text", "type": "local", "paths": [str(folder)]}
    download = Download(tmp_path, scripts, {"sources": [source]})
    download.run_well()
    origins = {row["text"]: row["origin"] for row in download.rows()}
    assert origins == {"good words": rf"{folder}/caf\xe9.txt", "other words": f"{folder}/caf\xe9.txt"}
    assert download.ledger("text", "odd")["dropped"] == {}


def test_a_license_field_in_which_no_document_states_a_licence_is_refused(tmp_path: Path, scripts: Path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["good words"], "licences": ["MIT"]}), path)
    source = {"name": "mine", "kind": "text", "type": "local", "paths": [str(path)], "license_field": "license"}
    code, out, err = Download(tmp_path, scripts, {"sources": [source]}).run()
    assert code == 2 and err.count("\n") == 1 and "Traceback" not in out
    assert "none of its 1 documents states a licence in the field 'license'" in err
    assert f"the first, {path}, row 1, has licences, text; correct or remove `license_field`" in err


@pytest.mark.slow
def test_kinds_that_the_list_leaves_out_are_filled_or_named(tmp_path: Path, scripts: Path, lines: list[dict]):
    out = Download(tmp_path / "bare", scripts, {"sources": lines}).run_well()
    for kind in ("sft", "preference", "domain", "eval"):
        assert f"no source of kind {kind}, which scripts" in out
    assert "no source of kind reasoning" not in out, "stage 06 does without"
    filled = Download(tmp_path / "filled", scripts, {"sources": lines, "fill_kinds": True, "python_docs": SMALL})
    out = filled.run_well()
    assert "kind preference is filled by the built-in python_pairs" in out
    kinds = {entry["kind"] for entry in json.loads((filled.folder / "sources.json").read_text())["sources"]}
    assert kinds == {"text", "sft", "reasoning", "preference", "domain", "eval"}
    text = [entry["name"] for entry in json.loads((filled.folder / "sources.json").read_text())["sources"]
            if entry["kind"] == "text"]  # fmt: skip
    assert text == [lines[0]["name"]], "a kind that the list has is not added to"


@pytest.mark.slow
def test_the_card_names_what_requirements_txt_asks_for_and_the_environment_lacks(
    tmp_path: Path, scripts: Path, monkeypatch: pytest.MonkeyPatch
):
    info = tmp_path / "site" / "trl-1.16.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 1.16.0\nRequires-Dist: absent-demo\n")
    (info / "RECORD").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    patterns = ["requirements.txt", "!*", "python", "absent-*"]
    download = Download(tmp_path, scripts, {"python_docs": {**SMALL, "distributions": patterns}})
    note = "asked for by requirements.txt but not installed, so not read: absent-demo"
    assert f"note: {note}" in download.run_well()
    assert note in download.manifest()["notes"]


def entry(**fields: Any) -> dict[str, Any]:
    return {"sources": [{"name": "a", "kind": "text", "type": "python_docs", **fields}]}


NOTHING = {"python_docs": {"distributions": ["no-such"]}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**entry(), **NOTHING}, ["'a' gave no records"]),
        ({**entry(kind="sft"), **NOTHING}, ["'a'", "no described name", "download.python_docs.distributions"]),
        ({"sources": entry()["sources"] * 2}, ["two sources of kind text", "'a'"]),
        (entry(name="a-00001", kind="sft"), ["'a-00001'", "part file"]),
        (entry(kind="sft", format="sharegpt"), ["'a'", "format alpaca"]),
        (entry(license="MIT"), ["'a'", "remove `license`"]),
        (entry(type="local", paths=["/no/such/file.jsonl"]), ["'a'", "/no/such/file.jsonl", "does not exist"]),
        ({"sources": []}, ["sources"]),
        ({"shard_megabytes": 0}, ["shard_megabytes"]),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, scripts: Path, settings: dict, words: list[str]):
    code, out, err = Download(tmp_path, scripts, settings).run()
    assert code == 2, out + err
    assert "Traceback" not in out + err and err.count("\n") == 1
    for word in words:
        assert word in err, err


def test_plan_costs_a_moment_and_writes_nothing(tmp_path: Path, scripts: Path):
    download = Download(tmp_path, scripts, {"python_docs": SMALL})
    out = download.run_well("--plan")
    assert "would run" in out and "MB of Python source" in out
    assert not download.folder.exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gates": {"file": "nowhere/gates.yaml"}}, "nowhere/gates.yaml does not exist; correct gates.file"),
        ({"evaluate": {"tasks": ["poetry_quiz"]}}, "evaluation task 'poetry_quiz'"),
    ],
)
def test_what_the_last_stages_will_refuse_is_told_by_the_first(tmp_path: Path, scripts: Path, section, message):
    download = Download(tmp_path, scripts, {"python_docs": SMALL})
    download.config.write_text(yaml.safe_dump({"download": {"python_docs": SMALL}, **section}))
    assert message in download.run("--plan")[1]
    code, _, errors = download.run()
    assert code == 2 and message in errors and errors.count("\n") == 1
    assert not (download.folder / "manifest.json").exists()
