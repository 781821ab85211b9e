"""A configuration either means what it says or is refused with the place and the nearest key."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.config.base import PROJECT_ROOT, Section
from pipeline_lib.config.command_line import read_command_line
from pipeline_lib.config.load import _sections_in, merge, parse_value, read_layers
from pipeline_lib.config.patterns import IN_WORDS
from pipeline_lib.config.run import RunConfig
from pipeline_lib.config.schema import SCHEMA_PATH, schema_text
from pipeline_lib.config.task_files import TaskFile
from pipeline_lib.stage import UserError
from pipeline_lib.stage.catalog import STAGES

SCRIPTS = PROJECT_ROOT / "scripts"
CONFIGS = sorted((PROJECT_ROOT / "configs").glob("*.yaml"))


def sections() -> list[type[Section]]:
    """Every settings class that a RunConfig can contain, lists of sections included."""
    found: list[type[Section]] = [RunConfig]
    for section in found:
        for field in section.model_fields.values():
            found += [below for below in _sections_in(field.annotation) if below not in found]
    return found


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def read(path: Path, *flags: str, section: str = "pretrain"):
    return read_command_line(section, "test", ["--config", str(path), *flags])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path):
    options = read(path)
    assert options.run_folder.name == (options.config.run or path.stem)


def test_unknown_key_names_file_line_and_nearest_key(tmp_path: Path):
    path = write(tmp_path, "seed: 1\npretrain:\n  contxet: 64\n")
    with pytest.raises(UserError, match=r"run\.yaml:3: unknown key 'pretrain\.contxet'; did you mean 'context'"):
        read(path)


def test_a_key_that_is_near_to_none_is_told_which_there_are(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown key 'sft_data\.learning_rte'; valid keys: .*max_length"):
        read(write(tmp_path, "sft_data: {learning_rte: 1}\n"))


def test_unknown_section_names_the_nearest_section(tmp_path: Path):
    with pytest.raises(UserError, match=r":1: unknown key 'pretrian'; did you mean 'pretrain'"):
        read(write(tmp_path, "pretrian: {}\n"))


def test_wrong_type_names_file_line_and_value(tmp_path: Path):
    with pytest.raises(UserError, match=r"run\.yaml:2: seed: .*integer.*got 'many'"):
        read(write(tmp_path, "run: x\nseed: many\n"))


def test_a_name_that_is_not_allowed_is_told_in_words_what_a_name_may_hold(tmp_path: Path):
    text = "download:\n  sources:\n    - name: My Notes\n      kind: text\n      type: local\n      paths: [x]\n"
    with pytest.raises(UserError) as refused:
        read(write(tmp_path, text))
    words = "a name may hold lower-case letters, digits, '.', '_' and '-', and begins with a letter or digit"
    assert str(refused.value).endswith(f"run.yaml:3: download.sources.0.name: {words}, got 'My Notes'")


def test_every_pattern_of_a_setting_has_words():
    def patterns(schema: object) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(patterns, schema))
        if not isinstance(schema, dict):
            return set()
        own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
        return own.union(*map(patterns, schema.values()))

    assert patterns([RunConfig.model_json_schema(), TaskFile.model_json_schema()]) == set(IN_WORDS)


@pytest.mark.parametrize("value", ["true", '"7"'])
def test_what_only_looks_like_a_number_is_refused(tmp_path: Path, value: str):
    with pytest.raises(UserError, match=r"run\.yaml:1: seed: expected an integer, got"):
        read(write(tmp_path, f"seed: {value}\n"))
    with pytest.raises(UserError, match=r"run\.yaml:1: model\.init_std: expected a number, got"):
        read(write(tmp_path, f"model: {{init_std: {value}}}\n"))


def test_a_mistake_in_the_base_is_reported_in_the_base(tmp_path: Path):
    write(tmp_path, "threads: 1\nsede: 3\n", "below.yaml")
    with pytest.raises(UserError, match=r"below\.yaml:2: unknown key 'sede'; did you mean 'seed'"):
        read(write(tmp_path, "base: below.yaml\nrun: x\n"))


def test_base_is_overridden_key_by_key_and_lists_are_replaced(tmp_path: Path):
    write(tmp_path, "seed: 1\nthreads: 1\n", "below.yaml")
    options = read(write(tmp_path, "base: below.yaml\nseed: 2\n"))
    assert (options.config.seed, options.config.threads) == (2, 1)
    assert options.origins == {"seed": "run.yaml", "threads": "below.yaml"}
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}


def test_configurations_based_on_each_other_are_refused(tmp_path: Path):
    write(tmp_path, "base: run.yaml\n", "below.yaml")
    with pytest.raises(UserError, match="based on each other"):
        read(write(tmp_path, "base: below.yaml\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", r"run\.yaml:2: not valid YAML"),
        ("seed: 1\nseed: 2\n", r"run\.yaml:2: .*'seed' is given twice"),
        ("- 1\n", "expected `key: value` lines"),
        ("base: 3\n", "`base:` must be the path"),
        ("[1, 2]: 3\n", r"run\.yaml:1: .*a key must be one word"),
        ("base: none.yaml\n", r"none\.yaml does not exist; correct `base:` in .*run\.yaml"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        read_layers(write(tmp_path, text))


def test_missing_configuration_says_what_to_pass(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist; pass --config"):
        read(tmp_path / "none.yaml")


def test_flags_override_the_yaml_and_only_what_was_typed(tmp_path: Path):
    path = write(tmp_path, "pretrain: {}\nseed: 9\n")
    section = RunConfig.model_fields["pretrain"].annotation
    number = next(name for name, field in section.model_fields.items() if field.annotation in (int, int | None))
    options = read(path, f"--{number.replace('_', '-')}", "17")
    assert getattr(options.config.pretrain, number) == 17
    assert options.origins[f"pretrain.{number}"] == f"--{number}"
    assert options.config.seed == 9


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--fp8", "--no-compile"], ("on", "off")),
        (["--no-fp8", "--compile", "auto"], ("off", "auto")),
        (["--fp8", "emulate"], ("emulate", "auto")),
        ([], ("auto", "auto")),
    ],
)
def test_a_choice_with_on_and_off_is_a_switch_too(tmp_path: Path, flags, expected):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\n")
    settings = read_command_line("pretrain", "", ["--config", str(path), *flags]).config.pretrain
    assert (settings.fp8, settings.compile) == expected


@pytest.mark.parametrize("flags", [[], ["--toxicity.backend", "off"]])
def test_off_is_a_backend_although_yaml_calls_it_a_boolean(tmp_path: Path, flags):
    path = write(tmp_path, "clean:\n  toxicity: {backend: off}\n")
    assert read_command_line("clean", "", ["--config", str(path), *flags]).config.clean.toxicity.backend == "off"
    with pytest.raises(UserError, match=r"run\.yaml:2: clean\.toxicity\.backend: input should be 'off', 'auto'"):
        read(write(tmp_path, "clean:\n  toxicity: {backend: on}\n"))


def test_unknown_flag_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown flag --froce; did you mean --force\?"):
        read(write(tmp_path, ""), "--froce")


def test_a_flag_without_its_section_names_the_whole_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown flag --lr; did you mean --optimizer\.lr\?"):
        read_command_line("pretrain", "", ["--config", str(write(tmp_path, "")), "--lr", "0.1"])


def test_every_value_of_a_mapping_says_which_flag_it_came_from(tmp_path: Path):
    flags = ["--config", str(write(tmp_path, "")), "--weights", "{a: 2.0, b: 1.5}"]
    origins = read_command_line("pack", "", flags).origins
    assert (origins["pack.weights.a"], origins["pack.weights.b"]) == ("--weights", "--weights")


def test_a_flag_that_is_near_to_none_is_not_guessed(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown flag --bogus; .* --help lists the flags"):
        read(write(tmp_path, ""), "--bogus")


def test_a_preset_or_depth_sets_the_whole_shape_and_what_is_laid_over_it_wins(tmp_path: Path):
    write(tmp_path, "model: {shape: {layers: 4, width: 128}, tie_embeddings: true}\n", "below.yaml")
    options = read(tmp_path / "below.yaml", "--preset", "125m", "--shape.heads", "6", section="model")
    assert options.config.model.shape.model_dump(exclude_none=True) == {"heads": 6}
    assert options.config.model.tie_embeddings
    assert set(options.origins) == {"model.preset", "model.shape.heads", "model.tie_embeddings"}
    above = write(tmp_path, "base: below.yaml\nmodel: {depth: 8}\n", "above.yaml")
    assert read(above).config.model.shape.layers is None
    assert read(above, "--preset", "1b", section="model").config.model.depth is None
    with pytest.raises(UserError, match="give one of them"):
        read(above, "--preset", "1b", "--depth", "8", section="model")


def test_the_flags_of_the_same_work_are_spelled_so_that_they_read_back(tmp_path: Path):
    path = write(tmp_path, "")
    flags = ["--optimizer.lr", "3e-4", "--no-compile", "--seed", "7", "--run-dir", str(tmp_path / "a run")]
    options = read(path, *flags)
    again = read_command_line("pretrain", "test", shlex.split(options.arguments + options.own_arguments))
    assert again.config == options.config and again.run_folder == options.run_folder
    assert "--seed 7" in options.arguments and "--optimizer.lr" not in options.arguments


@pytest.mark.parametrize("spec", STAGES, ids=lambda spec: spec.name)
def test_stages_that_scale_out_take_the_engine_as_a_flag_and_the_others_refuse_it(tmp_path: Path, spec):
    path = write(tmp_path, "scale_out: {tasks: 5}\n")
    flags = ["--engine", "slurm", "--partition", "cpu", "--time", "4:00:00", "--sbatch-options", "{account: corpora}"]
    arguments = ["--config", str(path), *flags]
    if spec.name not in ("01_download", "02_clean"):
        assert not spec.scales_out
        with pytest.raises(UserError, match="unknown flag --engine"):
            read_command_line(spec.section, "test", arguments, scales_out=spec.scales_out)
        return
    options = read_command_line(spec.section, "test", arguments, scales_out=spec.scales_out)
    chosen = options.config.scale_out
    assert (chosen.engine, chosen.tasks, chosen.time) == ("slurm", 5, "4:00:00")
    assert chosen.sbatch_options == {"account": "corpora"}
    assert options.origins["scale_out.engine"] == "--engine" and options.origins["scale_out.tasks"] == path.name
    again = shlex.split(options.arguments + options.own_arguments)
    assert read_command_line(spec.section, "test", again, scales_out=True).config == options.config


@given(st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.none()))
def test_command_line_values_read_as_yaml(value):
    assert parse_value(json.dumps(value)) == value


def test_scientific_notation_is_a_number():
    assert parse_value("3e-4") == 3e-4 and parse_value("1e9") == 1e9


def test_every_field_says_what_it_is():
    silent = [
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if not (field.description or "").strip().endswith(".")
    ]
    assert not silent, f"fields without a one-sentence docstring: {silent}"


def test_the_schema_in_the_repository_is_the_schema_of_the_code():
    assert SCHEMA_PATH.read_text() == schema_text(), "run `make schema`"


def test_a_python_without_the_packages_is_told_what_to_type():
    bare = [sys.executable, "-I", "-S"]  # without site-packages
    script = str(SCRIPTS / "12_check_gates.py")
    code = f"import runpy, sys; sys.path.insert(0, {str(SCRIPTS)!r}); runpy.run_path({script!r}, run_name='__main__')"
    done = subprocess.run([*bare, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "source .venv/bin/activate" in done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_an_editor_that_follows_the_schema_accepts_every_shipped_configuration(path: Path):
    class Yaml12(yaml.SafeLoader):  # editors read YAML 1.2, in which `off` is a word
        pass

    Yaml12.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    schema = json.loads(SCHEMA_PATH.read_text())
    jsonschema.validate(yaml.load(text, Yaml12), schema)  # noqa: S506 a SafeLoader subclass
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"pretrain": {"tokns": 1}}, schema)


@pytest.mark.parametrize("spec", STAGES, ids=lambda spec: spec.script)
def test_help_is_fast_light_and_complete(spec, tmp_path: Path):
    """No heavy library is loaded for --help, the script runs from any folder, and every flag is documented."""
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        f"sys.argv = [{spec.script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPTS / spec.script)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code in (0, None), end.code\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'lm_eval', 'datasets', 'pyarrow', 'numba', 'numpy'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout, done.stdout[-200:]
    assert "--plan" in done.stdout and "--force" in done.stdout
    assert time.monotonic() - started < 30  # a hang is a failure; speed itself is measured by benchmarks/start_time.py
