"""`python scripts/11_evaluate.py` on a run of tiny models: results, resumption after SIGKILL, and what it refuses."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fork_launcher import Launcher, run_script
from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.evaluation.questionnaire import MODELS
from pipeline_lib.stage import Ledger
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.manifest import Manifest, inputs_made_anew
from pipeline_lib.stage.stage import describe_files

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "11_evaluate.py"
SETTINGS = """threads: 1
evaluate:
  batch_tokens: 512
  document_bytes: 200
  limits: {python_choice: 10}
  skip: [init.arithmetic]
"""


def finish_stage(run, name, result=None, ledger=None, inputs=None):
    """Give a folder the manifest of a finished stage."""
    folder = run / name
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for child in sorted(folder.iterdir()):
        if child.name != "manifest.json":
            files.update(describe_files(child, child.name))
    fingerprint = {"inputs": inputs or {}, "settings": {}, "seed": 42, "data": {}, "code": {}}
    Manifest(name, fingerprint, files, (ledger or Ledger()).to_json(), result or {}, [], 0, {}).write(
        folder / "manifest.json"
    )


def write_evaluation_data(run):
    sets = {
        "python_choice": [
            {
                "id": f"q{n}",
                "question": f"What does `f{n}` do?",
                "answer": n % 4,
                "choices": [f"Return {n}.", "Raise an error.", "Add", "Sort"],
            }
            for n in range(14)
        ],
        "arithmetic": [{"id": f"s{n}", "question": f"{n} + 1?", "answer": f"so\n#### {n + 1}"} for n in range(3)],
        "preference": [
            {"id": f"p{n}", "prompt": f"What is {n}?", "chosen": "A number.", "rejected": "A queue."} for n in range(6)
        ],
        "heldout_docs": [{"id": f"d{n}", "text": "The sum of all elements. " * (n + 2)} for n in range(5)],
        "domain": [{"id": f"a{n}", "instruction": f"def f(x={n})", "output": f"Return {n}."} for n in range(6)],
        "shown": [{"id": f"e{n}", "instruction": f"def f(x={n})", "output": f"Give {n}."} for n in range(4, 9)],
        "function_calling": [
            {"messages": f"Time {n}?", "tools": [{"name": "clock"}], "calls": [{"name": "clock"}] * (n % 2)}
            for n in range(3)
        ],
        "unasked": [{"id": "u", "text": "x"}],
    }
    folder = run / "01_download" / "eval"
    folder.mkdir(parents=True)
    ledger, entries = Ledger(), []
    for name, records in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        ledger.enter("eval", name, len(records))
        ledger.keep("eval", name, len(records))
        entries.append({"name": name, "kind": "eval", "files": [f"eval/{name}.jsonl"], "documents": len(records)})
    (run / "01_download" / "sources.json").write_text(json.dumps({"sources": entries}))
    finish_stage(run, "01_download", ledger=ledger)


DIRTY = {"python_choice": (2, 5), "heldout_docs": (0,)}  # lines of records that stand in the raw text
TRAINED_ON = ("eval/python_choice.jsonl:6",)


def write_copied_records(run):
    """Write 02_clean as it is after documents with some of the records were found; "domain" was not compared."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    files = [f"eval/{name}.jsonl" for name in ("arithmetic", "heldout_docs", "preference", "python_choice")]
    for file in files:
        for line, _ in enumerate((run / "01_download" / file).read_text().splitlines()):
            found = 3 * (line in DIRTY.get(Path(file).stem, ()))
            row = {"record": f"{file}:{line + 1}", "ngrams": 5 * (line != 1), "documents": found}
            kept = int(row["record"] in TRAINED_ON)
            rows.append(row | {"documents_kept": kept, "example": "doc-1" if found else None})
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"files": json.dumps(files), "ngram": "13"})
    (run / "02_clean").mkdir()
    pyarrow.parquet.write_table(table, run / "02_clean" / "contamination.parquet")
    downloaded = Manifest.read(run / "01_download" / "manifest.json")
    finish_stage(run, "02_clean", inputs={"01_download": downloaded.outputs_digest})


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer, new_llama):
    """Every stage that stage 11 reads, with tiny random models that differ from each other."""
    folder = tmp_path_factory.mktemp("evaluation")
    run = folder / "run"
    write_evaluation_data(run)
    write_copied_records(run)
    finish_stage(run, "03_packed")
    for seed, (name, source) in enumerate(MODELS.items()):
        place = run / source.stage / source.folder
        new_llama(tokenizer, seed=seed, context=256).save_pretrained(place)
        tokenizer.save_pretrained(place)
        finish_stage(run, source.stage, {"loss": 1.0 + seed, "curve": [1, 2], "model": name})
    (folder / "config.yaml").write_text(SETTINGS)
    return run


