"""Stage 04 as a command: an ordinary Hugging Face directory, the same bytes for the same seed."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from packed_run import make_packed_run

from fork_launcher import run_script
from pipeline_lib.config.model import ModelSettings
from pipeline_lib.config.run import RunConfig
from pipeline_lib.models.initialise import build_model, save_model_directory
from pipeline_lib.models.shapes import resolve_shape
from pipeline_lib.models.tokenizer_source import read_tokenizer_source
from pipeline_lib.stage import Stage, StageInput, UserError
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.manifest import Manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    return make_packed_run(tmp_path_factory.mktemp("models"))


def digests(folder: Path) -> dict[str, str]:
    manifest = Manifest.read(folder / "manifest.json")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest.files}


def test_transformers_loads_model_and_tokenizer_and_generates(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made[1] / "04_init"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 400
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "bada"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt["input_ids"].shape[1]


def test_the_card_counts_the_parameters(made):
    manifest = Manifest.read(made[1] / "04_init" / "manifest.json")
    counts = manifest.result["parameters"]
    stored = json.loads((made[1] / "04_init" / "config.json").read_text())
    assert counts["total"] == 2 * 400 * 32 + counts["without_embedding"]
    assert stored["num_hidden_layers"] == manifest.result["shape"]["layers"] == 2


def test_the_same_seed_makes_the_same_bytes_and_another_seed_other_ones(made, tmp_path):
    config, run = made
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    expected = digests(run / "04_init")
    assert run_script("04_init_model.py", config, copy, "--force").returncode == 0
    assert digests(copy / "04_init") == expected
    done = run_script("04_init_model.py", config, copy, "--seed", "7")
    assert done.returncode == 0, done.stderr
    changed = {name for name, digest in digests(copy / "04_init").items() if digest != expected[name]}
    assert changed == {"model.safetensors"}


def test_the_tokenizer_is_whole_in_the_model_although_its_files_were_moved_while_the_model_was_made(made, tmp_path):
    shutil.copytree(made[1] / "03_packed", tmp_path / "03_packed")
    source = read_tokenizer_source(Stage(BY_NAME["04_init"], RunConfig(), tmp_path, 1, ""))
    (tmp_path / "03_packed").rename(tmp_path / "elsewhere")
    settings = ModelSettings(shape={"layers": 1, "width": 32, "heads": 2})
    model = build_model(resolve_shape(settings, source.vocabulary, source.context), settings, source.special, seed=0)
    folder = save_model_directory(model, source.files, tmp_path / "model")
    files = list((made[1] / "03_packed" / "tokenizer").iterdir())
    assert len(files) > 1 and all((folder / file.name).read_bytes() == file.read_bytes() for file in files)


@pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_text("{}")])
def test_a_tokenizer_that_changes_while_it_is_read_is_one_line_of_what_to_do(made, tmp_path, change):
    shutil.copytree(made[1] / "03_packed", tmp_path / "03_packed")
    packed = StageInput(tmp_path, "03_packed", " --config mine.yaml")
    files = packed.files("tokenizer/*")
    change(files[-1])  # after it was verified
    with pytest.raises(UserError) as refused:
        packed.contents("tokenizer/*")
    command = "python scripts/03_tokenize_and_pack.py --config mine.yaml"
    said = f"{files[-1]} was moved or made anew while it was read; wait for {command}, then start again"
    assert str(refused.value) == said


def test_an_impossible_shape_is_refused_in_one_line(made):
    config, run = made
    done = run_script("04_init_model.py", config, run, "--shape.heads", "5")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0 and "multiple of 5 heads" in done.stderr


def test_plan_tells_the_size_and_writes_nothing(made):
    config, run = made
    before = sorted(path for path in run.rglob("*"))
    done = run_script("04_init_model.py", config, run, "--plan", "--depth", "6", "--shape.layers", "6")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert sorted(path for path in run.rglob("*")) == before
