"""The column `duplicates`: what a document stood for before is added in, passed on and never written over."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_index import PARAMETERS

from dedup import fuzzy_dedup
from dedup.corpus import Corpus
from dedup.index import DedupIndex
from pipeline_lib.stage import UserError


def numbered(folder, name: str, texts: list[str], duplicates: pa.Array | None) -> Corpus:
    columns = {"id": [f"{name}{n}" for n in range(len(texts))], "duplicates": duplicates, "text": texts}
    table = pa.table({key: values for key, values in columns.items() if values is not None})
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"{name}.parquet")
    return Corpus((folder / f"{name}.parquet",))


def test_what_a_document_stood_for_before_is_added_to_what_it_stands_for(tmp_path):
    one, other, third = (" ".join(f"{seed}word{n}" for n in range(60)) for seed in "xyz")
    first = numbered(tmp_path / "in", "a", [one, one + " longer", other], pa.array([4, 2, None], pa.int32()))
    second = numbered(tmp_path / "in", "b", [other, third, one], pa.array([10, 3, 5], pa.uint8()))
    plain = numbered(tmp_path / "in", "c", [third, third], None)
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    for name, corpus in (("a", first), ("b", second), ("c", plain)):
        index.add(name, corpus)
    found = {}
    for name in "abc":
        index.export(name, tmp_path / "out" / name)
        table = pq.read_table(tmp_path / "out" / name / f"{name}.parquet")
        assert table.column_names == pq.read_schema(tmp_path / "in" / f"{name}.parquet").names + ["duplicates"] * (
            name == "c"
        )
        assert table.schema.field("duplicates").type == pa.int64()
        found |= dict(zip(table["id"].to_pylist(), table["duplicates"].to_pylist(), strict=True))
    assert found == {"a1": 2 + (1 + 4) + (1 + 5), "a2": 0 + (1 + 10), "b1": 3 + 1 + 1}
    everything = 6 + 2 + (4 + 2) + (10 + 3 + 5)
    assert sum(found.values()) + len(found) == everything


def test_counts_beside_nulls_are_floats_of_pandas_and_counted_all_the_same(tmp_path):
    one = " ".join(f"word{n}" for n in range(60))
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    index.add("a", numbered(tmp_path / "in", "a", [one], pa.array([None], pa.float64())))
    index.add("b", numbered(tmp_path / "in", "b", [one, one], pa.array([float("nan"), 7.0])))
    assert index.cluster_sizes("a").tolist() == [1 + 1 + 7]
    with pytest.raises(UserError, match=r"b.parquet is double with fractions"):
        index.add("c", numbered(tmp_path / "other", "b", [one], pa.array([0.5])))


@pytest.mark.parametrize("second", [pa.array([5, 2], pa.int8()), None])
def test_a_run_passes_on_what_removed_documents_stood_for(tmp_path, second):
    one, other = (" ".join(f"{seed}word{n}" for n in range(60)) for seed in "xy")
    numbered(tmp_path / "in", "a", [one, other], pa.array([50, 1]))
    numbered(tmp_path / "in", "b", [one, one + " longer"], second)
    for one_file in (False, True) if second is not None else (False,):
        out = tmp_path / f"out-{one_file}"
        if one_file:
            numbered(tmp_path / "in", "b", [one, one + " longer"], pa.array([5, 2]))
        fuzzy_dedup(tmp_path / "in", out, PARAMETERS, one_file=one_file)
        tables = [pq.read_table(file) for file in sorted(out.glob("*.parquet")) if file.name != "removed.parquet"]
        found = {row["id"]: row["duplicates"] for table in tables for row in table.to_pylist()}
        assert sorted(found) == ["a1", "b1"]
        own = [5, 2] if second is not None else [0, 0]
        assert found == {"a1": 1, "b1": own[1] + (1 + 50) + (1 + own[0])}


def test_a_column_duplicates_that_holds_no_whole_numbers_is_not_written_over(tmp_path):
    text = " ".join(f"word{n}" for n in range(60))
    corpus = numbered(tmp_path / "in", "a", [text, text], pa.array(["none", "many"]))
    index = DedupIndex.open(tmp_path / "index", PARAMETERS)
    index.add("a", corpus)
    assert index.cluster_sizes("a").tolist() == [1, 0]
    with pytest.raises(UserError, match=r"column 'duplicates' of .*a.parquet is string, not of whole numbers"):
        index.export("a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("one_file", [True, False])
def test_numbers_in_one_file_and_words_in_another_are_refused_before_anything_is_written(tmp_path, one_file):
    text = " ".join(f"word{n}" for n in range(60))
    numbered(tmp_path / "in", "a", [text], pa.array([4]))
    numbered(tmp_path / "in", "b", [text], pa.array(["many"]))
    with pytest.raises(UserError, match=r"column 'duplicates' of .*b.parquet is string, not of whole numbers"):
        fuzzy_dedup(tmp_path / "in", tmp_path / "out", PARAMETERS, one_file=one_file)
    assert not (tmp_path / "out").exists()