def command(run, *flags):
    return [sys.executable, str(SCRIPT), "--config", str(run.parent / "config.yaml"), "--run-dir", str(run), *flags]


def start(run, *flags):
    return run_script(SCRIPT.name, run.parent / "config.yaml", run, *flags)


@pytest.fixture(scope="module")
def finished(run):
    done = subprocess.run(command(run), capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def outputs(run):
    return json.loads((run / "11_eval" / "manifest.json").read_text())["outputs_digest"]


def test_every_model_and_task_has_a_value_with_its_interval(run, finished):
    results = json.loads((run / "11_eval" / "results.json").read_text())
    assert list(results["models"]) == list(MODELS)
    sizes = {"python_choice": 10, "arithmetic": 3, "preference": 6, "heldout_docs": 5, "domain": 6}
    for model, tasks in results["models"].items():
        expected = {task: n for task, n in sizes.items() if f"{model}.{task}" != "init.arithmetic"}
        assert {task: next(iter(metrics.values()))["n"] for task, metrics in tasks.items()} == expected
        for metrics in tasks.values():
            for entry in metrics.values():
                assert entry["low"] <= entry["value"] <= entry["high"]
    assert set(results["comparisons"]) == {"pretrained-vs-init", "sft-vs-pretrained", "dpo-vs-sft", "lora-vs-dpo"}
    bits = {model: results["models"][model]["heldout_docs"]["bits_per_byte"]["value"] for model in MODELS}
    difference = results["comparisons"]["dpo-vs-sft"]["heldout_docs"]["bits_per_byte"]["difference"]
    assert difference == pytest.approx(bits["dpo"] - bits["sft"]) and len(set(bits.values())) == 5
    assert results["training"]["05_pretrain"] == {"loss": 2.0, "model": "pretrained"}
    assert results["prompts"]["pretrained"] == "plain text" and results["prompts"]["lora"] == "chat template"


def test_items_that_stand_in_the_training_text_are_named_and_scored_apart(run, finished):
    import pyarrow.parquet

    results = json.loads((run / "11_eval" / "results.json").read_text())
    found = results["contamination"]
    samples = pyarrow.parquet.read_table(run / "11_eval" / "samples.parquet").to_pylist()
    asked = {row["item"] for row in samples if row["task"] == "python_choice"}
    dirty = [f"q{line}" for line in DIRTY["python_choice"] if f"q{line}" in asked]
    assert found["python_choice"]["dirty"] == len(dirty) > 0 and found["python_choice"]["items"] == 10
    assert [entry["item"] for entry in found["python_choice"]["dirty_items"]] == dirty
    assert found["python_choice"]["in_training"] == ("q5" in dirty)
    assert found["python_choice"]["too_short"] == ("q1" in asked)
    assert found["heldout_docs"]["dirty_items"] == [
        {
            "item": "d0",
            "record": "eval/heldout_docs.jsonl:1",
            "documents": 3,
            "documents_in_training": 0,
            "example": "doc-1",
        }
    ]
    for model in MODELS:
        for group, is_dirty in (("clean", False), ("dirty", True)):
            entry = found["python_choice"]["scores"][model]["accuracy"][group]
            scores = [
                row["score"]
                for row in samples
                if (row["model"], row["task"]) == (model, "python_choice") and (row["item"] in dirty) == is_dirty
            ]
            assert (entry["value"], entry["n"]) == (pytest.approx(sum(scores) / len(scores)), len(scores))
            assert entry["low"] <= entry["value"] <= entry["high"]
        one = found["heldout_docs"]["scores"][model]["bits_per_byte"]["dirty"]
        assert one["n"] == 1 and one["low"] is None
    assert found["arithmetic"]["dirty"] == 0 and "scores" not in found["arithmetic"]
    assert found["domain"] == {"compared": False, "why": "stage 02 did not compare eval/domain.jsonl"}


def test_the_card_names_tasks_with_dirty_items_and_is_silent_about_the_others(finished):
    assert "heldout_docs: 1 of 5 items stand in the raw text, 0 in what was trained on" in finished.stdout
    assert "not compared with the training text (stage 02 did not compare eval/domain.jsonl): domain" in finished.stdout
    assert "arithmetic: 0 of" not in finished.stdout


def test_what_stage_02_found_is_not_joined_with_the_items_of_a_later_download(run, tmp_path):
    """The same records in another order: line 3 is no longer the item that stage 02 found in the text."""
    again = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("11_eval"))
    shutil.copyfile(run.parent / "config.yaml", tmp_path / "config.yaml")
    records = again / "01_download" / "eval" / "python_choice.jsonl"
    lines = records.read_text("utf-8").splitlines(keepends=True)
    records.write_text("".join([*lines[1:], lines[0]]), "utf-8")
    downloaded = Manifest.read(again / "01_download" / "manifest.json")
    finish_stage(again, "01_download", ledger=Ledger.from_json(downloaded.ledger))
    done = start(again, "--models", "[sft]", "--tasks", "[python_choice]", "--comparisons", "[]")
    assert done.returncode == 0, done.stdout + done.stderr
    why = "02_clean was made from another 01_download than the one that is there now"
    found = json.loads((again / "11_eval" / "results.json").read_text())["contamination"]
    assert found == {"python_choice": {"compared": False, "why": why}}
    assert f"not compared with the training text ({why}): python_choice" in done.stdout


