"""Stage 04 grows a model as a command: what the card tells, when it is made anew, and what is refused in one line."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from packed_run import CONFIG, make_packed_run

from fork_launcher import run_script
from pipeline_lib.models import growth_source
from pipeline_lib.models.growth_source import open_source
from pipeline_lib.stage import UserError, digests, file_digest
from pipeline_lib.stage.manifest import Manifest

LARGE = {"layers": 5, "ffn": 192}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The run of a small model with stages 02 to 04 finished."""
    return make_packed_run(tmp_path_factory.mktemp("small"))[1]


@pytest.fixture
def source(small, tmp_path) -> Path:
    """A model folder that a test may damage, outside any run."""
    (tmp_path / "source").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(small / "04_init" / name, tmp_path / "source" / name)
    return tmp_path / "source"


def start(small: Path, tmp_path: Path, *flags: str, grow=None, packed=None, **model):
    """Run stage 04 of a larger run that shares the packed cache; return the process and the stage's folder."""
    values = yaml.safe_load(CONFIG)
    values["packed"] = str(packed or small / "03_packed")
    values["model"] = {"shape": LARGE, **model, "grow": {"source": str(small / "04_init"), **(grow or {})}}
    config, run = tmp_path / "large.yaml", tmp_path / "large"
    config.write_text(yaml.safe_dump(values))
    run.mkdir(exist_ok=True)
    return run_script("04_init_model.py", config, run, *flags), run / "04_init"


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_transformers_loads_a_grown_model_with_the_logits_of_its_source(small, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done, folder = start(small, tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (AutoModelForCausalLM.from_pretrained(each).eval() for each in (small / "04_init", folder))
    ids = AutoTokenizer.from_pretrained(folder)("bada fiko, and so on", return_tensors="pt").input_ids
    assert (after.config.num_hidden_layers, after.config.intermediate_size, after.config.hidden_size) == (5, 192, 32)
    with torch.no_grad():
        assert torch.allclose(before(ids).logits, after(ids).logits, atol=1e-6)
    result = Manifest.read(folder / "manifest.json").result
    logits = result["logits"]
    assert logits["function"] == "preserved" and logits["compared_tokens"] > 100
    assert logits["largest_difference"] <= logits["allowed_difference"]
    assert result["parameters_copied"] + result["parameters_made"] == result["parameters"]["total"]
    for words in ("grown from", "2 -> 5 blocks (identity), ffn 128 -> 192 (zero)", "parameters copied", "preserved"):
        assert words in done.stdout


def test_the_same_bits_twice_and_made_anew_only_for_another_source(small, source, tmp_path):
    grow = {"source": str(source), "depth": "stack", "ffn": "copy", "ffn_noise": 0.1}
    shape = {"layers": 4, "ffn": 192}
    done, folder = start(small, tmp_path, grow=grow, shape=shape)
    assert done.returncode == 0, done.stderr
    assert Manifest.read(folder / "manifest.json").result["logits"]["function"] == "changed"
    first = digest(folder)
    assert "up to date" in start(small, tmp_path, grow=grow, shape=shape)[0].stdout
    assert start(small, tmp_path, "--force", grow=grow, shape=shape)[0].returncode == 0
    assert digest(folder) == first
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-3] ^= 8  # a mantissa bit of the last number
    (source / "model.safetensors").write_bytes(content)
    done, _ = start(small, tmp_path, grow=grow, shape=shape)
    assert "data changed: model.safetensors" in done.stdout and digest(folder) != first


def test_weights_are_rounded_like_the_source_in_another_number_format(small, tmp_path):
    done, folder = start(small, tmp_path, dtype="bfloat16", grow={"ffn": "copy"}, shape={"ffn": 400})
    assert done.returncode == 0, done.stderr
    assert Manifest.read(folder / "manifest.json").result["logits"]["function"] == "preserved"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert "stay copies: see grow.ffn_noise" in done.stdout


def test_weights_in_several_files_are_read(small, source, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    parts = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(weights))}
    for part in set(parts.values()):
        save_file({name: weights[name] for name in parts if parts[name] == part}, source / part)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    done, folder = start(small, tmp_path, grow={"source": str(source)})
    assert done.returncode == 0, done.stderr
    expected = digest(folder)
    assert start(small, tmp_path)[0].returncode == 0 and digest(folder) == expected


