"""Stage 10: low-rank adapters (LoRA, arXiv 2106.09685; 4-bit: QLoRA, arXiv 2305.14314) on a domain, then merged.

Beside each chosen linear layer W stands a product B A of rank r; only A and B are trained, and at the end
W + alpha / r * B A replaces W. With quantization "4bit" the frozen W is held in NF4 while training. What was trained
is then the adapter on the *rounded* W, so the merge adds to the rounded weights written out in full precision; adding
to the original ones would give a model that nobody has trained. Either way merged and adapted logits are compared.

Traps: TRL casts the adapters of a 4-bit model to bfloat16, in which updates below 1/256 of a weight vanish; they are
put back to float32. bitsandbytes repacks 4-bit weights for fast inference on CPUs with AVX512-BF16, which changes the
numbers between training and evaluation and refuses widths that are no multiple of 32; it is told not to.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline_lib.config.lora import LoraSettings
from pipeline_lib.stage import Stage, StageFailure, UserError

from .batch_order import epoch_order
from .chat_tokens import end_of_turn_id, load_chat_tokenizer
from .data_kinds import DOMAIN
from .examples import Examples, account_for_training, collect, conversation_rows, set_aside
from .format_advice import Refusals
from .prepared_data import account, checked_batches, sorted_out
from .resumable_trainer import METRICS
from .supervised import ConversationTrainer, examples_read, make_trainer
from .training_setup import load_model, matmul_dtype, save_model
from .validations import check_held_out

MERGE_TOLERANCE = 1e-4
"""Largest difference between merged and adapted logits, relative to the largest logit (float32 rounds at 1e-7)."""

BASE = "09_dpo"


# -- data ----------------------------------------------------------------------------------------------------------


def domain_examples(stage: Stage, tokenizer: PreTrainedTokenizerBase) -> tuple[Examples, Examples]:
    """Return (train, held-out) examples of the domain sources, every other record accounted for.

    Raises StageFailure when none is left to train on.
    """
    sides: dict[str, list[dict]] = {"train": [], "val": []}
    settings = stage.settings
    batches = checked_batches(stage, DOMAIN, tokenizer)
    refusals = Refusals()
    rows = sorted_out(batches, settings.val_fraction, settings.val_examples, stage.seed)
    for side, row in refusals.watch(rows):
        if side == "dropped":
            account(stage.ledger, "domain", row)
        else:
            sides[side].append({"source": row["source"], **json.loads(row["record"])})
    refusals.check(stage, DOMAIN.kind, DOMAIN.handlers, len(sides["train"]))
    tokenised = (conversation_rows(sides[side], tokenizer, settings.max_length) for side in ("train", "val"))
    train, val = (collect(rows, conversation_rows, stage.ledger, "domain") for rows in tokenised)
    set_aside(stage.ledger, val)
    return train, val


def general_examples(stage: Stage, tokenizer: PreTrainedTokenizerBase, domain: int) -> Examples:
    """Return a random part of the instruction data, such that it is `general_share` of the mixture with `domain`."""
    share = stage.settings.general_share
    instructions = stage.input("06_sft_data").file("train.parquet")
    table = parquet.read_table(instructions, columns=["source", "messages", "tools"])
    wanted = round(domain * share / (1 - share))
    order = epoch_order([1] * len(table), 1, by_length=False, seed=stage.seed, epoch=0)
    if wanted > len(table):
        stage.note(f"the general share is smaller than asked: {len(table):,} instead of {wanted:,} examples")
    chosen, beyond = (pyarrow.array(part, pyarrow.int64()) for part in (order[:wanted], order[wanted:]))
    for source in table["source"].take(beyond).to_pylist():
        stage.ledger.enter("general", source)
        stage.ledger.drop("general", source, "beyond general_share")
    rows = conversation_rows(table.take(chosen).to_pylist(), tokenizer, stage.settings.max_length)
    return collect(rows, conversation_rows, stage.ledger, "general")


# -- model ---------------------------------------------------------------------------------------------------------


def load_frozen(folder: Path, settings: LoraSettings, dtype: str) -> PreTrainedModel:
    """Load the base model, its linear layers in NF4 when the settings say so; `dtype` is that of their products."""
    if settings.quantization == "none":
        return load_model(folder)
    import bitsandbytes
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    model = load_model(folder, quantization_config=quantization)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def adapter_config(model: PreTrainedModel, settings: LoraSettings) -> LoraConfig:
    """Return PEFT's configuration; raise UserError for a target module that the model does not have."""
    head = model.get_output_embeddings()  # which TRL does not train with an adapter
    modules = [(name, module) for name, module in model.named_modules() if module is not head]
    linear = {name.rpartition(".")[2] for name, module in modules if isinstance(module, torch.nn.Linear)}
    if strange := sorted(set(settings.target_modules) - linear):
        known = ", ".join(sorted(linear))
        raise UserError(f"lora.target_modules: the model has no linear layer {strange[0]!r}; it has {known}")
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )


