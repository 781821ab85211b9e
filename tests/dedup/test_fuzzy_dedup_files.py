"""fuzzy_dedup: a folder of shards in, one file and its receipts out, and nothing half done."""

import importlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup import DedupParameters, cpu_dedup_streaming, find_duplicates, fuzzy_dedup
from dedup.gpu_dedup import gpu_fuzzy_dedup
from pipeline_lib.stage import StageFailure, UserError

LONG = " ".join(f"word{n}" for n in range(200))


def test_kept_rows_keep_their_columns_and_order(oracle, tmp_path):
    corpus = oracle.Planted(seed=3)
    oracle.write_shards(tmp_path / "in", corpus.records, shards=3)
    summary = fuzzy_dedup(tmp_path / "in", tmp_path / "out", workers=2)
    kept = pq.read_table(tmp_path / "out" / "deduplicated.parquet")
    removed = pq.read_table(tmp_path / "out" / "removed.parquet")
    gone = set(removed["id"].to_pylist())
    given = [record for shard in range(3) for record in corpus.records[shard::3]]
    assert kept["id"].to_pylist() == [record["id"] for record in given if record["id"] not in gone]
    assert kept.schema.equals(pq.read_schema(tmp_path / "in" / "part-00000.parquet"))
    assert summary.documents == len(given) == summary.kept + summary.exact + summary.fuzzy
    assert (summary.kept, summary.exact + summary.fuzzy) == (kept.num_rows, removed.num_rows)
    assert summary.recall_at_threshold == pytest.approx(0.9769, abs=1e-3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deduplicated.parquet", "removed.parquet"]


def test_the_old_names_remove_however_many_there_are(tmp_path):
    pq.write_table(pa.table({"id": [str(n) for n in range(150)], "text": [LONG] * 150}), tmp_path / "a.parquet")
    with pytest.raises(StageFailure, match="max_removed_fraction"):
        fuzzy_dedup(tmp_path / "a.parquet", tmp_path / "guarded")
    for name, entry in (("cpu", cpu_dedup_streaming), ("gpu", gpu_fuzzy_dedup)):
        out = entry(str(tmp_path / "a.parquet"), str(tmp_path / name), show_progress=False)
        assert pq.read_table(f"{out}/deduplicated.parquet").num_rows == 1


def test_ids_that_repeat_in_different_files_never_remove_a_stranger(tmp_path):
    for name, texts in (("a", [LONG, "first"]), ("b", ["second", LONG])):
        pq.write_table(pa.table({"id": ["1", "2"], "text": texts}), tmp_path / f"{name}.parquet")
    summary = fuzzy_dedup(tmp_path, tmp_path / "out")
    kept = pq.read_table(tmp_path / "out" / "deduplicated.parquet")["text"].to_pylist()
    assert sorted(kept) == sorted(["first", LONG, "second"])
    assert summary.exact == 1


def test_documents_without_ids_are_named_by_their_digest(tmp_path):
    pq.write_table(pa.table({"body": [LONG, LONG + " more", "other"]}), tmp_path / "in.parquet")
    fuzzy_dedup(tmp_path / "in.parquet", tmp_path / "out", text_column="body", id_column="key")
    (receipt,) = pq.read_table(tmp_path / "out" / "removed.parquet").to_pylist()
    assert len(receipt["id"]) == len(receipt["survivor_id"]) == 32
    assert pq.read_table(tmp_path / "out" / "deduplicated.parquet")["body"].to_pylist() == [LONG + " more", "other"]


def test_unusable_input_is_refused_before_anything_is_written(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="same folder"):
        fuzzy_dedup(tmp_path, tmp_path)
    with pytest.raises(UserError, match="no parquet files"):
        fuzzy_dedup(tmp_path / "absent", tmp_path / "out")
    pq.write_table(pa.table({"id": ["a"], "text": ["x"], "extra": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="other columns or types"):
        fuzzy_dedup(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stopped_run_leaves_the_earlier_output_alone(tmp_path):
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["one", "two"]}), tmp_path / "good.parquet")
    fuzzy_dedup(tmp_path / "good.parquet", tmp_path / "out")
    before = (tmp_path / "out" / "deduplicated.parquet").read_bytes()
    copies = pa.table({"id": [str(n) for n in range(200)], "text": [LONG] * 200})
    pq.write_table(copies, tmp_path / "copies.parquet")
    with pytest.raises(StageFailure, match="would lose 199 of 200"):
        fuzzy_dedup(tmp_path / "copies.parquet", tmp_path / "out")
    assert (tmp_path / "out" / "deduplicated.parquet").read_bytes() == before


@pytest.mark.parametrize("moment", ["before its sketch", "before the decisions", "before the copy"])
@pytest.mark.parametrize("max_ram", [None, "4G"])
def test_a_shard_that_is_replaced_while_the_run_goes_on_loses_no_row_silently(tmp_path, monkeypatch, moment, max_ram):
    shard = tmp_path / "in" / "a.parquet"
    shard.parent.mkdir()

    def write(rows: int) -> None:
        table = pa.table({"id": [str(n) for n in range(rows)], "text": [f"{LONG} {n}" for n in range(rows)]})
        pq.write_table(table, shard, row_group_size=2)

    def after_more_came(read):
        def changed(*arguments, **named):
            write(6)
            return read(*arguments, **named)

        return changed

    write(4)
    module, name = {
        "before its sketch": ("dedup.steps", "write_sketch"),
        "before the decisions": ("dedup.removals", "collect"),
        "before the copy": ("dedup.cpu_dedup", "write_kept_shard"),
    }[moment]
    monkeypatch.setattr(f"{module}.{name}", after_more_came(getattr(importlib.import_module(module), name)))
    with pytest.raises(UserError, match=r"a.parquet changed while it was being deduplicated; start again") as refusal:
        fuzzy_dedup(shard.parent, tmp_path / "out", max_ram=max_ram, one_file=False)
    assert refusal.value and not list((tmp_path / "out").glob("*.parquet"))


def test_the_streaming_entry_gives_the_same_documents_and_refuses_a_machine_that_is_too_small(oracle, tmp_path, capsys):
    corpus = oracle.Planted(seed=5)
    oracle.write_shards(tmp_path / "in", corpus.records)
    with pytest.raises(UserError, match="give at least"):
        cpu_dedup_streaming(str(tmp_path / "in"), str(tmp_path / "x"), memory_info={"ram_free_gb": 1e-9})
    folder = cpu_dedup_streaming(str(tmp_path / "in"), str(tmp_path / "cpu"), memory_info={"ram_free_gb": 4})
    assert "documents stay" in capsys.readouterr().out
    fuzzy_dedup(tmp_path / "in", tmp_path / "direct", DedupParameters())
    direct = pq.read_table(tmp_path / "direct" / "deduplicated.parquet")
    assert pq.read_table(f"{folder}/deduplicated.parquet").equals(direct)


@pytest.mark.parametrize(("name", "one_file"), [("deduplicated", True), ("a", False), ("removed", True)])
def test_an_output_that_would_overwrite_its_input_is_refused_before_any_work(tmp_path, name, one_file):
    file = tmp_path / f"{name}.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "text": [LONG, LONG]}), file)
    (tmp_path / "link").symlink_to(tmp_path)
    before = file.read_bytes()
    for output in (tmp_path, tmp_path / "link"):
        with pytest.raises(UserError, match=f"would overwrite .*{name}.parquet, which is read; choose another folder"):
            fuzzy_dedup(file, output, one_file=one_file)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, "link"])


def test_the_users_own_files_in_the_scratch_folder_stay(oracle, tmp_path):
    files = oracle.write_shards(tmp_path / "in", oracle.Planted(seed=3, originals=12).records)
    names = ["bands", "sets", "resolved", "runs", "sketches", "planted"]
    for name in names:
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "mine.txt").write_text("years of work")
    (tmp_path / "cache" / "run.json").write_text("mine")
    fuzzy_dedup(tmp_path / "in", tmp_path / "out", scratch=tmp_path / "cache")
    find_duplicates(files, DedupParameters(), 1, tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted([*names, "run.json"])
    assert all((tmp_path / "cache" / name / "mine.txt").read_text() == "years of work" for name in names)


def test_a_folder_in_which_another_process_works_is_refused(oracle, tmp_path, held_elsewhere):
    files = oracle.write_shards(tmp_path / "in", oracle.Planted(seed=3, originals=12).records)
    holder = held_elsewhere(tmp_path / "out" / ".dedup-work")
    with pytest.raises(UserError, match=f"is being written by process {holder}; wait for it or stop it"):
        fuzzy_dedup(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match=f"is being written by process {holder}"):
        find_duplicates(files, DedupParameters(), 1, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".dedup-work"]