def test_plan_says_what_would_grow_and_writes_nothing(small, tmp_path):
    done, folder = start(small, tmp_path, "--plan")
    assert done.returncode == 0, done.stderr
    assert "2 -> 5 blocks (identity), ffn 128 -> 192 (zero)" in done.stdout and "grow.source" in done.stdout
    assert not folder.exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"shape": {"layers": 1}}, "has layers 2, this model 1; growth makes nothing smaller: set model.shape.layers"),
        ({"shape": {"ffn": 64}}, "has ffn 128, this model 64"),
        ({"shape": {"layers": 4, "width": 64, "heads": 2}}, "set model.shape.width to 32"),
        ({"shape": {"heads": 4}}, "set model.shape.heads to 2 (only depth, ffn and vocabulary grow)"),
        ({"shape": {"kv_heads": 1}}, "set model.shape.kv_heads to 2"),
        ({"rope_theta": 5e5}, "has rope_theta 10000.0, this model 500000.0; set model.rope_theta to 10000.0"),
        ({"tie_embeddings": True}, "set model.tie_embeddings to false"),
        ({"architecture": "qwen3"}, "is a llama model, this one qwen3; set model.architecture to llama"),
        ({"shape": {"layers": 3}, "grow": {"depth": "stack"}}, "no multiple of the source's 2"),
        ({"grow": {"source": "runs/no such run"}}, "runs/no such run is no folder"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--plan"]])
def test_what_cannot_grow_is_refused_in_one_line(small, tmp_path, model, words, flags):
    done, folder = start(small, tmp_path, *flags, **model)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0 and words in done.stderr
    assert not (folder / "manifest.json").exists()


def cut_in_half(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def other_norm(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))


def other_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"special": true', '"special": false'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_in_half, "damaged or no safetensors file"),
        (other_sizes, "model.layers.2.input_layernorm.weight is missing, expected (32,)"),
        (other_norm, "has rms_norm_eps 1e-05, this model 1e-06; no setting of this pipeline makes such a model"),
        (other_tokens, "another tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "is no model, it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), "describes a gpt2 model"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": "x"}'), "'x'"),
    ],
)
def test_a_source_that_is_no_whole_model_is_refused_in_one_line(small, source, tmp_path, damage, words):
    damage(source)
    done, folder = start(small, tmp_path, grow={"source": str(source)})
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.strip().count("\n") == 0 and words in done.stderr
    assert not (folder / "manifest.json").exists()


def test_damage_that_safetensors_cannot_see_is_found_by_the_manifest_of_the_stage(small, tmp_path):
    copy = tmp_path / "small"
    shutil.copytree(small, copy)
    file = copy / "04_init" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 8
    file.write_bytes(content)
    done, _ = start(small, tmp_path, grow={"source": str(copy / "04_init")})
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0
    assert f"{file} is damaged" in done.stderr and "04_init_model.py --force" in done.stderr


def test_damage_is_found_behind_a_link_to_the_folder_too(small, source, tmp_path):
    """The manifest lies above `final`, as that of stage 05 does, and not above the link."""
    stage = tmp_path / "runs" / "05_pretrain"
    shutil.copytree(source, stage / "final")
    manifest = Manifest.read(small / "04_init" / "manifest.json")
    manifest.files = {f"final/{name}": entry for name, entry in manifest.files.items()}
    manifest.write(stage / "manifest.json")
    (tmp_path / "latest").symlink_to(stage / "final")
    assert open_source(str(tmp_path / "latest")).digests(read_again=True)
    file = stage / "final" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 8
    file.write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        open_source(str(tmp_path / "latest")).digests()


def test_of_large_weights_that_no_manifest_knows_samples_are_read(source, monkeypatch):
    whole = open_source(str(source)).digests()
    assert whole["model.safetensors"] == file_digest(source / "model.safetensors")
    monkeypatch.setattr(growth_source, "file_digest", lambda path: pytest.fail("read whole"))
    assert open_source(str(source)).digests() == open_source(str(source)).digests(read_again=True) == whole
    monkeypatch.setattr(digests, "_WHOLE_DIGEST_BYTES", 10_000)
    monkeypatch.setattr(digests, "_SAMPLE_BYTES", 1_000)
    before = open_source(str(source)).digests()
    assert before["config.json"] == whole["config.json"] and before["model.safetensors"].startswith("samples of ")
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-3] ^= 8
    (source / "model.safetensors").write_bytes(content)
    assert open_source(str(source)).digests()["model.safetensors"] != before["model.safetensors"]


