"""A run with a tiny model whose stages 01, 03 and 05 are finished, and a way to run a script in this process."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from pipeline_lib.config.run import RunConfig
from pipeline_lib.packing.chat_template import CHAT_TEMPLATE
from pipeline_lib.stage import Ledger, run_stage
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.stage.stage import describe_files

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
VERBS = ["open", "close", "read", "write", "sort", "merge", "split", "count", "copy", "hash"]
NOUNS = ["file", "list", "tree", "queue", "table", "socket", "string", "graph"]

CONFIG = """\
threads: 1
sft_data: {max_length: 96, val_fraction: 0.1}
reasoning_data: {max_length: 96, val_fraction: 0.1}
dpo_data: {max_length: 96, val_fraction: 0.1}
sft: {max_length: 96, learning_rate: 5e-3, epochs: 2, micro_batch: 16, accumulation: 2, checkpoint_steps: 2}
dpo: {max_length: 96, learning_rate: 1e-3, epochs: 2, micro_batch: 16, checkpoint_steps: 2}
lora: {max_length: 96, learning_rate: 1e-2, epochs: 2, micro_batch: 16, checkpoint_steps: 2, dropout: 0.1, rank: 4}
"""


def chat_records() -> list[dict]:
    """120 alpaca records with 8 that must be dropped for 4 reasons."""
    good = [
        {"instruction": f"What does `{verb}_{noun}` do?", "input": "", "output": f"It can {verb} the {noun}."}
        for verb in VERBS
        for noun in NOUNS
    ]
    bad = [
        *good[:3],
        {"instruction": "a", "output": ""},
        {"instruction": "b"},
        {"instruction": "c", "output": "word " * 200},
        {"instruction": "Say <|im_end|>", "output": "no"},
    ]
    return [*good[:40], *bad, *good[40:]]


def arithmetic_records() -> list[dict]:
    """GSM8K records."""
    return [
        {"question": f"What is {a} plus {b}?", "answer": f"{a}+{b} = <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}
        for a in range(2, 8)
        for b in range(2, 7)
    ]


def preference_records() -> list[dict]:
    """80 pairs, and one each that is identical, empty on one side, and identical after truncation."""

    def turn(role: str, content: str) -> list[dict]:
        return [{"role": role, "content": content}]

    good = [
        {
            "prompt": turn("user", f"What does `{verb}_{noun}` do?"),
            "chosen": turn("assistant", f"It can {verb} the {noun}."),
            "rejected": turn("assistant", f"Perhaps some {noun}, who knows."),
        }
        for verb in VERBS
        for noun in NOUNS
    ]
    same = turn("assistant", "same")
    long = "word " * 300
    longer = {side: turn("assistant", long + side) for side in ("chosen", "rejected")}
    return [
        *good,
        {"prompt": turn("user", "a"), "chosen": same, "rejected": same},
        {"prompt": turn("user", "b"), "chosen": same, "rejected": turn("assistant", " ")},
        {"prompt": turn("user", "c"), **longer},
        {"prompt": turn("user", long), "chosen": turn("assistant", "x"), "rejected": turn("assistant", "y")},
    ]


def domain_records() -> list[dict]:
    """Alpaca records of another kind than the chat's."""
    return [
        {"instruction": f"def {verb}_{noun}(x)", "input": "", "output": f"{verb.title()} one {noun} in place."}
        for verb in VERBS
        for noun in NOUNS[:6]
    ]


SOURCES = [
    ("chat", "sft", "alpaca", chat_records()),
    ("arithmetic", "reasoning", "gsm8k", arithmetic_records()),
    ("pairs", "preference", "preference", preference_records()),
    ("signatures", "domain", "alpaca", domain_records()),
]


def finish(run: Path, name: str, ledger: Ledger | None = None) -> None:
    """Give the folder of a stage the manifest that makes it count as finished."""
    folder = run / name
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            files.update(describe_files(path, path.name))
    settings = getattr(RunConfig(), BY_NAME[name].section).model_dump(mode="json")
    fingerprint = {"settings": settings, "inputs": {}, "data": {}, "code": {}, "seed": 0}
    kept = (ledger or Ledger()).to_json()
    Manifest(name, fingerprint, files, kept, {}, [], 0).write(folder / MANIFEST)


def write_sources(run: Path, sources: list[tuple[str, str, str, list]]) -> None:
    """Write a finished stage 01 with these (name, kind, format, records)."""
    folder = run / "01_download"
    shutil.rmtree(folder, ignore_errors=True)
    entries, ledger = [], Ledger()
    for name, kind, style, records in sources:
        path = folder / kind / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
        entries.append({"name": name, "kind": kind, "format": style, "license": "", "files": [f"{kind}/{name}.jsonl"]})
        ledger.enter(kind, name, len(records))
        ledger.keep(kind, name, len(records))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sources.json").write_text(json.dumps({"sources": entries}))
    finish(run, "01_download", ledger)


def write_tokenizer(folder: Path) -> None:
    """Train a byte-level tokenizer of 400 ids on the records and save it with the pipeline's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((json.dumps(record) for *_, records in SOURCES for record in records), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[1], additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def write_model(folder: Path, tokenizer: Path) -> None:
    """Save a random Llama of about 40 thousand parameters with the tokenizer's files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=96, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copyfile(path, folder / path.name)


def run_script(script: str, run: Path, *flags: str) -> int:
    """Run a numbered script in this process, as its command line would; return the exit code."""
    from pipeline_lib.config.base import PROJECT_ROOT

    path = PROJECT_ROOT / "scripts" / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name = next(stage.name for stage in BY_NAME.values() if stage.script == script)
    config = run / "run.yaml"
    with pytest.raises(SystemExit) as end:
        run_stage(
            name, module.run, estimate=module.estimate, argv=["--config", str(config), "--run-dir", str(run), *flags]
        )
    return end.value.code


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 01, 03 and 05 finished by hand, 06 and 08 by their scripts. Copy before changing it."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    run.mkdir()
    (run / "run.yaml").write_text(CONFIG)
    write_sources(run, SOURCES)
    write_tokenizer(run / "03_packed" / "tokenizer")
    finish(run, "03_packed")
    write_model(run / "05_pretrain" / "final", run / "03_packed" / "tokenizer")
    finish(run, "05_pretrain")
    for script in ("06_prepare_sft_data.py", "06_prepare_reasoning_data.py", "08_prepare_dpo_data.py"):
        assert run_script(script, run) == 0
    return run


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run` that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def tokenizer(tiny_run: Path):
    """The tokenizer of `tiny_run`."""
    from pipeline_lib.post_training.chat_tokens import load_chat_tokenizer

    return load_chat_tokenizer(tiny_run / "03_packed" / "tokenizer")


@pytest.fixture(scope="session")
def helpers():
    """The functions above, for tests in other files."""
    from types import SimpleNamespace

    return SimpleNamespace(run_script=run_script, write_sources=write_sources, finish=finish, sources=SOURCES)


@pytest.fixture(scope="session")
def aligned_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_run` with stages 07 and 09 finished. Copy before changing it."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("aligned") / "run"))
    assert run_script("07_sft.py", run) == 0
    assert run_script("09_dpo.py", run) == 0
    return run