def test_only_the_chosen_models_are_needed_and_only_their_making_anew_makes_the_evaluation_stale(run, tmp_path):
    """Stage 12 asks the manifest from which models the evaluation was made."""
    later = shutil.ignore_patterns("07_sft", "09_dpo", "10_lora", "11_eval")
    begun = shutil.copytree(run, tmp_path / "run", ignore=later)
    shutil.copyfile(run.parent / "config.yaml", tmp_path / "config.yaml")
    asked = ["--tasks", "[domain]", "--comparisons", "[pretrained-vs-init]", "--models"]
    done = start(begun, *asked, "[init, pretrained]")
    assert done.returncode == 0, done.stdout + done.stderr
    made = Manifest.read(begun / "11_eval" / "manifest.json")
    assert set(made.fingerprint["inputs"]) == {"01_download", "02_clean", "03_packed", "04_init", "05_pretrain"}
    finish_stage(begun, "10_lora", {"loss": 7.0})
    assert inputs_made_anew(made, begun) == []
    assert start(begun, *asked, "[init, pretrained]").stdout.strip() == "11_eval: up to date"
    lacking = start(begun, *asked, "[init, sft]")
    assert lacking.returncode == 2 and "07_sft/manifest.json is missing; make it with" in lacking.stderr, lacking.stderr


def test_the_catalogue_knows_which_stage_makes_which_model():
    needed = {entry: stage for stage, setting, entry in BY_NAME["11_eval"].needed_for if setting == "models"}
    assert needed == {name: source.stage for name, source in MODELS.items()}


def test_samples_are_one_table_with_one_row_per_model_task_and_item(run, finished):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(run / "11_eval" / "samples.parquet")
    assert table.num_rows == 5 * (10 + 3 + 6 + 5 + 6) - 3
    rows = set(zip(*(table[name].to_pylist() for name in ("model", "task", "metric", "item")), strict=True))
    assert len(rows) == table.num_rows


