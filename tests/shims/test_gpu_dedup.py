"""The old module keeps its promise: every public name, with the old signature and behaviour, and nothing else."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dedup
import gpu_dedup
from pipeline_lib.stage import UserError

NAMES = {
    "gpu_fuzzy_dedup",
    "is_gpu_dedup_available",
    "get_memory_info",
    "fast_shingle_hash",
    "compute_minhash_signatures_gpu",
    "build_lsh_index",
    "find_duplicates_lsh",
    "cpu_dedup_streaming",
}
TEXT = "The quick brown fox jumps over the lazy dog near the old river bank, then sleeps. " * 4


@pytest.fixture
def has_no_gpu() -> None:
    if gpu_dedup.is_gpu_dedup_available():
        pytest.skip("this machine has a GPU")


def parquet(folder: Path, **columns) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "in.parquet")
    return str(folder)


def kept_ids(folder: str) -> list[str]:
    return pq.read_table(f"{folder}/deduplicated.parquet")["id"].to_pylist()


def test_the_module_has_the_public_names_and_no_others():
    public = {name for name in vars(gpu_dedup) if not name.startswith("_")}
    assert public == NAMES == set(gpu_dedup.__all__)
    for name in NAMES:
        assert getattr(gpu_dedup, name) is getattr(dedup, name)


def printed_by_a_new_process(expression: str, **environment: str) -> str:
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import gpu_dedup; print({expression})"
    command = [sys.executable, "-c", code, str(Path(gpu_dedup.__file__).parent)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_importing_it_loads_no_framework():
    frameworks = "('torch', 'cupy', 'datasketch')"
    assert printed_by_a_new_process(f"[m for m in {frameworks} if m in sys.modules]") == "[]"


def test_gpu_fuzzy_dedup_has_the_old_signature():
    parameters = inspect.signature(gpu_dedup.gpu_fuzzy_dedup).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert list(parameters)[:4] == ["input_path", "output_path", "text_column", "id_column"]
    assert defaults == {
        "text_column": "text",
        "id_column": "id",
        "similarity_threshold": 0.8,
        "char_ngrams": 5,
        "num_buckets": 20,
        "hashes_per_bucket": 13,
        "cache_path": None,
        "use_gpu": None,
        "n_workers": 1,
        "show_progress": True,
    }


def test_gpu_fuzzy_dedup_writes_the_kept_rows_and_returns_the_folder(tmp_path, capsys):
    folder = parquet(tmp_path / "in", id=["a", "b", "c"], text=[TEXT, TEXT + "Truly.", "Something else entirely. " * 9])
    out = gpu_dedup.gpu_fuzzy_dedup(folder, str(tmp_path / "out"), n_workers=2, cache_path=str(tmp_path / "cache"))
    assert out == str(tmp_path / "out")
    assert kept_ids(out) == ["b", "c"]
    assert "20 x 13 bands see 68% of pairs at 0.8" in capsys.readouterr().out
    gpu_dedup.gpu_fuzzy_dedup(folder, str(tmp_path / "quiet"), show_progress=False)
    assert capsys.readouterr().out == ""


def test_gpu_fuzzy_dedup_honours_threshold_ngrams_and_bands(tmp_path):
    one, other = " ".join(map(str, range(300))), " ".join(map(str, [*range(250), *range(900, 950)]))
    folder = parquet(tmp_path / "in", key=["a", "b"], body=[one, other])

    def kept(**options) -> int:
        out = gpu_dedup.gpu_fuzzy_dedup(
            folder,
            str(tmp_path / "out"),
            "body",
            "key",
            num_buckets=60,
            hashes_per_bucket=3,
            show_progress=False,
            **options,
        )
        return pq.read_table(f"{out}/deduplicated.parquet").num_rows

    assert kept(similarity_threshold=0.6) == 1
    assert kept(similarity_threshold=0.95) == 2
    assert kept(similarity_threshold=0.9, char_ngrams=1) == 1


def test_documents_shorter_than_an_ngram_do_not_swallow_each_other(tmp_path):
    folder = parquet(tmp_path / "in", id=list("abcde"), text=["yes", "no", "ok", "yes", ""])
    out = gpu_dedup.gpu_fuzzy_dedup(folder, str(tmp_path / "out"), show_progress=False)
    assert kept_ids(out) == ["a", "b", "c", "e"]


def test_a_gpu_that_is_demanded_and_absent_is_an_error(tmp_path, has_no_gpu):
    folder = parquet(tmp_path / "in", id=["a"], text=["x"])
    with pytest.raises(UserError, match="device is gpu"):
        gpu_dedup.gpu_fuzzy_dedup(folder, str(tmp_path / "out"), use_gpu=True)
    with pytest.raises(UserError, match="device is gpu"):
        gpu_dedup.compute_minhash_signatures_gpu([np.arange(3, dtype=np.uint64)], 8)
    for choice in (None, False):
        assert gpu_dedup.gpu_fuzzy_dedup(folder, str(tmp_path / "out"), use_gpu=choice, show_progress=False)


def test_is_gpu_dedup_available_is_a_bool():
    assert isinstance(gpu_dedup.is_gpu_dedup_available(), bool)


def test_get_memory_info_reports_this_machine():
    info = gpu_dedup.get_memory_info()
    assert set(info) == {"gpu_name", "gpu_total_gb", "gpu_free_gb", "ram_total_gb", "ram_free_gb"}
    assert 0 < info["ram_free_gb"] <= info["ram_total_gb"]
    assert (info["gpu_name"] is None) == (info["gpu_total_gb"] == 0) == (not gpu_dedup.is_gpu_dedup_available())


def test_fast_shingle_hash_gives_one_64_bit_hash_per_position():
    hashes = gpu_dedup.fast_shingle_hash("abcdefabcde", 5)
    assert hashes.dtype == np.uint64 and len(hashes) == 7
    assert hashes[0] == hashes[6] and len(set(hashes.tolist())) == 6
    assert len(gpu_dedup.fast_shingle_hash("abcd")) == len(gpu_dedup.fast_shingle_hash("")) == 0
    assert len(gpu_dedup.fast_shingle_hash("日本語の文", 2)) == 4


@pytest.mark.slow
def test_fast_shingle_hash_is_the_same_in_every_process():
    expression = "gpu_dedup.fast_shingle_hash('hello world').tolist()"
    outputs = {printed_by_a_new_process(expression, PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert outputs == {str(gpu_dedup.fast_shingle_hash("hello world").tolist())}


def test_compute_minhash_signatures_gives_minima_of_unsigned_hashes_in_any_batches():
    rng = np.random.default_rng(0)
    documents = [rng.integers(2**63, 2**64, n, dtype=np.uint64) for n in (5, 0, 300, 1)] + [None]
    whole = gpu_dedup.compute_minhash_signatures_gpu(documents, 16, device="cpu")
    assert whole.shape == (5, 16) and whole.dtype == np.uint64
    assert np.array_equal(whole, gpu_dedup.compute_minhash_signatures_gpu(documents, 16, device="cpu", batch_size=2))
    assert (whole[[1, 4]] == 2**64 - 1).all() and (whole[[0, 2, 3]] < 2**32).all()
    with pytest.raises(UserError, match="choose cuda or cpu"):
        gpu_dedup.compute_minhash_signatures_gpu(documents, 16, device="mps")


def test_build_lsh_index_groups_equal_bands_and_leaves_out_empty_documents():
    empty = np.iinfo(np.uint64).max
    signatures = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [7, 7, 3, 4], [empty] * 4, [empty] * 4], np.uint64)
    first, second = gpu_dedup.build_lsh_index(signatures, 2)
    assert sorted(first.values()) == [[0, 1], [2]]
    assert sorted(second.values()) == [[0, 2], [1]]
    with pytest.raises(UserError, match="5 bands cannot be cut from 4"):
        gpu_dedup.build_lsh_index(signatures, 5)


def test_find_duplicates_lsh_keeps_the_lowest_index_and_makes_no_chains():
    base = np.arange(10, dtype=np.uint64)
    near, far = base.copy(), base.copy()
    near[8:] = 100
    far[6:] = 100
    strangers = np.full(10, 55, np.uint64)
    signatures = np.stack([base, near, far, strangers, base])
    tables = gpu_dedup.build_lsh_index(signatures, 5)
    assert gpu_dedup.find_duplicates_lsh(tables, signatures, 0.8) == {1, 4}
    assert gpu_dedup.find_duplicates_lsh(tables, signatures, 0.6) == {1, 2, 4}
    assert gpu_dedup.find_duplicates_lsh(tables, signatures, 0.95) == {4}


def test_the_signature_functions_find_near_duplicates_end_to_end():
    texts = [TEXT, TEXT + " Indeed.", "An unrelated sentence about compilers and their optimisation passes. " * 3]
    shingles = [gpu_dedup.fast_shingle_hash(text) for text in texts]
    signatures = gpu_dedup.compute_minhash_signatures_gpu(shingles, 128, device="cpu")
    tables = gpu_dedup.build_lsh_index(signatures, 16)
    assert gpu_dedup.find_duplicates_lsh(tables, signatures, 0.8) == {1}


def test_cpu_dedup_streaming_takes_the_old_arguments_in_the_old_order(tmp_path):
    folder = parquet(tmp_path / "in", key=["a", "b"], body=[TEXT, TEXT.upper()])
    out = gpu_dedup.cpu_dedup_streaming(
        folder, str(tmp_path / "out"), "body", "key", 0.8, gpu_dedup.get_memory_info(), False
    )
    assert out == str(tmp_path / "out")
    assert pq.read_table(f"{out}/deduplicated.parquet")["key"].to_pylist() == ["a"]
