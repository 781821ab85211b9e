"""Stage 07: supervised fine-tuning on conversations, the loss on the assistant's tokens only (TRL's SFTTrainer)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from pipeline_lib.stage import Stage, StageFailure

from .batch_order import EpochOrder, epoch_order
from .chat_tokens import end_of_turn_id, load_chat_tokenizer
from .examples import Examples, account_for_training, conversation_rows, read_examples, set_aside
from .resumable_trainer import METRICS, ResumableTrainer
from .training_setup import check_context, horizon, load_model, save_model, sequences_read, trainer_arguments
from .validations import LossDiverged, check_held_out

_NUMBER = "example"
_FLOWS = {"06_sft_data": "sft", "06_reasoning_data": "reasoning"}


class ConversationTrainer(ResumableTrainer, SFTTrainer):
    """SFTTrainer on examples that are already tokenised, resumable."""

    def evaluate_tokens(self, examples: Examples) -> dict[str, float]:
        """Return the loss of assistant tokens (nats) and the share predicted first, on held-out examples.

        Both are sums over the tokens of all examples divided by their number. TRL takes the mean over micro-batches of
        the mean in each, which changes with the micro-batch. Where memory runs out batches are done in pieces. Raises
        StageInterrupted between batches when a signal arrived, LossDiverged, and StageFailure when not even one example
        fits into memory.
        """
        if not len(examples):
            return {}
        size, dataset = self.args.per_device_eval_batch_size, examples.dataset()
        lengths, pieces = examples.lengths, self.pieces_that_fit("held-out examples", "example")
        order = epoch_order(lengths, size, by_length=True, seed=0, epoch=0)

        def score(indices: Sequence[int]) -> tuple[float, int, int]:
            inputs = self._prepare_inputs(self.data_collator([dataset[index] for index in indices]))
            with torch.no_grad(), self.accelerator.autocast():
                outputs = self.model(**inputs, use_cache=False, fused_lm_head=True)
            # In double precision, so that the order of the sum does not show in the figures.
            loss = -outputs.log_probs.double().sum().item()
            return loss, int(outputs.is_top1.sum()), int(outputs.label_mask.sum())

        total, first, tokens = 0.0, 0, 0
        self.model.eval()
        with self.stage.progress(len(order), "held-out examples", "examples") as bar:
            for start in range(0, len(order), size):
                indices = order[start : start + size]
                for loss, hits, scored in pieces.run(score, indices, [lengths[index] for index in indices]):
                    total, first, tokens = total + loss, first + hits, tokens + scored
                bar.advance(len(indices))
                self.between_batches()
        loss = total / tokens
        if not math.isfinite(loss):
            raise LossDiverged(f"the held-out loss is {loss}; lower learning_rate")
        return {"val_loss": loss, "val_token_accuracy": first / tokens}


def make_trainer(
    stage: Stage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Examples,
    **options: Any,
) -> ConversationTrainer:
    """Return a trainer on tokenised conversations; raise StageFailure when there are none.

    With batching "pack", TRL puts several whole conversations into each sequence and restarts the positions at their
    borders, from which transformers derives an attention mask that keeps them apart.
    """
    settings = stage.settings
    check_context(model, settings, stage.spec.section)
    if not len(train):
        raise StageFailure(f"no conversation is left to train on: all are longer than {settings.max_length} tokens")
    if settings.batching == "pack":
        train, _ = pack(train, settings.max_length)
    order = EpochOrder(train.lengths, settings.micro_batch, settings.batching == "length", stage.seed)
    arguments = SFTConfig(
        **trainer_arguments(stage, settings, horizon(len(train), settings).steps),
        packing=settings.batching == "pack",
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return ConversationTrainer(
        model,
        args=arguments,
        train_dataset=train.dataset(),
        processing_class=tokenizer,
        stage=stage,
        order=order,
        **options,
    )


def pack(examples: Examples, length: int) -> tuple[Examples, list[list[int]]]:
    """Put whole examples into sequences of at most `length` tokens, best fit decreasing; and say which are in each."""
    from trl.data_utils import pack_dataset

    ids = examples.table["input_ids"].combine_chunks()
    numbers = numpy.repeat(numpy.arange(len(examples), dtype=numpy.int32), examples.lengths)
    table = examples.table.append_column(_NUMBER, pyarrow.ListArray.from_arrays(ids.offsets, numbers))
    packed = pack_dataset(Examples(table, examples.lengths).dataset(), length, "bfd").with_format("arrow")[:]
    members = [list(dict.fromkeys(sequence)) for sequence in packed[_NUMBER].to_pylist()]
    lengths = [sum(parts) for parts in packed["seq_lengths"].to_pylist()]
    return Examples(packed.drop_columns([_NUMBER]), lengths), members


def examples_read(train: Examples, stage: Stage) -> list[int]:
    """Return the indices of the examples that training reads at least once."""
    if stage.settings.batching != "pack":
        return sequences_read(train.lengths, stage.settings, stage.seed)
    packed, members = pack(train, stage.settings.max_length)
    places = sequences_read(packed.lengths, stage.settings, stage.seed)
    return [example for place in places for example in members[place]]


def fine_tune(stage: Stage) -> None:
    """Run stage 07: measure, train, measure, save final/."""
    source = stage.input("05_pretrain").folder("final")
    tokenizer = load_chat_tokenizer(source)
    train = _read(stage, tokenizer, "train.parquet")
    val = _read(stage, tokenizer, "val.parquet")
    set_aside(stage.ledger, val)
    trainer = make_trainer(stage, load_model(source), tokenizer, train)
    account_for_training(stage.ledger, train, examples_read(train, stage))
    check_held_out(stage, len(val))
    train_and_measure(stage, trainer, val.spread(stage.settings.val_examples), source, tokenizer)
    stage.adopt(METRICS)


def _read(stage: Stage, tokenizer: PreTrainedTokenizerBase, name: str) -> Examples:
    parts = [
        read_examples(
            [stage.input(data).file(name)], conversation_rows, tokenizer, stage.settings.max_length, stage.ledger, flow
        )
        for data, flow in _FLOWS.items()
    ]
    return parts[0] + parts[1]


def train_and_measure(
    stage: Stage, trainer: ConversationTrainer, val: Examples, source: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Do the two units of stage 07: what the model scores before, and the trained model with what it scores after."""
    if not stage.finished("before"):
        with stage.unit("before") as unit:
            unit.result = trainer.evaluate_tokens(val)
    if not stage.finished("final"):
        trainer.train_resumably(lambda: trainer.evaluate_tokens(val))
        with stage.unit("final") as unit:
            unit.result = trainer.conclude()
            save_model(trainer.model, source, unit.path("final"), end_of_turn_id(tokenizer))
    stage.result = {
        "steps": trainer.args.max_steps,
        "sequences": len(trainer.train_dataset),
        "before": stage.unit_result("before"),
        **stage.unit_result("final"),
    }