def test_the_ledger_accounts_for_what_was_not_asked(run, finished):
    ledger = json.loads((run / "11_eval" / "manifest.json").read_text())["ledger"]["eval"]
    assert ledger["python_choice"]["dropped"] == {"beyond the limit of its task": {"documents": 4}}
    assert ledger["unasked"]["dropped"] == {"no task asks it": {"documents": 1}}
    assert ledger["domain"] == {"in": {"documents": 6}, "kept": {"documents": 6}, "dropped": {}}


def test_the_card_says_how_models_were_prompted_and_what_was_sampled(finished):
    assert "prompted with plain text: init, pretrained" in finished.stdout
    assert "python_choice: a seeded sample of 10 of 14 items" in finished.stdout
    assert "Traceback" not in finished.stderr and "it/s" not in finished.stderr


def test_a_second_start_is_up_to_date_without_loading_torch(run, finished):
    again = subprocess.run(
        [sys.executable, "-X", "importtime", *command(run)[1:]], capture_output=True, text=True, check=False
    )
    assert again.stdout.strip() == "11_eval: up to date"
    loaded = {line.rsplit("|", 1)[-1].strip() for line in again.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "lm_eval", "datasets"}


def test_killed_in_the_middle_it_continues_to_identical_outputs(run, finished):
    expected = outputs(run)
    journal = run / "11_eval" / "work" / "journal.jsonl"
    killed = Launcher(SCRIPT.name).start(
        run.parent / "config.yaml",
        run,
        "--force",
        when=lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3,
    )
    assert killed.code == -signal.SIGKILL
    finished_units = journal.read_bytes().count(b"\n")
    assert 3 <= finished_units < 24
    # --force would start over; an outdated manifest makes the plain start continue the unfinished work instead
    (run / "11_eval" / "manifest.json").unlink()
    again = start(run)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{finished_units} of 24 model x task were finished before" in again.stdout
    assert outputs(run) == expected


def test_a_signal_inside_a_task_takes_effect_after_a_batch_and_no_batch_is_asked_twice(
    run, tmp_path, monkeypatch, capsys
):
    from pipeline_lib.evaluation.scoring import TokenScorer
    from pipeline_lib.stage import run_stage

    spec = importlib.util.spec_from_file_location("evaluate", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    asked, stop_after = [], None
    score, probe = TokenScorer._score_batch, TokenScorer._check_sharing

    def counted(self, rows):
        asked.append(len(rows))
        if len(asked) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, rows)

    def without_the_probes_of_a_new_scorer(self):
        monkeypatch.setattr(TokenScorer, "_score_batch", score)
        shares = probe(self)
        monkeypatch.setattr(TokenScorer, "_score_batch", counted)
        return shares

    monkeypatch.setattr(TokenScorer, "_check_sharing", without_the_probes_of_a_new_scorer)
    flags = ["--models", "[sft]", "--tasks", "[domain, python_choice]", "--comparisons", "[]", "--batch_tokens", "40"]
    arguments = ["--config", str(run.parent / "config.yaml"), *flags]

    def start_here(folder):
        asked.clear()
        with pytest.raises(SystemExit) as end:
            run_stage("11_eval", script.run, inputs=script.describe_inputs, argv=[*arguments, "--run-dir", str(folder)])
        return end.value.code

    whole, stopped = (
        shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("11_eval")) for name in ("whole", "stopped")
    )
    assert start_here(whole) == 0
    batches = asked.copy()
    stop_after = len(batches) - 2  # in the second task
    assert start_here(stopped) == 143 and asked == batches[:stop_after]
    capsys.readouterr()
    stop_after = None
    assert start_here(stopped) == 0 and asked == batches[-2:]
    out = capsys.readouterr().out
    assert "1 of 2 model x task were finished before" in out and "batches were finished before, continuing" in out
    assert outputs(stopped) == outputs(whole)


