"""Stage 03 as a process: the same cache from any shards, threads and interruptions, and clear words on bad input."""

import json
import shutil
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib.packing.chunk_format import ChunkFile
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.stage.manifest import Manifest


def test_nothing_is_lost_and_the_ledger_balances(packed_run, documents):
    manifest = Manifest.read(packed_run.packed / "manifest.json")
    kept = {source: entry["kept"] for source, entry in manifest.ledger["text"].items()}
    assert sum(entry["documents"] for entry in kept.values()) == len(documents)
    assert sum(entry["bytes"] for entry in kept.values()) == sum(len(each["text"].encode()) for each in documents)
    assert not any(entry["dropped"] for entry in manifest.ledger["text"].values())
    cache = PackedCache(packed_run.packed)
    assert sum(entry["tokens"] for entry in kept.values()) == cache.tokens("train") + cache.tokens("val")
    for context in cache.contexts:
        targets = sum((batch["labels"] >= 0).sum() for batch in cache.batches(context, 64))
        pieces = cache.index["plans"][cache.contexts.index(context)]["splits"]["train"]["pieces"]
        assert targets == cache.tokens("train") - pieces
    assert manifest.result["context_64"]["tokens_lost"] == 0


@pytest.mark.slow
def test_shards_and_threads_do_not_change_the_outputs(packed_run, packing_run, documents):
    other = packing_run(documents[::-1], shards=1)
    other.config.write_text(other.config.read_text() + "threads: 1\n")
    code, out, err = other.run()
    assert code == 0, out + err
    ours, theirs = other.outputs(), packed_run.outputs()
    assert ours.keys() == theirs.keys()
    for name in ours:  # a chunk and the index say where the text lies, so they differ there and only there
        if name.endswith(".lz4"):
            one, two = (ChunkFile(run.packed / name).content() for run in (other, packed_run))
            for array in ("tokens", "offsets", "source", "duplicates"):
                np.testing.assert_array_equal(getattr(one, array), getattr(two, array))
            assert (one.ids, one.sources) == (two.ids, two.sources)
        elif name != "index.json":
            assert ours[name] == theirs[name], name


def finished(run) -> int:
    """Count what an unfinished run has finished so far: the tokenizer, encoded runs, chunks."""
    work = run.packed / "work"
    return sum(1 for pattern in ("tokenizer", "encoded/*/*.run", "chunks/*.lz4") for _ in work.glob(pattern))


def kill_after(run, count: int) -> None:
    process = run.start()
    while process.poll() is None and finished(run) < count:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.long), 4, pytest.param(7, marks=pytest.mark.long)])
def test_killed_at_any_time_it_continues_to_identical_files(packed_run, packing_run, documents, after: int):
    run = packing_run(documents)
    kill_after(run, after)
    code, out, err = run.run()
    assert code == 0, out + err
    assert run.outputs() == packed_run.outputs()


