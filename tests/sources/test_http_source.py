"""An http source gives the records of its files, verified, with the disk of one file, and continues after a kill."""

import gzip
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib.sources.base import Source
from pipeline_lib.sources.http import HttpSource
from pipeline_lib.stage import StageFailure, UserError

ROOT = Path(__file__).resolve().parents[2]


def lines(start, count):
    return b"".join(b'{"text": "document %d"}\n' % number for number in range(start, start + count))


@pytest.fixture
def urls(server, tmp_path):
    """Three files of 100 documents in three formats."""
    table = pa.table({"text": [f"document {number}" for number in range(200, 300)]})
    pq.write_table(table, tmp_path / "c.parquet")
    return [
        server.put("/set/a.jsonl", lines(0, 100)),
        server.put("/set/b.jsonl.gz", gzip.compress(lines(100, 100))),
        server.put("/set/c.parquet", (tmp_path / "c.parquet").read_bytes()),
    ]


def read_all(source):
    return [record for unit in source.units() for record in source.read(unit)]


def test_every_file_is_read_in_the_order_given(quick, bench, urls):
    source = HttpSource(quick(type="http", urls=urls, license="MIT"), bench)
    assert isinstance(source, Source)
    records = read_all(source)
    assert [record["text"] for record in records] == [f"document {number}" for number in range(300)]
    assert {record["license"] for record in records} == {"MIT"}


def test_only_the_file_in_hand_lies_on_the_disk(quick, bench, urls):
    source = HttpSource(quick(type="http", urls=urls), bench)
    for unit in source.units():
        assert sum(1 for _ in source.read(unit)) == 100
        assert len([file for file in bench.scratch.rglob("*") if file.is_file()]) == 1


def test_query_of_an_address_is_used_but_names_nothing(quick, bench, server):
    entry = server.put("/set/a b.jsonl", lines(0, 1))
    entry["url"] = entry["url"].replace("a b", "a%20b") + "?token=secret"
    [record] = read_all(HttpSource(quick(type="http", urls=[entry]), bench))
    assert record["key"] == f"{server.address}/set/a b.jsonl@0"


def test_unfinished_unit_read_again_does_not_download_again(quick, bench, urls, server):
    source = HttpSource(quick(type="http", urls=urls), bench)
    first = source.read(source.units()[0])
    next(first)
    again = HttpSource(quick(type="http", urls=urls), bench)
    assert len(list(again.read(again.units()[0]))) == 100
    assert len(server.requests) == 1


def test_suffix_without_a_reader_is_refused_before_any_download(quick, bench, server):
    entry = server.put("/set/a.bin", b"x")
    with pytest.raises(UserError, match="no reader for this suffix"):
        HttpSource(quick(type="http", urls=[entry]), bench)
    assert server.requests == []


def test_wrong_digest_in_the_configuration_stops_the_stage(quick, bench, urls):
    urls[0]["sha256"] = "0" * 64
    with pytest.raises(StageFailure, match="wrong bytes twice"):
        read_all(HttpSource(quick(type="http", urls=urls), bench))


def test_fingerprint_needs_no_network_and_follows_the_digests(quick, bench, urls, server):
    before = HttpSource(quick(type="http", urls=urls), bench).fingerprint()
    urls[1]["sha256"] = urls[1]["sha256"].upper()
    assert HttpSource(quick(type="http", urls=urls), bench).fingerprint() == before
    urls[1]["sha256"] = "0" * 64
    assert HttpSource(quick(type="http", urls=urls), bench).fingerprint() != before
    assert server.requests == []


def test_killed_in_the_middle_of_a_download_continues_with_the_missing_bytes(server, tmp_path):
    path, data = "/set/big.jsonl", lines(0, 20_000)
    entry = server.put(path, data)
    server.misbehave(path, "stall", after=400_000)
    program = (
        "import sys, json; sys.path.insert(0, 'scripts')\n"
        "from pathlib import Path\n"
        "from pipeline_lib.config.sources import SourceSettings\n"
        "from pipeline_lib.sources.base import Workbench\n"
        "from pipeline_lib.sources.http import HttpSource\n"
        f"settings = SourceSettings(name='x', kind='text', type='http', urls=[{entry!r}], timeout_seconds=30)\n"
        f"source = HttpSource(settings, Workbench(Path({str(tmp_path)!r})))\n"
        "print(sum(1 for unit in source.units() for _ in source.read(unit)))\n"
    )
    first = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not any(file.stat().st_size >= 390_000 for file in tmp_path.rglob("*.partial")):
        assert time.monotonic() < deadline, "the download never got under way"
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    [partial] = tmp_path.rglob("*.partial")
    kept = partial.stat().st_size
    second = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert second.stdout.split() == ["20000"]
    assert server.ranges_asked(path) == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("seed", range(5))
def test_random_misbehaviour_never_changes_the_records(quick, bench, server, seed):
    draw = random.Random(seed)
    entry = server.put("/set/a.jsonl", lines(0, 5000))
    server.misbehave("/set/a.jsonl", "drop", after=1000)
    for _ in range(12):
        kind = draw.choice(["drop", "endless", "lie", "status"])
        status = {"status": draw.choice([429, 500, 503])} if kind == "status" else {}
        server.misbehave("/set/a.jsonl", kind, after=draw.randrange(30_000), **status)
    records = read_all(HttpSource(quick(type="http", urls=[entry], attempts=14), bench))
    assert [record["text"] for record in records] == [f"document {number}" for number in range(5000)]
    assert len(server.requests) > 5