def test_plan_tells_the_cost_and_does_nothing(run, finished):
    before = outputs(run)
    done = start(run, "--plan", "--limit", "2")
    assert done.returncode == 0 and "8 items of each task on the model lora" in done.stdout, done.stdout + done.stderr
    assert "would run" in done.stdout and outputs(run) == before
    assert not (run / "11_eval" / "work").exists()


def test_a_plan_times_each_task_on_models_that_are_asked_it_with_as_many_examples(run, tmp_path):
    """`lora` comes last, is asked neither functions nor whole documents, and sees other examples than `pretrained`."""
    from pipeline_lib.packing.chat_template import CHAT_TEMPLATE

    again = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("11_eval"))
    shutil.copyfile(run.parent / "config.yaml", tmp_path / "config.yaml")
    (again / "07_sft" / "final" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    finish_stage(again, "07_sft", {"loss": 3.0})
    folder = shutil.copytree(PROJECT_ROOT / "configs" / "eval_tasks", tmp_path / "tasks")
    path = folder / "function_calling.yaml"
    path.write_text(path.read_text().replace("max_gen_toks: 256", "max_gen_toks: 16"))
    asked = ["--tasks_folder", str(folder), "--tasks", "[domain, function_calling]", "--comparisons", "[]"]
    skip = ["--skip", "[pretrained.function_calling, lora.function_calling]", "--models", "[pretrained, sft, lora]"]
    done = start(again, *asked, *skip, "--plan")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 and 48 items of each task on the model lora or sft" in done.stdout


@pytest.mark.parametrize(
    ("skip", "chat", "timed"),
    [
        ([], {}, {"lora": ["domain", "shots"]}),
        (["lora.domain"], {}, {"lora": ["shots"], "sft": ["domain"]}),
        ([], {"num_fewshot": 0}, {"pretrained": ["shots"], "lora": ["domain", "shots"]}),
        (["lora.shots", "sft.shots"], {"num_fewshot": 0}, {"pretrained": ["shots"], "lora": ["domain"]}),
        (["pretrained.domain", "sft.domain", "lora.domain"], {}, {"lora": ["shots"]}),
    ],
)
def test_the_models_on_which_tasks_are_timed(skip, chat, timed):
    from pipeline_lib.config.evaluate import EvaluateSettings
    from pipeline_lib.config.task_files import TaskFile, read_task_file
    from pipeline_lib.evaluation.probe import timed_models
    from pipeline_lib.evaluation.questionnaire import Questionnaire

    domain = read_task_file(PROJECT_ROOT / "configs" / "eval_tasks", "domain")
    shown = {"task": "shots", "num_fewshot": 2, "fewshot_split": "shown"}
    shots = TaskFile(**{**domain.model_dump(exclude_unset=True), **shown, "chat": {**chat, "doc_to_text": "q"}})
    settings = EvaluateSettings(models=["pretrained", "sft", "lora"], skip=skip, comparisons=[])
    questions = Questionnaire(settings, {"shots": shots, "domain": domain}, {}, {}, {}, Path())
    assert {model: sorted(tasks) for model, tasks in timed_models(questions).items()} == timed


def test_a_plan_whose_batches_do_not_fit_is_a_failure_with_what_to_do(run, monkeypatch):
    from pipeline_lib.config.run import RunConfig
    from pipeline_lib.evaluation.probe import estimate_cost
    from pipeline_lib.evaluation.questionnaire import Questionnaire
    from pipeline_lib.evaluation.scoring import TokenScorer
    from pipeline_lib.stage import Stage, StageFailure

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TokenScorer, "score", exhausted)
    settings = {"models": ["sft"], "tasks": ["domain"], "comparisons": [], "batch_tokens": 4096}
    stage = Stage(BY_NAME["11_eval"], RunConfig(evaluate=settings), run, 1, "")
    with pytest.raises(StageFailure, match=r"batches of 4,096 tokens \(domain\).*; lower evaluate\.batch_tokens"):
        estimate_cost(stage, Questionnaire.read(stage))


