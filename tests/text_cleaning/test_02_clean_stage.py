"""The stage as a user meets it: accounts that balance, receipts, the same files whatever happens on the way."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from finished_download import asking_tasks, document, finish_download, write_task

from dedup import gpu_device
from dedup.memory_limit import MemoryLimit
from fork_launcher import run_script
from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.stage import Ledger, UserError, file_digest
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.text_cleaning.fates import explain
from pipeline_lib.text_cleaning.memory_share import fitting_workers, memory_limit

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "02_clean_deduplicate.py"
VOCABULARY = [
    "river", "stone", "market", "window", "morning", "letter", "garden", "bridge", "winter", "engine", "paper",
    "signal", "island", "copper", "forest", "number", "silver", "harbour", "kitchen", "thunder", "village", "meadow",
    "lantern",
]  # fmt: skip


STOP_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "with",
    "that",
    "have",
    "be",
    "in",
    "for",
    "is",
    "was",
    "on",
    "at",
    "from",
    "by",
]


def prose(seed: int, sentences: int = 14) -> str:
    """English-looking text that passes every rule: long enough, without repetition, with stop words and full stops."""
    rng = random.Random(seed)
    lines = []
    for _ in range(sentences):
        words = [f"{rng.choice(STOP_WORDS)} {rng.choice(VOCABULARY)}{rng.choice(['', 's'])}" for _ in range(8)]
        lines.append(" ".join(words).capitalize() + ".")
    return "\n".join(lines)


def corpus() -> list[list[dict[str, str]]]:
    """Three shards, two sources, and one document for each fate."""
    shards = [
        [document(f"good-{s}-{i}", prose(100 * s + i), ["web", "books"][i % 2]) for i in range(40)] for s in range(3)
    ]
    near = prose(101).split("\n")
    near[7] = "The copper of the winter that we have seen would be near the paper and the island."
    shards[0] += [
        document("short", prose(7, sentences=3)),
        document("empty", " \n\x00\n "),
        document(
            "german", "Der Fluss führt im Sommer so wenig Wasser, dass die Schiffe nicht voll beladen werden. " * 9
        ),
        document("repeats", "\n".join(["The same line of the text that we have seen before, again and again."] * 20)),
        document("personal", prose(900) + "\nWrite to jane.doe@web.de or call (212) 664-7665, and it will be done."),
    ]
    shards[2] += [
        document("twin", "\ufeff" + prose(101).replace("\n", "\r\n"), "books"),
        document("near", "\n".join(near)),
        document("leaked", prose(901) + "\n" + EVALUATION[0]["question"].upper()),
    ]
    return shards


EVALUATION = [
    {"id": "q0", "question": "How many lanterns did the keeper of the old harbour sell when winter came to the island?"}
]


def start(folder: Path, *flags: str, threads: int = 2) -> subprocess.CompletedProcess:
    """Run stage 02 in a run folder."""
    return run_script(SCRIPT.name, configuration(folder, threads), folder, *flags)


def command(folder: Path, *flags: str, threads: int = 2) -> list[str]:
    """Return the command line that does the same in a process of its own from the first import on."""
    config = configuration(folder, threads)
    return [sys.executable, str(SCRIPT), "--config", str(config), "--run-dir", str(folder), *flags]


def configuration(folder: Path, threads: int) -> Path:
    folder.mkdir(exist_ok=True)
    config = folder / "clean.yaml"
    config.write_text(f"run: clean\nthreads: {threads}\n{asking_tasks(folder)}")
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run folder in which stage 02 has done its work on `corpus()`; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    finish_download(folder, corpus(), {"questions": EVALUATION})
    done = start(folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def receipts_of(folder: Path) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(folder / "02_clean" / "removed.parquet").to_pylist()}


def kept_by(folder: Path) -> dict[str, dict]:
    parts = sorted((folder / "02_clean").glob("part-*.parquet"))
    return {row["id"]: row for part in parts for row in pq.read_table(part).to_pylist()}


def output_digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted((folder / "02_clean").glob("*.parquet"))}


def test_every_document_is_kept_or_has_a_receipt_that_says_why(finished):
    removed, kept = receipts_of(finished), kept_by(finished)
    assert {identity: row["rule"] for identity, row in removed.items()} == {
        "short": "gopher_quality.min_words",
        "empty": "empty",
        "german": "language.min_score",
        "repeats": "gopher_repetition.max_duplicate_lines",
        "twin": "exact_duplicate",
        "near": "near_duplicate",
        "leaked": "contamination",
    }
    assert removed["short"]["score"] < removed["short"]["threshold"] == 50
    assert removed["twin"]["survivor_id"] == removed["near"]["survivor_id"] == "good-1-1"
    assert removed["twin"]["jaccard"] == 1.0 and 0.8 <= removed["near"]["jaccard"] < 1.0
    assert removed["leaked"]["survivor_id"] == "eval/questions.jsonl:1"
    assert removed["near"]["preview"] == prose(101)[:200]
    assert removed["near"]["survivor_preview"] == removed["twin"]["survivor_preview"] == prose(101)[:200]
    assert 1 <= removed["near"]["bands"] < removed["twin"]["bands"] == 16
    assert removed["short"]["bands"] is None and removed["short"]["survivor_preview"] is None
    assert kept["good-1-1"]["duplicates"] == 2 and kept["good-1-2"]["duplicates"] == 0
    assert kept["personal"]["text"].endswith("Write to [EMAIL] or call [PHONE], and it will be done.")
    assert kept["personal"]["personal_data"] == 2
    assert len(kept) + len(removed) == sum(map(len, corpus()))
    assert kept["good-0-0"]["text"] == prose(0), "the line structure must survive"


def test_the_ledger_balances_in_bytes_and_counts_each_rule_once(finished):
    manifest = Manifest.read(finished / "02_clean" / MANIFEST)
    kept = kept_by(finished)
    total = Ledger.from_json(manifest.ledger).total("text")
    assert total["documents"] == len(kept)
    assert total["bytes"] == sum(len(row["text"].encode()) for row in kept.values())
    assert sum(manifest.result["removed"].values()) == len(receipts_of(finished))
    found = {source: entry["found"] for source, entry in manifest.ledger["text"].items() if "found" in entry}
    assert list(found.values()) == [{"email": 1, "phone": 1}]


def test_the_card_says_how_many_copies_were_planted_and_their_number_decides_nothing(finished):
    card = Manifest.read(finished / "02_clean" / MANIFEST).result["deduplication"]
    assert card.endswith(f" found ({len(kept_by(finished))} of 500 copies could be planted)")
    assert CleanSettings(dedup={"planted_copies": 7}).deciding() == CleanSettings().deciding()


@pytest.mark.slow
def test_worker_count_does_not_show_in_the_files(finished, tmp_path, monkeypatch):
    # Small corpora are cleaned in one process; here the pieces go to three, as those of a large one would.
    finish_download(tmp_path, corpus(), {"questions": EVALUATION})
    script = "import runpy, sys; from pipeline_lib.text_cleaning import corpus; corpus.WORKER_BYTES = 1;"
    script += f"sys.argv = sys.argv[1:]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    argv = command(tmp_path, threads=3)
    done = subprocess.run([argv[0], "-c", script, *argv[1:]], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr + done.stdout
    assert output_digests(tmp_path) == output_digests(finished) and len(output_digests(finished)) == 6


@pytest.mark.long
def test_little_memory_means_fewer_processes_and_the_same_files(finished, tmp_path):
    finish_download(tmp_path, corpus(), {"questions": EVALUATION})

    def alone(*flags: str) -> subprocess.CompletedProcess:
        """Not forked from a process that has far more in memory than this stage."""
        return subprocess.run(command(tmp_path, *flags), capture_output=True, text=True, timeout=180)

    done = alone("--max_ram", "700M")
    assert done.returncode == 0, done.stderr + done.stdout
    assert output_digests(tmp_path) == output_digests(finished)
    assert "up to date" in alone("--max_ram", "1G").stdout  # how much it may take decides nothing
    for size, words in (("100M", "needs at least 560M"), ("much", "is no memory size")):
        refused = alone("--max_ram", size, "--force")
        assert refused.returncode == 2 and words in refused.stderr and refused.stderr.count("\n") == 1
    small, large = (memory_limit(CleanSettings(max_ram=size)) for size in ("600M", "4G"))
    limits = (small, large, MemoryLimit())
    assert [fitting_workers(20, limit, CleanSettings()) for limit in limits] == [1, 10, 20]


def test_the_records_that_documents_copy_are_named_and_those_that_stay_are_counted(finished, tmp_path):
    rows = pq.read_table(finished / "02_clean" / "contamination.parquet").to_pylist()
    assert rows == [
        {"record": "eval/questions.jsonl:1", "ngrams": 5, "documents": 1, "documents_kept": 0, "example": "leaked"}
    ]
    assert Manifest.read(finished / "02_clean" / MANIFEST).result["evaluation_records"] == (
        "1 compared, 1 found in what came in, 0 in what is kept"
    )
    # A marked document stays, a copy of it goes as a duplicate: what is counted is what leaves the stage.
    shards = [*corpus(), [document("again", prose(901) + "\n" + EVALUATION[0]["question"].upper())]]
    other = {"questions": [*EVALUATION, {"question": "too short"}], "unasked": [{"question": prose(0)}]}
    finish_download(tmp_path, shards, other)
    (tmp_path / "eval_tasks" / "unasked.yaml").unlink()
    write_task(tmp_path, "missing")
    done = start(tmp_path, "--contamination.action", "mark")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "not compared, because no task in evaluate.tasks asks them: eval/unasked.jsonl" in done.stdout
    assert "01_download has no records of the tasks missing, so none were compared" in done.stdout
    rows = pq.read_table(tmp_path / "02_clean" / "contamination.parquet").to_pylist()
    assert [(row["ngrams"], row["documents"], row["documents_kept"]) for row in rows] == [(5, 2, 1), (0, 0, 0)]
    kept = kept_by(tmp_path)
    assert sum(row["contamination"] for row in kept.values()) == 5 and "good-0-0" in kept


@pytest.mark.slow
def test_asking_other_tasks_makes_the_stage_run_again_and_its_scores_old(finished, tmp_path):
    finish_download(tmp_path, [[document("a", prose(1))]], {"questions": EVALUATION, "others": EVALUATION})
    (tmp_path / "eval_tasks" / "others.yaml").unlink()
    assert start(tmp_path).returncode == 0
    assert "up to date" in start(tmp_path).stdout
    assert "pass all rules" in start(tmp_path, "--explore").stdout
    write_task(tmp_path, "others")
    refused = start(tmp_path, "--explore")
    assert refused.returncode == 2 and "other settings or data" in refused.stderr
    assert "cleans and deduplicates" in start(tmp_path).stdout


def test_texts_of_stage_01_that_have_changed_make_scores_old(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert "pass all rules" in start(tmp_path, "--explore").stdout
    assert "pass the rules" in start(tmp_path, "--plan").stdout
    shutil.rmtree(tmp_path / "01_download")
    finish_download(tmp_path, [*corpus(), [document("more", prose(900), "more")]], {"questions": EVALUATION})
    refused = start(tmp_path, "--explore")
    assert refused.returncode == 2 and "made from other texts" in refused.stderr and refused.stderr.count("\n") == 1
    assert "effect  unknown: texts" in start(tmp_path, "--plan").stdout
    config = configuration(tmp_path, 1)
    config.write_text(f"{config.read_text()}\npacked: {tmp_path}\n")
    packed = run_script(SCRIPT.name, config, tmp_path, "--explore")
    assert "pass all rules" in packed.stdout and "not here to be compared" in packed.stdout, "not cleaned in this run"


def test_thresholds_are_explored_where_the_texts_of_stage_01_are_gone(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with_texts = start(tmp_path, "--explore").stdout
    shutil.rmtree(tmp_path / "01_download")
    done = start(tmp_path, "--explore")
    assert done.returncode == 0, done.stderr
    first, compared, *rules = done.stdout.splitlines()
    assert [first, *rules] == with_texts.splitlines() and "not here to be compared" in compared


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dedup.bands", "200"], "bands x rows is 1400, more than 1024; lower one"),
        (["--dedup.device", "gpu"], "device is gpu, but CuPy"),
        (["--language.keep", '["en", "ger"]'], "clean.language.keep: 'ger' is none of the 176 codes"),
    ],
)
def test_settings_that_cannot_be_obeyed_are_refused_before_anything_is_cleaned(tmp_path, flags, message):
    if "gpu" in flags and gpu_device.is_available():
        pytest.skip("this machine has a GPU")
    finish_download(tmp_path, corpus(), {"questions": EVALUATION})
    done = start(tmp_path, *flags)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "02_clean" / "work").exists()


def test_sources_that_settings_name_and_no_document_has_are_on_the_card(tmp_path):
    finish_download(tmp_path, [[document("a", prose(1)), document("b", prose(2), "books")]])
    flags = ["--exempt_sources", '["web", "wbe"]', "--dedup.exact_sources", '["tabels"]']
    done = start(tmp_path, *flags, "--dedup.source_rank", '["books", "papers", "code"]')
    assert done.returncode == 0, done.stderr + done.stdout
    notes = Manifest.read(tmp_path / "02_clean" / MANIFEST).notes
    assert [note for note in notes if note.endswith(", and no document has that source")] == [
        "clean.exempt_sources names wbe, and no document has that source",
        "clean.dedup.exact_sources names tabels, and no document has that source",
        "clean.dedup.source_rank names code, and no document has that source",
        "clean.dedup.source_rank names papers, and no document has that source",
    ]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_files(finished, tmp_path):
    finish_download(tmp_path, corpus(), {"questions": EVALUATION})
    argv = command(tmp_path)
    journal = tmp_path / "02_clean" / "work" / "journal.jsonl"
    for finished_units in (1, 3, 5):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= finished_units):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "were finished before, continuing" in done.stdout or "up to date" in done.stdout
    assert output_digests(tmp_path) == output_digests(finished)
    assert not (tmp_path / "02_clean" / "work").exists()


def test_why_tells_the_fate_of_a_removed_and_of_a_kept_document(finished):
    folder = finished / "02_clean"
    near = "\n".join(explain(folder, "near"))
    assert "removed by near_duplicate" in near and "stays instead: good-1-1" in near and "Jaccard 0." in near
    assert f"  removed: {prose(101)[:200]!r}" in near and f"  stays:   {prose(101)[:200]!r}" in near
    assert " MinHash bands agree (removed from Jaccard 0.8)" in near
    assert "  read from web.jsonl, record near" in near
    assert near.split("stays instead: good-1-1\n")[1].startswith("    read from books.jsonl, record good-1-1\n")
    leaked = "\n".join(explain(folder, "leaked"))
    assert "shares text with eval/questions.jsonl:1" in leaked and "  read from web.jsonl, record leaked" in leaked
    survivor = explain(folder, "good-1-1")
    assert "stays, in part-00001.parquet" in survivor[0]
    assert survivor[1] == f"  read from {survivor[0].split('(source ')[1].split(')')[0]}.jsonl, record good-1-1"
    assert [line.split(":")[0] for line in survivor if "stays instead of" in line] == [
        "  stays instead of twin",
        "  stays instead of near",
    ]
    assert not any("stays instead of" in line for line in explain(folder, "good-1-2"))
    short = start(finished, "--why", "short").stdout
    assert "removed by gopher_quality.min_words" in short and "score 48, threshold 50" in short
    assert start(finished, "--why", "web.jsonl, record short").stdout == short
    unknown = start(finished, "--why", "nobody")
    assert unknown.returncode == 2 and "no document 'nobody'" in unknown.stderr


def test_receipts_of_another_version_are_refused_in_one_line(finished, tmp_path):
    table = pq.read_table(finished / "02_clean" / "removed.parquet").drop(["survivor_preview"])
    pq.write_table(table, tmp_path / "removed.parquet")
    with pytest.raises(UserError, match="written by another version of this stage; run this script without --why"):
        explain(tmp_path, "near")


def test_a_corpus_that_cleaning_empties_fails_with_what_to_do(tmp_path):
    finish_download(tmp_path, [[document(f"d{i}", f"Only {i} words here.") for i in range(30)]])
    done = start(tmp_path)
    assert done.returncode == 1
    assert "cleaning removed all 30 documents; most by" in done.stderr and "clean.quality_rules" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "02_clean" / MANIFEST).exists()


def test_repeated_ids_and_broken_evaluation_sets_are_the_users_to_mend(tmp_path):
    finish_download(tmp_path, [[document("same", prose(1))], [document("same", prose(2))]])
    done = start(tmp_path)
    first, second = (tmp_path / "01_download" / f"part-0000{n}.parquet" for n in range(2))
    assert done.returncode == 2 and f"'same' stands in {first} row 0 and in {second} row 0" in done.stderr
    assert "`id_field`" in done.stderr and done.stderr.count("\n") == 1
    other = tmp_path / "other"
    folder = finish_download(other, corpus(), {"questions": EVALUATION})
    path = folder / "eval" / "questions.jsonl"
    path.write_text("not json\n")
    done = start(other)
    assert done.returncode == 2 and "is damaged" in done.stderr


def test_plan_estimates_whatever_the_guard_would_say_of_its_sample_and_writes_nothing(tmp_path):
    again = prose(101).split("\n")
    again[8] = "The stone of the garden that was here would be from the window and the number."
    finish_download(tmp_path, [*corpus(), [document("again", "\n".join(again))]], {"questions": EVALUATION})
    strict = ["--dedup.max_removed_fraction", "0.001", "--dedup.guard_minimum", "1", "--dedup.max_cluster", "1"]
    done = start(tmp_path, "--plan", *strict)
    assert done.returncode == 0, done.stderr
    assert "129 documents cleaned and deduplicated on one core, scaled to 129" in done.stdout
    assert not (tmp_path / "02_clean").exists()


def test_help_answers_without_loading_the_libraries():
    probe = (
        "import runpy, sys\nsys.argv = ['02', '--help']\n"
        f"try:\n    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print([name for name in ('numba', 'pyarrow', 'numpy', 'fasttext', 'datatrove') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=environment)
    assert done.stdout.strip().endswith("[]"), done.stdout[-300:] + done.stderr