def load_adapted(folder: Path, settings: LoraSettings, dtype: str) -> PeftModel:
    """Load the base model as `load_frozen` does, with new adapters in float32, its only trainable parameters."""
    model = load_frozen(folder, settings, dtype)
    return get_peft_model(model, adapter_config(model, settings))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json, the same bytes in every run and run folder."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form with nothing filled in
    path = folder / "adapter_config.json"
    config = json.loads(path.read_bytes())
    config["target_modules"] = sorted(config["target_modules"])  # a set, in the order of salted hashes
    config["base_model_name_or_path"] = f"../../{BASE}/final"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def merge(base: Path, adapter: Path, settings: LoraSettings) -> tuple[PreTrainedModel, float]:
    """Return the plain model with the adapter added, and its largest logit difference to base plus adapter.

    Both sides are read from disk, so the saved adapter is what is checked. Raises StageFailure when they differ by
    more than MERGE_TOLERANCE.
    """
    frozen = load_frozen(base, settings, "float32")
    probe = torch.randint(frozen.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    expected = _logits(PeftModel.from_pretrained(frozen, adapter), probe)
    del frozen
    plain = load_frozen(base, settings, "float32")
    if settings.quantization == "4bit":
        plain = plain.dequantize(dtype=torch.float32)
    merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    difference = (_logits(merged, probe) - expected).abs().max().item()
    if not difference <= MERGE_TOLERANCE * max(1.0, expected.abs().max().item()):
        raise StageFailure(f"merged and adapted logits differ by {difference:.3g}; merged/ was not written")
    return merged, difference


def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids.to(model.device)).logits.float().cpu()


# -- the stage -----------------------------------------------------------------------------------------------------


def adapt(stage: Stage) -> None:
    """Run stage 10: domain and general examples, measure, train, measure, save adapter/, merge, save merged/."""
    source = stage.input(BASE).folder("final")
    tokenizer = load_chat_tokenizer(source)
    domain, val = domain_examples(stage, tokenizer)
    general = general_examples(stage, tokenizer, len(domain))
    train = domain + general
    account_for_training(stage.ledger, train, examples_read(train, stage))
    check_held_out(stage, len(val))
    if not stage.finished("adapter"):
        _train(stage, source, tokenizer, train, val)
    if not stage.finished("merged"):
        with stage.unit("merged") as unit:
            merged, difference = merge(source, stage.work / "adapter", stage.settings)
            unit.result = {"merge_difference": difference}
            save_model(merged, source, unit.path("merged"), end_of_turn_id(tokenizer))
    stage.result = {
        "domain_examples": len(domain),
        "general_examples": len(general),
        "before": stage.unit_result("before"),
        **stage.unit_result("adapter"),
        **stage.unit_result("merged"),
    }
    stage.adopt(METRICS)


def _train(stage: Stage, source: Path, tokenizer: PreTrainedTokenizerBase, train: Examples, val: Examples) -> None:
    model = load_frozen(source, stage.settings, matmul_dtype(stage.settings, stage))
    trainer = make_trainer(stage, model, tokenizer, train, peft_config=adapter_config(model, stage.settings))
    _adapters_in_float32(trainer)
    if not stage.finished("before"):
        with stage.unit("before") as unit:
            unit.result = trainer.evaluate_tokens(val)
    trainer.train_resumably(lambda: trainer.evaluate_tokens(val))
    with stage.unit("adapter") as unit:
        trainable = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
        unit.result = {
            "steps": trainer.args.max_steps,
            "trainable_parameters": trainable,
            **trainer.conclude(),
        }
        save_adapter(trainer.model, unit.path("adapter"))


def _adapters_in_float32(trainer: ConversationTrainer) -> None:
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