def test_help_loads_no_heavy_library():
    """How long it takes is a benchmark's business (benchmarks/start_time.py)."""
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    loaded = {line.rpartition("|")[2].strip() for line in words.splitlines()}
    assert "pydantic" in loaded  # the list is one
    assert not loaded & {"torch", "transformers", "lm_eval", "scipy", "numpy", "pyarrow", "datasets"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "[python_choise]"], "python_choise.yaml does not exist"),
        (["--limits", "{quiz: 3}"], "evaluate.limits names the task 'quiz'"),
        (["--skip", "[sft.quiz]"], "evaluate.skip names the task 'quiz'"),
        (["--models", "[sftt]"], "models"),
        (["--comparisons", "[sft-vs-sft]"], "is not first-vs-second"),
        (["--device", "cuda"], "no usable GPU"),
    ],
)
def test_bad_settings_exit_2_in_one_line(run, flags, message):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = start(run, *flags)
    assert done.returncode == 2 and message in done.stderr, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function: regex,": "function: regexx,"}, "filter_list 'number', step 'regexx': Unknown filter 'regexx'"),
        ({"group_select": "group_selekt"}, "step 'regex': .* unexpected keyword argument 'group_selekt'"),
        ({"{function: take_first}": "{function: take_first_k, k: 2}"}, "step 'take_first_k': Need at least 2 resp"),
        ({"      - {function: take_first}\n": ""}, r"filter_list 'number' makes \['\[invalid\]'\] of an answer"),
        ({"(answer | string)": "(answer | strin)"}, "No filter named 'strin'"),
        ({"split('####')": "splot('####')"}, "item s0: doc_to_target cannot be filled in: .*'splot'"),
        ({"  doc_to_text: question": "  doc_to_text: '{{question[6:]}}'"}, "item s0: doc_to_text is empty"),
    ],
)
def test_a_mistake_in_a_task_file_is_one_line_before_any_model_is_asked(run, tmp_path, changes, message):
    """The broken task is the last of two: no unit of the first one has been done."""
    folder = shutil.copytree(PROJECT_ROOT / "configs" / "eval_tasks", tmp_path / "tasks")
    text = (folder / "arithmetic.yaml").read_text("utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "arithmetic.yaml").write_text(text, "utf-8")
    asked = ["--models", "[sft]", "--tasks", "[domain, arithmetic]", "--comparisons", "[]"]
    done = start(run, *asked, "--tasks_folder", str(folder))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert re.search(rf"{folder / 'arithmetic.yaml'}: .*{message}", done.stderr), done.stderr
    assert not (run / "11_eval" / "work").exists()


def test_examples_in_prompts_are_told_and_none_of_them_is_asked(run, tmp_path):
    """Records e4 and e5 ask the same as the items a4 and a5."""
    again = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("11_eval"))
    shutil.copyfile(run.parent / "config.yaml", tmp_path / "config.yaml")
    records = again / "01_download" / "eval" / "shown.jsonl"
    records.write_text(records.read_text().replace("Give 4", "Return 4").replace("Give 5", "Return 5"))
    downloaded = Manifest.read(again / "01_download" / "manifest.json")
    finish_stage(again, "01_download", ledger=Ledger.from_json(downloaded.ledger))
    folder = shutil.copytree(PROJECT_ROOT / "configs" / "eval_tasks", tmp_path / "tasks")
    keys = "base: domain.yaml\ntask: shots\nnum_fewshot: 2\nfewshot_split: shown\nchat: {num_fewshot: 3}\n"
    (folder / "shots.yaml").write_text(keys)
    asked = ["--models", "[init, sft]", "--comparisons", "[sft-vs-init]", "--tasks_folder", str(folder), "--tasks"]
    done = start(again, *asked, "[shots]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shots: examples before each item: 2 in plain text and 3 in chat template (shown)" in done.stdout
    assert "shots: 2 examples ask the same as an item and are not shown: e4, e5" in done.stdout
    described = json.loads((again / "11_eval" / "results.json").read_text())["tasks"]["shots"]
    assert described["num_fewshot"] == {"plain text": 2, "chat template": 3}
    assert described["examples"] == {"of": "shown", "available": 5, "sampler": "default", "left_out": ["e4", "e5"]}
    ledger = json.loads((again / "11_eval" / "manifest.json").read_text())["ledger"]["eval"]
    assert ledger["shown"]["dropped"] == {"an example for prompts, not asked": {"documents": 5}}
    (folder / "shots.yaml").write_text(keys.replace("shown", "unasked"))
    done = start(again, *asked, "[shots]")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert "shots.yaml: task shots: example u lacks 'instruction'" in done.stderr
    (folder / "shots.yaml").write_text(keys.replace("shown", "gone"))
    done = start(again, *asked, "[shots]")
    assert done.returncode == 2 and "task shots: its fewshot_split 'gone' was not downloaded" in done.stderr


def test_function_calls_are_asked_through_the_chat_template_alone(run, tmp_path):
    from pipeline_lib.packing.chat_template import CHAT_TEMPLATE

    again = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("11_eval"))
    shutil.copyfile(run.parent / "config.yaml", tmp_path / "config.yaml")
    folder = shutil.copytree(PROJECT_ROOT / "configs" / "eval_tasks", tmp_path / "tasks")
    path = folder / "function_calling.yaml"
    path.write_text(path.read_text().replace("max_gen_toks: 256", "max_gen_toks: 16"))
    asked = ["--tasks_folder", str(folder), "--tasks", "[domain, function_calling]", "--comparisons", "[]", "--models"]
    for plan in ([], ["--plan"]):
        done = start(again, *asked, "[sft]", *plan)
        hidden = f"{path}: sft: task function_calling: item row-1: the chat template does not show the function 'clock'"
        assert done.returncode == 2 and hidden in done.stderr and done.stderr.count("\n") == 1, (
            done.stdout + done.stderr
        )
    assert not (again / "11_eval" / "work").exists()
    assert (again / "07_sft" / "final" / "chat_template.jinja").exists()
    (again / "07_sft" / "final" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    finish_stage(again, "07_sft", {"loss": 3.0})
    done = start(again, *asked, "[pretrained, sft]", "--skip", "[]")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert f"{path}: task function_calling: a chat template shows functions" in done.stderr
    done = start(again, *asked, "[pretrained, sft]", "--skip", "[init.function_calling, pretrained.function_calling]")
    assert done.returncode == 0, done.stdout + done.stderr
    models = json.loads((again / "11_eval" / "results.json").read_text())["models"]
    assert set(models["pretrained"]) == {"domain"} and set(models["sft"]) == {"domain", "function_calling"}
    assert set(models["sft"]["function_calling"]) == {"valid_format", "right_tool", "success"}
    assert {entry["n"] for entry in models["sft"]["function_calling"].values()} == {3}
    assert models["sft"]["function_calling"]["success"]["value"] == pytest.approx(2 / 3), "it calls nothing, ever"


def test_a_source_that_was_not_downloaded_is_named(run, tmp_path):
    folder = shutil.copytree(PROJECT_ROOT / "configs" / "eval_tasks", tmp_path / "tasks")
    (folder / "gone.yaml").write_text((folder / "heldout_docs.yaml").read_text().replace("heldout_docs", "gone"))
    done = start(run, "--tasks", "[gone]", "--tasks_folder", str(folder))
    assert done.returncode == 2 and "'gone' was not downloaded (evaluation sources: arithmetic" in done.stderr, (
        done.stderr
    )


def test_a_damaged_model_is_named_with_the_command_that_repairs_it(run, finished):
    path = run / "09_dpo" / "final" / "model.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        done = start(run, "--models", "[dpo]")
        assert done.returncode == 2 and "09_dpo" in done.stderr and "damaged" in done.stderr
    finally:
        path.write_bytes(whole)