@pytest.mark.long
def test_an_intermediate_that_a_power_cut_damaged_is_made_again(packed_run, packing_run, documents):
    run = packing_run(documents)
    kill_after(run, 5)
    encoded = sorted((run.packed / "work" / "encoded" / "part-0").glob("*.run"))[0]
    content = bytearray(encoded.read_bytes())
    content[len(content) // 2] ^= 1
    encoded.write_bytes(content)
    code, out, err = run.run()
    assert code == 0, out + err
    assert run.outputs() == packed_run.outputs()


@pytest.mark.long
def test_text_of_one_run_is_encoded_again_after_a_kill(packing_run, documents):
    run = packing_run(documents, shards=1)
    kill_after(run, 2)
    assert not (run.packed / "work" / "encoded").exists()
    code, out, err = run.run()
    assert code == 0, out + err
    resumed = run.outputs()
    assert run.run("--force-rebuild")[0] == 0
    assert run.outputs() == resumed


def test_validation_is_apart_and_stays_where_it_is_when_documents_are_added(packed_run, packing_run, documents):
    cache = PackedCache(packed_run.packed)
    val = {document.id for document in cache.documents("val")}
    train = {document.id for document in cache.documents("train")}
    assert val and not val & train and len(val) < len(documents) / 4
    fewer = packing_run(documents[: len(documents) // 2], tokenizer=str(packed_run.packed / "tokenizer"))
    assert fewer.run()[0] == 0
    remaining = {document.id for document in PackedCache(fewer.packed).documents("val")}
    assert remaining == val & {document["id"] for document in documents[: len(documents) // 2]}


@pytest.mark.slow
def test_an_existing_tokenizer_gives_the_same_cache_as_training_it(packed_run, packing_run, documents):
    run = packing_run(documents, tokenizer=str(packed_run.packed / "tokenizer"))
    code, out, err = run.run()
    assert code == 0, out + err
    ours, theirs = run.outputs(), packed_run.outputs()
    ours.pop("index.json"), theirs.pop("index.json")  # it records how the tokenizer was made
    assert ours == theirs


@pytest.mark.slow
def test_a_small_corpus_still_gets_a_validation_document(packing_run, documents):
    run = packing_run(documents[:4], shards=1, val_fraction=0.0001, vocab_size=300)
    code, out, err = run.run()
    assert code == 0, out + err
    assert "one was taken" in out and PackedCache(run.packed).sequences(64, "val") > 0


@pytest.mark.slow
def test_without_a_validation_share_there_is_no_validation(packing_run, documents):
    run = packing_run(documents, val_fraction=0)
    assert run.run()[0] == 0
    cache = PackedCache(run.packed)
    assert cache.sequences(64, "val") == 0 and list(cache.documents("val")) == []


def test_a_vocabulary_larger_than_the_text_supports_is_one_clear_line(packing_run, documents):
    code, _, err = packing_run(documents[:5], vocab_size=50_000).run()
    assert code == 2 and err.count("\n") == 1
    assert "pack.vocab_size: 50000" in err and "set vocab_size to at most" in err


@pytest.mark.parametrize("shards", [1, 3])
def test_the_plan_foresees_the_very_number_at_which_the_stage_refuses_a_vocabulary(packing_run, documents, shards):
    run = packing_run(documents, shards, vocab_size=50_000)
    code, out, _ = run.run("--plan")
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("  WARNING pack.vocab_size asks for 50,000")]
    foreseen = line.partition("the stage will refuse it; set vocab_size to at most ")[2].partition(",")[0]
    assert f"set vocab_size to at most {foreseen}," in run.run()[2]


def test_the_plan_does_not_warn_of_a_vocabulary_that_the_text_supports(packing_run, documents):
    code, out, _ = packing_run(documents).run("--plan")
    assert code == 0 and "WARNING" not in out


def test_a_document_without_text_is_named(packing_run, documents):
    code, _, err = packing_run([*documents[:5], {**documents[5], "text": None}]).run()
    assert code == 2 and "has no text" in err and "part-0000" in err


def test_an_emptied_corpus_is_named(packing_run, documents):
    run = packing_run(documents, shards=1)
    shard = run.folder / "02_clean" / "part-00000.parquet"
    pq.write_table(pa.Table.from_pylist(documents[:1]).slice(0, 0), shard)
    manifest = Manifest.read(shard.with_name("manifest.json"))
    manifest.files["part-00000.parquet"].bytes = shard.stat().st_size
    from pipeline_lib.stage import file_digest

    manifest.files["part-00000.parquet"].digest = file_digest(shard)
    manifest.write(shard.with_name("manifest.json"))
    code, _, err = run.run()
    assert code == 2 and "no text to pack" in err


def test_plan_probes_and_writes_nothing(packing_run, documents):
    run = packing_run(documents)
    code, out, err = run.run("--plan")
    assert code == 0, out + err
    assert "cost    about" in out and "of text" in out
    assert not (run.packed / "work").exists() and not (run.packed / "index.json").exists()


def test_token_bytes_need_no_pickle(packed_run):
    sizes = np.load(packed_run.packed / "token_bytes.npy", allow_pickle=False)
    index = json.loads((packed_run.packed / "index.json").read_text())
    assert sizes.shape == (index["vocab_size"],) and sizes[:4].tolist() == [0, 0, 0, 0] and (sizes[4:260] == 1).all()


def large_corpus(documents, size: int) -> list[dict[str, str]]:
    """Return about `size` bytes of documents, each time with other letters, so that the encoder meets new words."""
    letters, corpus = "abcdefghijklmnopqrstuvwxyz", []
    for turn in range(size // sum(len(document["text"]) for document in documents)):
        table = str.maketrans(letters, letters[turn % 26 :] + letters[: turn % 26])
        for number, document in enumerate(documents):
            text = document["text"].translate(table) + str(turn)
            corpus.append({**document, "id": f"{turn}-{number}", "text": text})
    return corpus


@pytest.mark.long
@pytest.mark.parametrize("shard_bytes", [50_000_000, 400_000_000])
def test_memory_does_not_grow_with_the_text(packed_run, packing_run, documents, shard_bytes: int):
    peaks = []
    for size in (100_000_000, 400_000_000):
        tokenizer = str(packed_run.packed / "tokenizer")
        shards = max(1, size // shard_bytes)
        run = packing_run(large_corpus(documents, size), shards, tokenizer=tokenizer, chunk_tokens=2_000_000)
        code, out, err = run.run()
        assert code == 0, out + err
        peaks.append(Manifest.read(run.packed / "manifest.json").run["peak_memory_bytes"])
        shutil.rmtree(run.folder)
    assert max(peaks) < 1e9 and peaks[1] < peaks[0] + 100e6, peaks
