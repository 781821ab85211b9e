"""`pack.part_bytes`: part after part is finished and published, in the same files whatever was killed in between."""

import shutil
import signal
import time

import numpy as np
import pytest

from pipeline_lib.config.pack import PackSettings
from pipeline_lib.config.run import RunConfig
from pipeline_lib.models.tokenizer_source import read_tokenizer_source
from pipeline_lib.packing.cache_index import Shard
from pipeline_lib.packing.chunk_format import ChunkFile
from pipeline_lib.packing.chunk_headers import index_from_headers
from pipeline_lib.packing.kept_parts import divide
from pipeline_lib.packing.packing_plan import Mixture, join_plans, write_plan
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.packing.so_far import index_name, published_parts
from pipeline_lib.stage import Stage, UserError
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.inputs import SO_FAR, RunningInput, open_input
from pipeline_lib.stage.manifest import Manifest

SHARDS, PART_BYTES = 6, 60_000


@pytest.fixture(scope="module")
def parts_run(packed_run, tmp_path_factory, documents):
    """A finished run whose cache was made in several parts."""
    folder, scripts = tmp_path_factory.mktemp("parts"), packed_run.script.parent
    run = type(packed_run)(folder, scripts, documents, SHARDS, part_bytes=PART_BYTES)
    code, out, err = run.run()
    assert code == 0, out + err
    assert "part 1 of" in out and "is published" in out
    return run


def kill_when_published(run, parts: int) -> None:
    """Start stage 03 and kill it as soon as so many parts are published."""
    process = run.start()
    index = run.packed / "work" / index_name(parts)
    while process.poll() is None and not (index.exists() and (run.packed / "work" / SO_FAR).exists()):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.communicate() and process.returncode == -signal.SIGKILL


def test_parts_are_whole_shards_drawn_by_the_seed_and_large_enough(parts_run):
    cache = PackedCache(parts_run.packed)
    parts = [[shard["file"] for shard in part["shards"]] for part in cache.index["parts"]]
    assert len(parts) > 1
    assert sorted(name for part in parts for name in part) == [f"part-{n:05d}.parquet" for n in range(SHARDS)]
    paths = {}
    for entry in (shard for part in cache.index["parts"] for shard in part["shards"]):
        paths[entry["digest"]] = parts_run.folder / "02_clean" / entry["file"]
    shards = [Shard(path.name, digest) for digest, path in sorted(paths.items(), key=lambda item: item[1])]
    divided = [[shard.file for shard in part] for part in divide(shards, paths, PART_BYTES, 7)]
    assert divided == parts and divided == [[s.file for s in p] for p in divide(shards[::-1], paths, PART_BYTES, 7)]
    assert divide(shards, paths, None, 7) == [shards] == divide(shards, paths, 10**9, 7)
    assert len(divide(shards, paths, 1, 7)) == SHARDS
    assert len({str(divide(shards, paths, 1, seed)) for seed in range(5)}) > 1


def test_every_document_is_there_and_every_plan_is_the_one_its_chunks_give(parts_run, documents, tmp_path):
    assert parts_run.run("--mode", "verify")[0] == 0
    cache = PackedCache(parts_run.packed)
    assert {d.id for s in ("train", "val") for d in cache.documents(s)} == {each["id"] for each in documents}
    files = [ChunkFile(parts_run.packed / chunk["file"]) for chunk in cache.index["chunks"]]
    for plan in cache.index["plans"]:
        again = write_plan(files, plan["context"], tmp_path / "plan.parquet", Mixture.from_json(plan["mixture"]))
        assert again == {"splits": plan["splits"], "chunks": plan["chunks"]}
        assert (tmp_path / "plan.parquet").read_bytes() == (parts_run.packed / plan["file"]).read_bytes()


def test_what_the_index_says_of_a_chunk_that_is_missing_too_follows_from_its_neighbours(parts_run, tmp_path):
    index, manifest = PackedCache(parts_run.packed).index, Manifest.read(parts_run.packed / "manifest.json")
    known = ("recipe", "tokenizer", "parts", "chunks")
    assert index_from_headers(parts_run.packed, manifest) == {name: index[name] for name in known}
    shutil.copytree(parts_run.packed / "chunks", tmp_path / "chunks")
    opening = [next(chunk for chunk in index["chunks"] if chunk["part"] == n) for n in range(len(index["parts"]))]
    assert len(index["chunks"]) > len(opening) > 1
    for place, chunk in enumerate(index["chunks"]):
        (tmp_path / chunk["file"]).rename(tmp_path / "aside")
        if chunk in opening:
            with pytest.raises(UserError):
                index_from_headers(tmp_path, manifest)
        else:
            found = index_from_headers(tmp_path, manifest)["chunks"]
            told = {name: chunk[name] for name in ("file", "part", "split", "range")}
            assert found == [*index["chunks"][:place], {**told, "digest": None}, *index["chunks"][place + 1 :]]
        (tmp_path / "aside").rename(tmp_path / chunk["file"])