def test_a_folder_around_the_model_is_refused_with_the_model_in_it(small, tmp_path):
    done, _ = start(small, tmp_path, grow={"source": str(small)})
    assert done.returncode == 2 and f"it has no config.json; name {small / '04_init'}" in done.stderr


def test_a_preset_or_depth_of_the_base_gives_way_to_the_numbers_of_the_source(small, tmp_path):
    done, folder = start(small, tmp_path, depth=None, shape={"layers": 3})
    assert done.returncode == 0, done.stderr
    shape = Manifest.read(folder / "manifest.json").result["shape"]
    assert (shape["layers"], shape["width"], shape["ffn"]) == (3, 32, 128)


def test_a_run_does_not_grow_from_itself(small, tmp_path):
    done, folder = start(small, tmp_path)
    assert done.returncode == 0, done.stderr
    done, _ = start(small, tmp_path, grow={"source": str(folder)})
    assert done.returncode == 2 and "belongs to this run" in done.stderr


def test_rows_of_the_source_that_no_token_has_are_left_out(small, source, tmp_path):
    """Many models have a table rounded up to a multiple of 64 or more."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    padded = {name: torch.cat([weights[name], 100 + torch.rand(48, 32)]) for name in tables}
    save_file({**weights, **padded}, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 48}))
    done, folder = start(small, tmp_path, grow={"source": str(source)})
    assert done.returncode == 0, done.stderr
    assert "without 48 rows that belong to no token of it" in done.stdout and "preserved" in done.stdout
    expected = digest(folder)
    assert start(small, tmp_path)[0].returncode == 0 and digest(folder) == expected, "as without the padding"


def test_a_tokenizer_that_is_extended_gives_the_model_more_rows(small, tmp_path):
    import torch
    from safetensors.torch import load_file

    shutil.copytree(small / "03_packed" / "tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    added = {**tokenizer["added_tokens"][-1], "content": "<|new|>", "id": 400}
    file.write_text(json.dumps({**tokenizer, "added_tokens": [*tokenizer["added_tokens"], added]}))
    values = yaml.safe_load(CONFIG)
    values["pack"] |= {"tokenizer": str(tmp_path / "tokenizer")}
    config, run = tmp_path / "more.yaml", tmp_path / "more"
    config.write_text(yaml.safe_dump(values))
    shutil.copytree(small / "02_clean", run / "02_clean")
    done = run_script("03_tokenize_and_pack.py", config, run)
    assert done.returncode == 0, done.stderr
    done, folder = start(small, tmp_path, packed=run / "03_packed", grow={"vocabulary_noise": 0, "token_map": {400: 9}})
    assert done.returncode == 0, done.stderr
    assert "400 -> 401 ids" in done.stdout and "preserved" in done.stdout
    before, after = (load_file(each / "model.safetensors") for each in (small / "04_init", folder))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name], torch.cat([before[name], before[name][9:10]]))


@pytest.mark.slow
def test_a_trained_model_grown_starts_at_its_loss_and_trains_on(small, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG)
    shutil.copytree(small, tmp_path / "small")
    done = run_script("05_pretrain.py", config, tmp_path / "small")
    assert done.returncode == 0, done.stderr
    trained = Manifest.read(tmp_path / "small" / "05_pretrain" / "manifest.json").result
    done, folder = start(small, tmp_path, grow={"source": str(tmp_path / "small" / "05_pretrain" / "final")})
    assert done.returncode == 0, done.stderr
    done = run_script("05_pretrain.py", tmp_path / "large.yaml", tmp_path / "large")
    assert done.returncode == 0, done.stderr
    grown = Manifest.read(tmp_path / "large" / "05_pretrain" / "manifest.json").result
    assert grown["val_loss_before"] == pytest.approx(trained["val_loss_after"], rel=1e-6)
    assert grown["val_loss_after"] < trained["val_loss_after"] < 0.9 * trained["val_loss_before"]
    # Another source is another model for stage 05 too.
    done, _ = start(small, tmp_path)
    assert "data changed: model.safetensors" in done.stdout, done.stderr
    planned = run_script("05_pretrain.py", tmp_path / "large.yaml", tmp_path / "large", "--plan")
    assert "input changed: 04_init" in planned.stdout
