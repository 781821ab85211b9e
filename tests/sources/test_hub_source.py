"""A hub data set is pinned, read in shares, and read the same whatever happens to the connection or the process."""

import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib.sources import file_rows, transfer, units
from pipeline_lib.sources.base import Source, Workbench
from pipeline_lib.sources.hub import HubSource
from pipeline_lib.stage import StageFailure, UserError

FIRST, SECOND = "a" * 40, "b" * 40
REPO = "owner/set"
SHARD = "data/train-00000-of-00001.parquet"


def parquet(texts, rows_per_group=10):
    stream = io.BytesIO()
    draw = random.Random(6)
    table = pa.table(
        {
            "text": texts,
            "url": [f"http://a/{n}" for n in range(len(texts))],
            "noise": [draw.randbytes(99).hex() for _ in texts],
        }
    )
    pq.write_table(table, stream, row_group_size=rows_per_group)
    return stream.getvalue()


TEXTS = [f"document {number}" for number in range(200)]


@pytest.fixture
def entry(quick):
    def make(**fields):
        return quick(type="hub", repo=REPO, **fields)

    return make


@pytest.fixture
def small_shares(monkeypatch):
    """Files of kilobytes are treated like files of gigabytes."""
    monkeypatch.setattr(file_rows, "SHARE_BYTES", 6000)
    monkeypatch.setattr(units, "SHARE_BYTES", 6000)
    monkeypatch.setattr(transfer, "READ_AHEAD_BYTES", 2000)


def read_all(source):
    return [record for unit in source.units() for record in source.read(unit)]


def texts(source):
    return [record["text"] for record in read_all(source)]


@pytest.mark.parametrize("large", [True, False])
def test_small_files_are_downloaded_and_checked_against_the_hubs_digest(hub, entry, bench, server, large):
    files = {SHARD: parquet(TEXTS), "data/test-00000-of-00001.parquet": parquet(["other"])}
    hub.put(REPO, FIRST, files, large=large)
    server.misbehave(hub.resolve(REPO, FIRST, SHARD), "wrong")
    server.misbehave(hub.resolve(REPO, FIRST, SHARD), "drop", after=3000)
    source = HubSource(entry(), bench)
    assert isinstance(source, Source)
    assert texts(source) == TEXTS
    fourth = {"key": f"{SHARD}#4", "text": "document 3", "url": "http://a/3", "license": ""}
    assert read_all(source)[3] == fourth | {"origin": f"{SHARD}, row 4"}


def test_provenance_names_commit_files_and_digests(hub, entry, bench):
    data = parquet(TEXTS)
    hub.put(REPO, FIRST, {SHARD: data}, large=True)
    source = HubSource(entry(), bench)
    read_all(source)
    found = json.loads(json.dumps(source.provenance()))
    assert (found["repo"], found["commit"]) == (REPO, FIRST)
    assert [(file["path"], file["size"], file["algorithm"]) for file in found["files"]] == [
        (SHARD, len(data), "sha256")
    ]