def test_a_plan_joined_of_parts_is_the_plan_written_at_once_also_where_a_part_has_nothing_to_read(parts_run, tmp_path):
    entries = PackedCache(parts_run.packed).index["chunks"]
    files = [ChunkFile(parts_run.packed / chunk["file"]) for chunk in entries]
    for mixture in (Mixture({"other": 0.4, "library": 2.3}), Mixture({"other": 0, "library": 0})):
        whole = write_plan(files, 64, tmp_path / "whole.parquet", mixture)
        so_far, paths = None, []
        for part in sorted({chunk["part"] for chunk in entries}):
            mine = [file for file, chunk in zip(files, entries, strict=True) if chunk["part"] == part]
            paths.append(tmp_path / f"{part}.parquet")
            so_far = write_plan(mine, 64, paths[-1], mixture, so_far)
        join_plans(paths, entries, tmp_path / "joined.parquet")
        assert so_far == whole
        assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.slow
def test_what_is_published_so_far_stays_what_it_is_in_the_finished_cache(parts_run, packing_run, documents):
    run = packing_run(documents, SHARDS, part_bytes=PART_BYTES)
    kill_when_published(run, 1)
    work = run.packed / "work"
    finished = PackedCache(parts_run.packed)
    so_far = PackedCache(work, index=index_name(1))
    assert so_far.unfinished and not finished.unfinished
    assert so_far.whole_text_bytes == finished.whole_text_bytes > so_far.index["text_bytes"]
    assert so_far.index["parts"] == finished.index["parts"][:1]
    for context in so_far.contexts:
        read = list(so_far.batches(context, 2, seed=3, state=so_far.start_with_first_part(context, 3)))
        start = finished.start_with_first_part(context, 3)
        for ours, theirs in zip(read[:-1], finished.batches(context, 2, seed=3, state=start), strict=False):
            np.testing.assert_array_equal(ours["input_ids"], theirs["input_ids"])
            np.testing.assert_array_equal(ours["sequences"], theirs["sequences"])
        rest = list(finished.batches(context, 2, seed=3, state=read[-2]["state"]))
        assert sum(len(batch["sequences"]) for batch in [*read[:-1], *rest]) == finished.sequences(context)
    code, out, err = run.run()
    assert code == 0, out + err
    assert run.outputs() == parts_run.outputs()
    assert so_far.sequence(0, 64)["input_ids"].tolist() == finished.sequence(0, 64)["input_ids"].tolist()  # moved up


@pytest.mark.slow
def test_killed_between_parts_it_encodes_no_published_part_again(parts_run, packing_run, documents):
    run = packing_run(documents, SHARDS, part_bytes=PART_BYTES)
    kill_when_published(run, 1)
    packed = open_input(run.folder, "03_packed", "")
    assert isinstance(packed, RunningInput) and not packed.finished and not packed.at_work
    beside = Stage(BY_NAME["04_init"], RunConfig(), run.folder, 1, "")
    source = read_tokenizer_source(beside)
    chunks = [run.packed / "work" / chunk["file"] for chunk in published_parts(run.packed / "work")["chunks"]]
    times = [path.stat().st_mtime_ns for path in chunks]
    code, out, err = run.run()
    assert code == 0, out + err
    assert "part 1 of" not in out and "part 2 of" in out
    assert [(run.packed / "chunks" / path.name).stat().st_mtime_ns for path in chunks] == times
    assert run.outputs() == parts_run.outputs()
    finished = open_input(run.folder, "03_packed", "")
    assert finished.finished and finished.manifest.attempt == packed.digest
    assert source.files.keys() >= {"tokenizer.json"} and read_tokenizer_source(beside) == source  # all files have moved


@pytest.mark.slow
def test_a_published_chunk_of_unfinished_work_that_is_damaged_is_made_again(parts_run, packing_run, documents):
    run = packing_run(documents, SHARDS, part_bytes=PART_BYTES)
    kill_when_published(run, 1)
    chunk = run.packed / "work" / published_parts(run.packed / "work")["chunks"][0]["file"]
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    code, out, err = run.run()
    assert code == 0, out + err
    assert out.count(f"{chunk.name} is damaged: it is made again") == 1
    assert run.outputs() == parts_run.outputs()


@pytest.mark.long
def test_two_processes_share_a_cache_of_several_parts(parts_run, packing_run, documents):
    run = packing_run(documents, SHARDS, part_bytes=PART_BYTES)
    both = [run.start("--mode", mode) for mode in ("forward", "inverse")]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert run.outputs() == parts_run.outputs()


@pytest.mark.long
def test_a_lost_tokenizer_is_trained_again_on_all_the_parts_that_were_there(parts_run, packing_run, documents):
    run = packing_run(documents, SHARDS, part_bytes=PART_BYTES)
    assert run.run()[0] == 0
    (run.packed / "tokenizer" / "tokenizer.json").unlink()
    code, out, err = run.run()
    assert code == 0, out + err
    assert run.outputs() == parts_run.outputs()


def test_shares_of_tokens_cannot_be_planned_part_after_part():
    with pytest.raises(ValueError, match="part_bytes"):
        PackSettings(token_shares={"a": 1}, part_bytes=1000)
