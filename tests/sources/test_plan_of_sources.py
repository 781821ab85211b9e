"""`01_download_data.py --plan`: how much each source matches, and what a short probe expects of it."""

import bz2
import gzip
import json
import random
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline_lib.config.download import DownloadSettings
from pipeline_lib.sources import http_sizes, local_probe
from pipeline_lib.sources.cost import expected_cost
from pipeline_lib.sources.http_sizes import SizeQuestions
from pipeline_lib.sources.local import LocalSource
from pipeline_lib.sources.local_probe import probe_local
from pipeline_lib.sources.rows import MAX_ROW_BYTES
from pipeline_lib.sources.unit_files import sink_of, write_unit
from pipeline_lib.stage import Unit, UserError

WORDS = [f"w{number:x}" for number in range(4000)]


def documents(count: int) -> list[str]:
    chance = random.Random(7)
    return [" ".join(chance.choices(WORDS, k=60)) for _ in range(count)]


def lines_of(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def write(path: Path, texts: list[str]) -> None:
    """One file of a format with these documents."""
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    elif name.endswith(".csv"):
        path.write_text("text\n" + "".join(f'"{text}\nand on"\n' for text in texts))
    elif name.endswith(".json"):
        path.write_text(json.dumps([{"text": text} for text in texts]))
    elif name.endswith(".txt"):
        path.write_text("\n---\n".join(texts))
    else:
        small_blocks = {".gz": gzip.compress, ".bz2": partial(bz2.compress, compresslevel=1)}
        path.write_bytes(small_blocks.get(path.suffix, bytes)(lines_of(texts)))


def really_written(settings, folder: Path) -> int:
    """Bytes of the shards that the stage would write."""
    source = LocalSource(settings)
    total = 0
    for number, name in enumerate(source.units()):
        unit = Unit(name, folder / "real")
        sink = sink_of(unit, source, number, 64_000_000, None)
        write_unit(unit, sink, source, source.read(name), settings.max_documents, print)
        unit.commit()
        total += sum(entry.bytes for entry in unit.files.values())
    return total


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.bz2", "a.parquet", "a.csv", "a.json", "a.txt"])
def test_what_the_beginning_of_a_large_file_says_is_scaled_to_all_of_it(tmp_path, quick, monkeypatch, name):
    write(tmp_path / name, documents(4000))
    separator = {"document_separator": "---"} if name.endswith(".txt") else {}
    settings = quick(type="local", paths=[str(tmp_path / name)], **separator)
    monkeypatch.setattr(local_probe, "BEGINNING_BYTES", (tmp_path / name).stat().st_size // 3)
    found = probe_local(settings, 64_000_000)
    assert found.matched.startswith("1 file, ")
    assert "4,000 records" not in found.why, "only the beginning is read"
    assert found.disk_bytes == pytest.approx(really_written(settings, tmp_path), rel=0.2)
    assert found.seconds > local_probe.START_SECONDS


def test_many_small_files_are_counted_and_some_are_read(tmp_path, quick, monkeypatch):
    for number, text in enumerate(documents(300)):
        (tmp_path / f"{number}.txt").write_text(text)
    (tmp_path / "empty.txt").touch()
    total = sum(file.stat().st_size for file in tmp_path.iterdir())
    settings = quick(type="local", paths=[str(tmp_path)])
    monkeypatch.setattr(local_probe, "PROBED_BYTES", total // 3)
    found = probe_local(settings, 64_000_000)
    assert found.matched == f"301 files, {total / 1000:.1f} kB"
    assert found.why.startswith("read 10") and "of 10" in found.why
    assert found.disk_bytes == pytest.approx(really_written(settings, tmp_path), rel=0.2)


def test_a_limit_on_documents_limits_the_cost(tmp_path, quick):
    write(tmp_path / "a.jsonl", documents(4000))
    every = quick(type="local", paths=[str(tmp_path / "a.jsonl")])
    few = every.model_copy(update={"max_documents": 400})
    ratio = probe_local(few, 64_000_000).disk_bytes / probe_local(every, 64_000_000).disk_bytes
    assert 0.08 < ratio < 0.15


def test_files_without_a_record_leave_the_cost_unknown_with_the_reason(tmp_path, quick):
    (tmp_path / "a.jsonl").write_text("broken\nbroken\n")
    found = probe_local(quick(type="local", paths=[str(tmp_path / "a.jsonl")]), 64_000_000)
    assert found.seconds is None and found.disk_bytes is None and "no record" in found.why


def test_what_the_stage_would_refuse_in_a_file_is_not_swallowed(tmp_path, quick):
    write(tmp_path / "a.parquet", documents(10))
    settings = quick(type="local", paths=[str(tmp_path / "a.parquet")], text_field="body")
    with pytest.raises(UserError, match="body"):
        probe_local(settings, 64_000_000)


BROKEN_BEGINNINGS = {
    "a.csv": (b'text\nfirst\n"and so on\n', "quote that opens in line 3"),
    "b.csv": (b"text,text\n", "must name each field once"),
    "a.json": (b'[{"text": "first"}, {"text": }, ', "not valid JSON after record 1"),
}


@pytest.mark.parametrize("compress", [None, gzip.compress])
@pytest.mark.parametrize("name", BROKEN_BEGINNINGS)
def test_damage_in_a_large_file_is_not_taken_for_the_cut(tmp_path, quick, monkeypatch, name, compress):
    beginning, problem = BROKEN_BEGINNINGS[name]
    data = beginning + ", 1\n".join(documents(4000)).encode()
    file = tmp_path / (name + ".gz" * bool(compress))
    file.write_bytes(compress(data) if compress else data)
    monkeypatch.setattr(local_probe, "BEGINNING_BYTES", file.stat().st_size // 3)
    settings = quick(type="local", paths=[str(file)])
    with pytest.raises(UserError, match=problem):
        probe_local(settings, 64_000_000)
    with pytest.raises(UserError, match=problem):
        really_written(settings, tmp_path)


def test_a_row_that_is_longer_than_what_is_read_of_the_file_is_no_damage(tmp_path, quick, monkeypatch):
    text = "\n".join(documents(200))
    (tmp_path / "a.csv").write_text(f'text\nfirst\n"{text}"\nlast\n')
    monkeypatch.setattr(local_probe, "BEGINNING_BYTES", 10_000)
    assert "read 1 record " in probe_local(quick(type="local", paths=[str(tmp_path / "a.csv")]), 64_000_000).why


def test_a_file_too_large_for_one_document_is_refused_by_the_plan_too(tmp_path, quick):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(MAX_ROW_BYTES + 1)
    (tmp_path / "b.txt").write_text("small")
    with pytest.raises(UserError, match=r"a.txt is longer than 64 MiB.*document_separator"):
        probe_local(quick(type="local", paths=[str(tmp_path)]), 64_000_000)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_archive_is_read_up_to_a_record_and_damage_in_it_is_said(tmp_path, quick, monkeypatch, suffix):
    records = []
    for number, text in enumerate(documents(400)):
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: https://a.org/{number}\r\n"
        body = f"{head}Content-Length: {len(text)}\r\n\r\n{text}\r\n\r\n".encode()
        records.append(gzip.compress(body) if suffix else body)
    file = tmp_path / ("a.wet" + suffix)
    file.write_bytes(b"".join(records))
    settings = quick(type="local", paths=[str(file)])
    monkeypatch.setattr(local_probe, "BEGINNING_BYTES", file.stat().st_size // 3)
    found = probe_local(settings, 64_000_000)
    assert "400 records" not in found.why
    assert found.disk_bytes == pytest.approx(really_written(settings, tmp_path), rel=0.2)
    file.write_bytes(b"".join([*records[:10], b"no archive" * 10, *records[10:]]))
    with pytest.raises(UserError, match="damaged"):
        probe_local(settings, 64_000_000)


@pytest.mark.parametrize("ignores_range", [False, True])
def test_servers_are_asked_how_large_their_files_are(server, quick, ignores_range):
    server.ignores_range = ignores_range
    urls = [server.put(f"/{number}.jsonl", b"x" * 1_500_000) for number in range(2)]
    assert SizeQuestions().ask(quick(type="http", urls=urls)) == "2 files, 3.0 MB to download"
    assert len(server.requests) == 2, "each is asked once"


def test_an_address_that_fails_ends_the_questions_and_is_named(server, quick):
    good = server.put("/a.jsonl", b"x" * 2000)
    bad = {"url": server.address + "/gone.jsonl", "sha256": "0" * 64}
    told = SizeQuestions().ask(quick(type="http", urls=[good, bad, good]))
    assert told.startswith("3 files, 2.0 kB in 1 of them (") and "/gone.jsonl" in told and "404" in told
    assert len(server.requests) == 2


def test_a_silent_server_costs_a_moment(server, quick, monkeypatch):
    monkeypatch.setattr(http_sizes, "ANSWER_SECONDS", 0.2)
    urls = [server.put(f"/{number}.jsonl", b"x") for number in range(3)]
    server.misbehave("/0.jsonl", "silent", after=3)
    started = time.monotonic()
    told = SizeQuestions().ask(quick(type="http", urls=urls))
    assert time.monotonic() - started < 2
    assert told.startswith("3 files, their sizes are unknown (") and "/0.jsonl" in told


def test_sources_share_the_seconds_and_a_name_that_is_not_resolved_in_time_is_left(server, quick, monkeypatch):
    monkeypatch.setattr(http_sizes, "ANSWER_SECONDS", 0.3)
    resolve = socket.getaddrinfo

    def slow(host, *arguments, **options):
        if host == "slow.invalid":
            time.sleep(5)
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    answering = quick(type="http", urls=[server.put("/a.jsonl", b"x" * 2000)])
    slow_url = {"url": "http://slow.invalid/a.jsonl", "sha256": "0" * 64}
    questions = SizeQuestions()
    started = time.monotonic()
    assert questions.ask(answering) == "1 file, 2.0 kB to download"
    told = questions.ask(quick(type="http", urls=[answering.urls[0].model_dump(), slow_url]))
    assert told.startswith("2 files, 2.0 kB in 1 of them (http://slow.invalid/a.jsonl: no answer, 0.3 s were over")
    for _ in range(20):
        assert questions.ask(answering).startswith("1 file, their sizes are unknown (not asked: 0.3 s were over")
    assert time.monotonic() - started < 2 and len(server.requests) == 2


def test_a_defect_while_asking_is_not_swallowed(quick, monkeypatch):
    monkeypatch.setattr(http_sizes.Transfer, "size_of", lambda self, url: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SizeQuestions().ask(quick(type="http", urls=[{"url": "http://localhost/a.jsonl", "sha256": "0" * 64}]))


def test_one_unknown_source_leaves_the_sum_unknown_and_names_itself(server, tmp_path):
    write(tmp_path / "a.jsonl", documents(100))
    sources = [
        {"name": "mine", "kind": "text", "type": "local", "paths": [str(tmp_path / "a.jsonl")]},
        {"name": "dump", "kind": "text", "type": "http", "urls": [server.put("/a.jsonl", b"x" * 2000)]},
        {"name": "web", "kind": "text", "type": "hub", "repo": "owner/text"},
    ]
    cost = expected_cost(DownloadSettings(sources=sources), 1)
    assert (cost.seconds, cost.memory_bytes, cost.disk_bytes) == (None, None, None)
    assert cost.basis.startswith("without dump, web about ")
    mine, dump, web = cost.parts
    assert mine.startswith("mine: 1 file, ") and "records of 1" in mine
    assert dump == "dump: 1 file, 2.0 kB to download; time and disk unknown (they depend on the network)"
    assert web.startswith("web: time and disk unknown (the hub")
    known = expected_cost(DownloadSettings(sources=sources[:1]), 1)
    assert known.seconds > 0 and known.disk_bytes > 0 and known.memory_bytes > 0


def test_plan_of_the_script_says_what_a_source_matches(tmp_path: Path, scripts: Path):
    write(tmp_path / "a.jsonl", documents(100))
    entry = {"name": "mine", "kind": "text", "type": "local", "paths": [str(tmp_path / "a.jsonl")]}
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"download": {"sources": [entry]}}))
    command = [sys.executable, str(scripts / "01_download_data.py"), "--config", str(config)]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run"), "--plan"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "    mine: 1 file, " in done.stdout and "cost    about unknown" not in done.stdout
    assert not (tmp_path / "run").exists()
