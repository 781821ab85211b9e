"""Keeping a cache: verify, make again exactly what is damaged, share the work, grow, and start a run from it."""

import json
import os
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.packing.build_chunks import chunk_name
from pipeline_lib.packing.cache_index import by_number, save_index
from pipeline_lib.packing.chunk_format import ChunkDamaged, ChunkFile
from pipeline_lib.packing.maintenance import verify_cache
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.packing.so_far import index_name, newest_index_name
from pipeline_lib.packing.trace import Request, read_request
from pipeline_lib.stage import UserError

OPEN_FILES = 32
"""A process of stage 03 has about 20 open."""


def chunk_times(run) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run.packed / "chunks").iterdir()}


def flip(path: Path, place: int | None = None) -> None:
    """Alter one byte and leave size and modification time as they were, as a failing disk does."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 0x10
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def succeed(run, *flags: str) -> str:
    code, out, err = run.run(*flags)
    assert code == 0, out + err
    return out


@pytest.fixture
def copied_run(packed_run, packing_run, documents):
    """A finished run that a test may damage."""
    run = packing_run(documents)
    shutil.rmtree(run.folder)
    shutil.copytree(packed_run.folder, run.folder)  # modification times included
    return run


def test_every_k_th_byte_of_a_chunk_is_guarded(packed_run, tmp_path: Path):
    whole = (packed_run.packed / "chunks" / "chunk-00000.lz4").read_bytes()
    path = tmp_path / "chunk.lz4"
    for place in range(0, len(whole), 67):
        altered = bytearray(whole)
        altered[place] ^= 1 << (place % 8)
        path.write_bytes(altered)
        with pytest.raises(ChunkDamaged):
            ChunkFile(path).verify()


def test_inverse_makes_exactly_the_damaged_and_missing_chunks_again(copied_run, packed_run, capsys):
    before = chunk_times(copied_run)
    chunks = copied_run.packed / "chunks"
    flip(chunks / "chunk-00002.lz4")
    (chunks / "chunk-00001.lz4").unlink()
    code, out = verify_cache(copied_run.packed, "MAKE"), capsys.readouterr().out
    assert code == 1 and "2 problems" in out and "make what is damaged again with: MAKE --mode repair" in out
    assert [line.count(str(chunks)) for line in out.splitlines() if line.startswith("  /")] == [1, 1]
    assert f"{chunks}/chunk-00001.lz4: it is missing\n" in out and f"{chunks}/chunk-00002.lz4: the checksum of" in out
    succeed(copied_run, "--mode", "inverse")
    assert copied_run.outputs() == packed_run.outputs()
    after = chunk_times(copied_run)
    assert {name for name in before if before[name] != after[name]} == {"chunk-00001.lz4", "chunk-00002.lz4"}
    assert verify_cache(copied_run.packed, "MAKE") == 0


def test_what_somebody_else_leaves_beside_the_tokenizer_says_nothing_of_it(copied_run):
    (copied_run.packed / "tokenizer" / ".DS_Store").write_bytes(b"folders are blue")
    (copied_run.packed / "tokenizer" / "tokenizer.json~").write_text("{}")
    assert PackedCache(copied_run.packed).sequences(256) > 0
    assert verify_cache(copied_run.packed, "MAKE") == 0


def test_chunks_and_parts_stay_in_order_once_five_digits_are_too_few():
    names = [chunk_name(number) for number in (2, 10_001, 99_999, 100_000, 100_001, 1_000_000)]
    assert sorted(set(names), key=by_number) == names
    assert newest_index_name([index_name(parts) for parts in (99_999, 100_000, 3)]) == index_name(100_000)


def test_the_bytes_of_an_index_do_not_tell_in_which_order_it_was_put_together(tmp_path: Path, packed_run):
    index = json.loads((packed_run.packed / "index.json").read_text())
    save_index(tmp_path / "index.json", {name: index[name] for name in reversed(list(index))})
    assert (tmp_path / "index.json").read_bytes() == (packed_run.packed / "index.json").read_bytes()


@pytest.mark.parametrize("flags", [("--mode", "verify"), ("--trace", "0")])
def test_what_reads_a_cache_that_is_not_there_names_the_command_that_makes_it(packing_run, documents, flags):
    run = packing_run(documents[:3])
    code, _, err = run.run(*flags)
    command = f"python scripts/03_tokenize_and_pack.py --config {run.config} --run-dir {run.folder}"
    assert code == 2 and err == f"error: {run.packed} holds no finished packed cache; make it with: {command}\n"


def test_the_repairing_command_is_that_of_the_run(copied_run):
    command = f"python scripts/03_tokenize_and_pack.py --config {copied_run.config} --run-dir {copied_run.folder}"
    flip(copied_run.packed / "plan-256.parquet")
    code, out, _ = copied_run.run("--mode", "verify")
    assert code == 1 and f"make what is damaged again with: {command} --mode repair\n" in out
    _, out, _ = copied_run.run("--mode", "verify", "--chunk_tokens", "30000")
    assert f"with: {command} --chunk_tokens 30000 --mode repair\n" in out  # what was typed counts
    with pytest.raises(UserError, match="make it again with: MAKE --mode repair$"):
        PackedCache(copied_run.packed, command="MAKE").sequences(256)
    (copied_run.packed / "index.json").unlink()
    with pytest.raises(UserError, match="index.json is missing; make it again with: MAKE --mode repair$"):
        PackedCache(copied_run.packed, command="MAKE")


def test_repair_restores_index_plan_and_tokenizer(copied_run, packed_run):
    before = chunk_times(copied_run)
    flip(copied_run.packed / "tokenizer" / "tokenizer.json")  # trained again on the same sample
    (copied_run.packed / "plan-64.parquet").unlink()
    succeed(copied_run, "--mode", "repair")
    assert copied_run.outputs() == packed_run.outputs() and chunk_times(copied_run) == before
    flip(copied_run.packed / "index.json")
    assert "index.json was restored" in succeed(copied_run, "--mode", "repair")
    assert copied_run.outputs() == packed_run.outputs() and chunk_times(copied_run) == before


def kill_when(run, moment) -> None:
    """Start stage 03 and kill it as soon as `moment()` is true, before it ends."""
    process = run.start()
    while process.poll() is None and not moment():
        time.sleep(0.0005)
    process.kill()
    said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said


@pytest.mark.slow
def test_an_index_that_unfinished_work_needs_and_repair_cannot_restore_is_told_with_what_helps(copied_run, packed_run):
    index = copied_run.packed / "index.json"
    (copied_run.packed / "chunks" / "chunk-00000.lz4").unlink()  # the one that names the shards
    kill_when(copied_run, (copied_run.packed / "work" / "kept.json").exists)
    flip(index)
    command = f"python scripts/03_tokenize_and_pack.py --config {copied_run.config} --run-dir {copied_run.folder}"
    for flags in ((), ("--mode", "repair")):
        code, _, err = copied_run.run(*flags)
        assert code == 2 and err.count("\n") == 1
        assert err.startswith("error: index.json and chunks/chunk-00000.lz4 are missing or damaged, and the unfinished")
        assert err.endswith(f"; make the whole cache again with: {command} --force-rebuild\n")
    succeed(copied_run, "--force-rebuild")
    assert copied_run.outputs() == packed_run.outputs()


def test_a_repair_that_cannot_restore_the_index_makes_all_again_and_does_not_advise_itself(copied_run, packed_run):
    (copied_run.packed / "chunks" / "chunk-00000.lz4").unlink()
    flip(copied_run.packed / "index.json")
    out = succeed(copied_run, "--mode", "repair")
    why = "index.json and chunks/chunk-00000.lz4 are missing or damaged"
    assert f"the cache that is there is made again: {why}\n" in out and "--mode repair" not in out
    assert copied_run.outputs() == packed_run.outputs()


@pytest.mark.parametrize("flags", [(), ("--mode", "inverse")])
def test_a_damaged_index_costs_no_chunk_whatever_the_mode(copied_run, packed_run, flags):
    before, index = chunk_times(copied_run), copied_run.packed / "index.json"
    index.write_text("{}")
    out = succeed(copied_run, *flags)
    assert out.count(f"  {index} ") == 1 and "from the headers of" in out and "encoding" not in out
    assert copied_run.outputs() == packed_run.outputs() and chunk_times(copied_run) == before
    assert verify_cache(copied_run.packed, "MAKE") == 0


def test_the_index_is_restored_without_the_text(copied_run, packed_run):
    for path in (copied_run.folder / "02_clean").glob("*.parquet"):
        path.unlink()
    flip(copied_run.packed / "index.json")
    out = succeed(copied_run, "--mode", "repair", "--contexts", "[64, 256]")
    assert "index.json was restored from the headers of" in out and out.endswith("03_packed: up to date\n")
    assert verify_cache(copied_run.packed, "MAKE") == 0 and copied_run.outputs() == packed_run.outputs()


@pytest.mark.parametrize("flags", [(), ("--mode", "repair")])
def test_a_damaged_index_costs_no_chunk_when_other_contexts_are_asked_for_now(copied_run, flags):
    before = chunk_times(copied_run)
    (copied_run.packed / "index.json").unlink()
    out = succeed(copied_run, "--contexts", "[64, 100]", *flags)
    assert "from the headers of" in out and "encoding" not in out and chunk_times(copied_run) == before
    assert PackedCache(copied_run.packed).contexts == [64, 100] and verify_cache(copied_run.packed, "MAKE") == 0


@pytest.mark.parametrize("flags", [(), ("--mode", "inverse")])
def test_without_its_index_a_missing_and_a_damaged_chunk_are_all_that_is_made_again(copied_run, packed_run, flags):
    before, chunks = chunk_times(copied_run), copied_run.packed / "chunks"
    gone, *_, last = sorted(chunks.iterdir())[1:]
    gone.unlink()
    flip(last, 20)  # its header cannot be read either
    (copied_run.packed / "index.json").unlink()
    succeed(copied_run, *flags)
    after = chunk_times(copied_run)
    assert copied_run.outputs() == packed_run.outputs()
    assert {name for name in before if before[name] != after[name]} == {gone.name, last.name}


def test_a_chunk_that_is_another_one_is_not_taken_for_it_without_the_index(copied_run, packed_run):
    one, other = (copied_run.packed / "chunks" / f"chunk-0000{number}.lz4" for number in (1, 2))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    (copied_run.packed / "index.json").unlink()
    assert "what the chunks say is not the whole of one cache" in succeed(copied_run)
    assert copied_run.outputs() == packed_run.outputs()


@pytest.mark.slow
def test_damage_after_a_kill_is_made_again_with_what_was_missing_before(copied_run, packed_run):
    chunks, work = copied_run.packed / "chunks", copied_run.packed / "work"
    (chunks / "chunk-00001.lz4").unlink()
    kill_when(copied_run, lambda: any((work / "encoded").glob("*/*.xxh3")))
    (chunks / "chunk-00002.lz4").unlink()
    succeed(copied_run)
    assert copied_run.outputs() == packed_run.outputs()


@pytest.mark.slow
def test_a_chunk_of_unfinished_work_that_is_damaged_is_made_again(packing_run, packed_run, documents):
    run = packing_run(documents)
    chunks = run.packed / "work" / "chunks"
    kill_when(run, lambda: any(chunks.glob("chunk-*.lz4")))
    flip(sorted(chunks.glob("chunk-*.lz4"))[0])
    assert ".lz4 is damaged: it is made again" in succeed(run)
    assert run.outputs() == packed_run.outputs()


@pytest.mark.slow
def test_an_altered_index_is_named_by_whoever_reads_it_and_plan_repairs_nothing(copied_run, packed_run):
    index = copied_run.packed / "index.json"
    altered = index.read_text().replace('"documents"', '"documentz"')
    index.write_text(altered)
    code, out, _ = copied_run.run("--mode", "verify")
    assert code == 1 and f"{index}: its checksum differs" in out and "1 problem;" in out
    code, _, err = copied_run.run("--trace", "0")
    assert code == 2 and err.count("\n") == 1 and "index.json is damaged (its checksum differs)" in err
    succeed(copied_run, "--mode", "repair", "--plan")
    assert index.read_text() == altered
    succeed(copied_run, "--mode", "repair")
    assert copied_run.outputs() == packed_run.outputs()


@pytest.mark.slow
def test_trace_without_the_tokenizer_of_the_cache_names_the_repair(copied_run, packed_run):
    shutil.rmtree(copied_run.packed / "tokenizer")
    code, _, err = copied_run.run("--trace", "0")
    assert code == 2 and err.count("\n") == 1, err
    assert f"{copied_run.packed / 'tokenizer'} has no tokenizer.json; make it again with: " in err
    assert err.endswith("--mode repair\n") and str(copied_run.config) in err
    succeed(copied_run, "--mode", "repair")
    assert copied_run.outputs() == packed_run.outputs()
    succeed(copied_run, "--trace", "0")


@pytest.mark.slow
def test_the_tokenizer_of_a_grown_cache_is_trained_again_on_the_sample_it_was_trained_on(packing_run, documents):
    old, added = documents[:40], documents[40:]
    run = packing_run(old, shards=2, vocab_size=400, training_bytes=100_000)
    succeed(run)
    run.add_text(old, added)
    succeed(run)
    before, chunks = run.outputs(), chunk_times(run)
    (run.packed / "tokenizer" / "tokenizer.json").unlink()
    succeed(run, "--mode", "repair")
    assert run.outputs() == before and chunk_times(run) == chunks


@pytest.mark.slow
def test_two_processes_from_both_ends_make_nothing_twice(packed_run, packing_run, documents):
    run = packing_run(documents)
    both = [run.start("--mode", mode) for mode in ("forward", "inverse")]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert run.outputs() == packed_run.outputs()
    shares = [re.findall(r"writing: this process made (\d+) of (\d+)", out) for out, _ in said]
    for own, of in (share[0] for share in shares if share):
        assert int(own) <= int(of)
    if all(shares):
        assert sum(int(share[0][0]) for share in shares) == int(shares[0][0][1])


@pytest.mark.long
def test_a_cache_of_more_shards_and_chunks_than_files_may_be_open(packing_run, documents):
    run = packing_run(documents, shards=len(documents), chunk_tokens=1000)

    def succeed_with_few_files(*flags: str) -> str:
        process = run.start(*flags)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        return out

    succeed_with_few_files()
    assert len(documents) > OPEN_FILES and len(list((run.packed / "chunks").iterdir())) > OPEN_FILES
    succeed_with_few_files("--mode", "verify")
    (run.packed / "index.json").write_text("{}")
    assert "restored from the headers" in succeed_with_few_files("--mode", "repair")


@pytest.mark.slow
def test_added_text_becomes_new_chunks_and_training_goes_on_where_it_was(packing_run, documents):
    old, added = documents[:40], documents[40:]
    run = packing_run(old, shards=2, vocab_size=600)
    succeed(run)
    before, cache = chunk_times(run), PackedCache(run.packed, window_chunks=2)
    tokenizer = (run.packed / "tokenizer" / "tokenizer.json").read_bytes()
    read = list(cache.batches(64, 3, seed=1))
    run.add_text(old, added)
    succeed(run)
    after = chunk_times(run)
    assert before.items() <= after.items() and len(after) > len(before)
    assert (run.packed / "tokenizer" / "tokenizer.json").read_bytes() == tokenizer
    grown = PackedCache(run.packed, window_chunks=2)
    assert {d.id for s in ("train", "val") for d in grown.documents(s)} == {each["id"] for each in documents}
    middle = len(read) // 2
    rest = list(grown.batches(64, 3, seed=1, state=read[middle]["state"]))
    for one, two in zip(read[middle + 1 : -1], rest, strict=False):
        np.testing.assert_array_equal(one["input_ids"], two["input_ids"])
    visited = np.concatenate([batch["sequences"] for batch in [*read[: middle + 1], *rest]])
    assert sorted(visited.tolist()) == list(range(grown.sequences(64)))
    assert "up to date" in succeed(run)


def test_another_context_length_touches_no_chunk(copied_run, packed_run):
    before = chunk_times(copied_run)
    out = succeed(copied_run, "--contexts", "[64, 256, 100]")
    assert chunk_times(copied_run) == before and "encoding" not in out
    assert PackedCache(copied_run.packed).contexts == [64, 256, 100]
    ours, theirs = copied_run.outputs(), packed_run.outputs()
    assert all(ours[name] == theirs[name] for name in theirs if name != "index.json")


def test_a_changed_shard_makes_the_cache_again_and_says_why(copied_run, documents):
    changed = [{**documents[0], "text": documents[0]["text"] + " more"}, *documents[1:]]
    copied_run._finish_cleaning(changed, 3)
    out = succeed(copied_run)
    assert "part 0 of the cache is made again: part-00000.parquet changed" in out


def test_the_tokenizer_of_another_cache_is_refused(copied_run):
    flip(copied_run.packed / "tokenizer" / "tokenizer_config.json")
    with pytest.raises(UserError, match="not the tokenizer that the chunks beside it were made with"):
        PackedCache(copied_run.packed)


def test_a_run_starts_from_a_packed_cache(packed_run, tmp_path: Path):
    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.models.tokenizer_source import read_tokenizer_source
    from pipeline_lib.stage.catalog import BY_NAME
    from pipeline_lib.stage.stage import Stage

    config = RunConfig(packed=str(packed_run.packed))
    stage = Stage(BY_NAME["04_init"], config, tmp_path / "other", 1, "")
    assert read_tokenizer_source(stage).vocabulary == 1000
    lost = Stage(BY_NAME["04_init"], RunConfig(packed=str(tmp_path)), tmp_path / "other", 1, "")
    with pytest.raises(UserError, match="is missing"):
        read_tokenizer_source(lost)


def test_packing_is_left_out_when_the_run_starts_from_a_cache(packed_run, packing_run, documents):
    run = packing_run(documents[:3])
    run.config.write_text(run.config.read_text() + f"packed: {packed_run.packed}\n")
    assert "nothing to do" in succeed(run) and not run.packed.exists()
    code, _, err = run.run("--mode", "repair")
    assert code == 2 and "repair it where it was made" in err


def test_trace_names_text_file_row_licence_and_scores(packed_run, documents, monkeypatch):
    out = succeed(packed_run, "--trace", "256:val:0")
    piece = PackedCache(packed_run.packed).pieces(0, 256, "val")[0]
    document = next(each for each in documents if each["id"] == piece.id)
    assert (
        piece.id in out
        and f"{piece.shard} row {piece.row}" in out
        and "license PSF-2.0" in out
        and "origin library.jsonl:" in out
    )
    assert document["text"].splitlines()[0] in out
    assert f"source {document['source']}" in out
    cache = PackedCache(packed_run.packed)
    with monkeypatch.context() as larger:
        larger.setattr(cache, "sequences", lambda context, split: 12_000)
        assert read_request("256:11,419", cache) == read_request("256:11419", cache) == Request(256, "train", 11_419)
    for wrong in ("1,1", "11,41", "x", "256:test:0", "256:99999999", "9:0", "1:2:3:4", "-1"):
        with pytest.raises(UserError):
            read_request(wrong, cache)


@pytest.mark.long
def test_killed_twenty_times_at_random_it_ends_with_the_same_digests(packed_run, packing_run, documents):
    run, chance = packing_run(documents), random.Random(1)
    kills = 0
    while kills < 20:
        process = run.start("--mode", chance.choice(["forward", "inverse"]))
        time.sleep(chance.uniform(0.6, 2.2))
        if process.poll() is not None:  # it finished first: begin again
            shutil.rmtree(run.packed)
            continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    succeed(run)
    assert run.outputs() == packed_run.outputs()