def test_large_parquet_file_is_read_in_place_share_by_share(hub, entry, bench, server, small_shares):
    data = parquet(TEXTS)
    hub.put(REPO, FIRST, {SHARD: data})
    source = HubSource(entry(), bench)
    assert len(source.units()) == -(-len(data) // 6000) > 3
    assert texts(source) == TEXTS
    assert [file.name for file in bench.scratch.rglob("*") if file.is_file()] == ["listing.json"]
    asked = server.ranges_asked(hub.resolve(REPO, FIRST, SHARD))
    assert None not in asked, "never the whole file"


def test_first_documents_of_a_large_file_need_little_of_it(hub, entry, bench, server, small_shares):
    hub.put(REPO, FIRST, {SHARD: parquet([f"{n} " * 300 for n in range(3000)], 20)})
    source = HubSource(entry(), bench)
    assert len(list(source.read(source.units()[0]))) >= 20
    path = hub.resolve(REPO, FIRST, SHARD)
    assert server.sent[path] < len(server.files[path]) / 3


def test_misbehaving_connection_does_not_change_what_is_read_in_place(hub, entry, bench, server, small_shares):
    hub.put(REPO, FIRST, {SHARD: parquet(TEXTS)})
    path = hub.resolve(REPO, FIRST, SHARD)
    for kind in ("drop", "status", "endless", "lie", "drop"):
        server.misbehave(path, kind, after=400, status=429, headers={"Retry-After": "0"})
    assert texts(HubSource(entry(), bench)) == TEXTS


def test_dead_connection_while_reading_in_place_fails_the_stage_with_the_reason(
    hub, entry, bench, server, small_shares
):
    hub.put(REPO, FIRST, {SHARD: parquet(TEXTS)})
    source = HubSource(entry(attempts=2), bench)
    server.misbehave(hub.resolve(REPO, FIRST, SHARD), "status", times=2, status=503)
    with pytest.raises(StageFailure, match=r"gave up after 2 attempts \(status 503\)"):
        read_all(source)
    assert texts(HubSource(entry(attempts=2), bench)) == TEXTS, "the next start goes on"


def test_request_to_stop_is_heard_while_reading_in_place(hub, entry, bench, small_shares):
    class Stop(BaseException):
        pass

    def pause():
        raise Stop

    hub.put(REPO, FIRST, {SHARD: parquet(TEXTS)})
    with pytest.raises(Stop):
        read_all(HubSource(entry(), Workbench(bench.scratch, bench.say, pause)))


def test_wrong_bytes_while_reading_in_place_are_noticed(hub, entry, bench, server, small_shares):
    hub.put(REPO, FIRST, {SHARD: parquet(TEXTS)})
    source = HubSource(entry(), bench)
    path = hub.resolve(REPO, FIRST, SHARD)
    middle = len(server.files[path]) // 2
    broken = bytearray(server.files[path])
    broken[middle - 2000 : middle + 2000] = random.Random(7).randbytes(4000)
    server.files[path] = bytes(broken)
    with pytest.raises(UserError, match="is damaged"):
        read_all(source)


def test_server_without_ranges_means_a_whole_download_and_the_same_records(
    hub, entry, bench, server, said, small_shares
):
    hub.put(REPO, FIRST, {SHARD: parquet(TEXTS)})
    server.ignores_range = True
    assert texts(HubSource(entry(), bench)) == TEXTS
    assert sum("ignores Range" in line for line in said) == 1


def test_run_that_started_on_one_commit_ends_on_it(hub, entry, bench, server):
    hub.put(REPO, FIRST, {"a.jsonl": b'{"text": "old"}\n', "b.jsonl": b'{"text": "old too"}\n'})
    first = HubSource(entry(), bench)
    assert next(first.read(first.units()[0]))["text"] == "old"
    hub.put(REPO, SECOND, {"a.jsonl": b'{"text": "new"}\n'})
    resumed = HubSource(entry(), bench)
    assert texts(resumed) == ["old", "old too"]
    assert resumed.provenance()["commit"] == FIRST
    assert texts(HubSource(entry(), Workbench(bench.scratch / "other run", bench.say))) == ["new"]


def test_files_that_a_newer_commit_adds_begin_a_unit_of_their_own(hub, entry, bench):
    files = {f"{name}.jsonl": b'{"text": "%s"}\n' % name.encode() for name in "abcd"}
    hub.put(REPO, FIRST, {name: files[name] for name in ("a.jsonl", "b.jsonl")})
    source = HubSource(entry(files=["*.jsonl"]), bench)
    assert source.units() == ["00000-files-1-2"]
    published = {"text/sample": json.loads(json.dumps(source.provenance()))}
    hub.put(REPO, SECOND, files)
    grown = HubSource(entry(files=["*.jsonl"]), Workbench(bench.scratch / "next", published=published))
    assert grown.units() == ["00000-files-1-2", "00001-files-3-4"] and texts(grown) == list("abcd")
    assert grown.provenance()["borders"] == [2] and grown.provenance()["commit"] == SECOND


def switch_hub_off(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_resumed_run_asks_nothing_of_a_hub_that_is_switched_off(hub, entry, bench, server, monkeypatch):
    hub.put(REPO, FIRST, {"a.jsonl": b'{"text": "here"}\n', "b.jsonl": b'{"text": "there"}\n'})
    first = HubSource(entry(), bench)
    [unit] = first.units()
    assert next(first.read(unit))["text"] == "here"
    switch_hub_off(monkeypatch)
    asked = len(server.requests)
    rest = HubSource(entry(), bench).read(unit)
    assert next(rest)["text"] == "here", "what has been downloaded needs no hub"
    with pytest.raises(UserError, match=f"data set {REPO} is on the hub, and HF_HUB_OFFLINE is set"):
        next(rest)
    assert len(server.requests) == asked


def test_nothing_is_read_in_place_from_a_hub_that_is_switched_off(hub, entry, bench, server, small_shares, monkeypatch):
    hub.put(REPO, FIRST, {SHARD: parquet(TEXTS)})
    first = HubSource(entry(), bench)
    list(first.read(first.units()[0]))
    switch_hub_off(monkeypatch)
    asked = len(server.requests)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        texts(HubSource(entry(), bench))
    assert len(server.requests) == asked


def test_units_read_in_any_process_give_the_whole(hub, entry, bench, small_shares):
    files = {
        f"part-{number}.jsonl": b"".join(b'{"text": "%d"}\n' % n for n in range(number * 900, number * 900 + 900))
        for number in range(3)
    }
    hub.put(REPO, FIRST, files)
    settings = entry(files=["*.jsonl"])
    found = []
    for unit in HubSource(settings, bench).units():
        found += [record["text"] for record in HubSource(settings, bench).read(unit)]
    assert found == [str(number) for number in range(2700)]
    assert len(list(bench.scratch.rglob("*.jsonl"))) == 1, "finished files are deleted"


def test_genuine_preference_records_come_through_unchanged(hub, entry, bench, shared_data):
    data = (shared_data / "preference/hh-rlhf_harmless-base_test.part1.jsonl.gz").read_bytes()
    hub.put(REPO, FIRST, {"harmless-base/test.jsonl.gz": data})
    source = HubSource(entry(kind="preference", format="hh-rlhf", split="test"), bench)
    assert read_all(source) == [json.loads(line) for line in gzip.decompress(data).splitlines()]


def test_token_goes_to_the_hub_and_not_to_where_it_redirects(hub, entry, bench, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.put(REPO, FIRST, {"a.jsonl": b'{"text": "x"}\n'})
    path = hub.resolve(REPO, FIRST, "a.jsonl")
    server.files["/cdn/a.jsonl"] = server.files[path]
    server.redirects[path] = server.address.replace("127.0.0.1", "localhost") + "/cdn/a.jsonl"
    assert texts(HubSource(entry(), bench)) == ["x"]
    assert server.authorized[path] == ["Bearer hf_secret"]
    assert server.authorized["/cdn/a.jsonl"] == [None]


def test_fingerprint_needs_no_network(hub, entry, bench, server):
    assert HubSource(entry(), bench).fingerprint() != HubSource(entry(split="test"), bench).fingerprint()
    assert server.requests == []
