"""Stage 09: direct preference optimisation (arXiv 2305.18290) with TRL's DPOTrainer.

The reference model is the starting model itself, so its log-probabilities of all answers are computed once, before
training, and kept in the work folder, slice by slice (logp_slices.py): no second model in memory, no second forward
pass per step, and a continued run does not compute them again.

What is measured on held-out pairs, before (only the first), after, and in each validation between:
    val_accuracy       share of pairs whose chosen answer is the more probable one, log p(chosen) > log p(rejected)
    val_reward_accuracy, val_margin    the same relative to the reference: the implicit reward beta * log(p / p_ref)
    val_loss           the mean over pairs of the loss that is trained on; the lowest one is the best validation
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from pipeline_lib.stage import Stage, StageFailure

from .batch_order import EpochOrder, epoch_order
from .chat_tokens import end_of_turn_id, load_chat_tokenizer
from .examples import CUT, Examples, account_for_training, pair_rows, read_examples, set_aside
from .logp_slices import REFERENCE, LogpSlices
from .resumable_trainer import METRICS, ResumableTrainer
from .training_setup import check_context, horizon, load_model, save_model, trainer_arguments
from .validations import LOSS, LossDiverged, check_held_out

_Judge = Callable[[dict[str, Any]], numpy.ndarray]


class PairTrainer(ResumableTrainer, DPOTrainer):
    """DPOTrainer on pairs that are already tokenised, resumable."""

    pairs = True

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Return the dataset with the reference's log-probabilities, from the work folder when they are there."""
        return _with_reference(dataset, self.reference_logps(dataset, name), name)

    def reference_logps(self, dataset: Dataset, name: str) -> numpy.ndarray:
        """Return log p(chosen), log p(rejected) under the starting model, float32 [pairs, 2]; each computed once."""
        label = f"reference log-probabilities, {name}"
        with LogpSlices(self.stage.work / f"reference-{name}") as slices:
            if 0 < len(slices.logps) < len(dataset):
                known = f"{len(slices.logps):,} of {len(dataset):,} pairs"
                self.stage.say(f"  {label}: {known} were finished before, continuing")
            return self.answer_logps(dataset, label, slices)

    def answer_logps(self, dataset: Dataset, label: str, slices: LogpSlices | None = None) -> numpy.ndarray:
        """Return log p(chosen), log p(rejected) under the present model, float32 [pairs, 2].

        The first ones, which `slices` holds, are not computed again, and the others are added to it. Raises as
        `_judged` does.
        """

        def judge(inputs: dict[str, Any]) -> numpy.ndarray:
            answers = self.compute_ref_log_probs(self.model, inputs)
            return numpy.stack([side.float().cpu().numpy() for side in answers], axis=1)

        return self._judged(dataset, label, judge, 2, slices)

    def _judged(
        self, dataset: Dataset, label: str, judge: _Judge, figures: int, slices: LogpSlices | None = None
    ) -> numpy.ndarray:
        """Return what `judge` says of every pair, float32 [pairs, figures], but for what `slices` holds.

        Batches are made of pairs of similar length; where memory runs out they are done in pieces. Raises
        StageInterrupted between batches when a signal arrived, and StageFailure when not even one pair fits.
        """
        size = self.args.per_device_train_batch_size
        lengths, pieces = pair_lengths(dataset), self.pieces_that_fit(label, "pair")
        order = epoch_order(lengths, size, by_length=True, seed=0, epoch=0)
        verdicts = numpy.empty((len(dataset), figures), dtype=numpy.float32)

        def judge_pairs(indices: Sequence[int]) -> numpy.ndarray:
            return judge(self._prepare_inputs(self.data_collator([dataset[index] for index in indices])))

        known = verdicts[:0] if slices is None else slices.logps
        verdicts[order[: len(known)]] = known
        self.model.eval()
        with self.stage.progress(len(dataset), label, "pairs") as bar:
            bar.skip(len(known))
            for start in range(len(known), len(order), size):
                indices = order[start : start + size]
                judged = pieces.run(judge_pairs, indices, [lengths[index] for index in indices])
                verdicts[indices] = batch = numpy.concatenate(judged)
                if slices is not None:
                    slices.add(batch)
                bar.advance(len(indices))
                self.between_batches()
        return verdicts

    def _logps_and_loss(self, inputs: dict[str, Any]) -> numpy.ndarray:
        """Return log p(chosen), log p(rejected) and the batch's mean loss for each of its pairs, float32 [pairs, 3].

        One forward pass gives both: TRL's loss is handed a model that keeps what it returned.
        """
        kept: list[Any] = []

        def forward(**keywords: Any) -> Any:
            kept.append(self.model(**keywords))
            return kept[0]

        with torch.no_grad(), self.accelerator.autocast():
            loss = self.compute_loss(forward, inputs).item()
        self._metrics["eval"].clear()  # which TRL would average when it logs an evaluation of its own
        [outputs] = kept
        chosen, rejected = outputs.log_probs.sum(dim=1).float().cpu().chunk(2)
        return numpy.stack([chosen, rejected, numpy.full(len(chosen), loss)], axis=1)

    def measure(self, dataset: Dataset, reference: numpy.ndarray) -> dict[str, float]:
        """Return the figures of the file's head for held-out pairs and their reference log-probabilities.

        Raises LossDiverged, and as `_judged` does.
        """
        if not len(dataset):
            return {}
        verdicts = self._judged(_with_reference(dataset, reference, "val"), "held-out pairs", self._logps_and_loss, 3)
        logps, losses = verdicts[:, :2], verdicts[:, 2]
        if not numpy.isfinite(verdicts).all():
            raise LossDiverged("log-probabilities of held-out answers are not finite; lower learning_rate")
        rewards = self.beta * (logps - reference)
        return {
            "val_accuracy": float((logps[:, 0] > logps[:, 1]).mean()),
            "val_reward_accuracy": float((rewards[:, 0] > rewards[:, 1]).mean()),
            "val_margin": float((rewards[:, 0] - rewards[:, 1]).mean()),
            LOSS: float(losses.mean(dtype=numpy.float64)),
        }


def _with_reference(dataset: Dataset, logps: numpy.ndarray, name: str) -> Dataset:
    """Return the dataset with the reference's log-probabilities, float32 [pairs, 2], in the columns TRL reads."""
    for column, values in zip(REFERENCE, logps.T, strict=True):
        dataset = dataset.add_column(column, values, new_fingerprint=f"{name}-{column}")
    return dataset


def pair_lengths(dataset: Dataset) -> list[int]:
    """Return the tokens of each pair: the prompt twice and both answers."""
    prompt, chosen, rejected = (dataset[column] for column in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [2 * len(p) + len(c) + len(r) for p, c, r in zip(prompt, chosen, rejected, strict=True)]


def make_trainer(
    stage: Stage, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Examples, steps: int
) -> PairTrainer:
    """Return a trainer on tokenised pairs that takes `steps` optimizer steps; raise StageFailure without pairs."""
    settings = stage.settings
    check_context(model, settings, stage.spec.section)
    if not len(train):
        raise StageFailure(f"no preference pair is left to train on at {settings.max_length} tokens")
    arguments = DPOConfig(
        **trainer_arguments(stage, settings, steps),
        beta=settings.beta,
        loss_type=[settings.loss],
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=True,
    )
    order = EpochOrder(train.lengths, settings.micro_batch, settings.batching == "length", stage.seed)
    return PairTrainer(
        model, args=arguments, train_dataset=train.dataset(), processing_class=tokenizer, stage=stage, order=order
    )


def _within_horizon(train: Examples, stage: Stage, steps: int) -> Examples:
    """Return a random part of the pairs when the steps do not reach all: the reference need not judge the others."""
    reached = steps * stage.settings.micro_batch * stage.settings.accumulation
    chosen = epoch_order(train.lengths, 1, by_length=False, seed=stage.seed, epoch=0)[:reached]
    account_for_training(stage.ledger, train, chosen)
    if len(chosen) == len(train):
        return train
    stage.note(f"the steps reach {reached:,} of {len(train):,} pairs, a random part of them")
    return train.take(chosen)


def _tell_of_cut_answers(stage: Stage, pairs: int) -> None:
    """Note how many of the pairs are longer than `max_length`: DPO cuts their answers, as stage 08 judged them."""
    if cut := sum(entry.found.get(CUT, 0) for _, _, entry in stage.ledger.items()):
        stage.note(
            f"{cut:,} of {pairs:,} pairs have an answer that is cut at {stage.settings.max_length} tokens"
            f" ({stage.spec.section}.max_length)"
        )


def align(stage: Stage) -> None:
    """Run stage 09: reference, measure, train, measure, save final/."""
    source = stage.input("07_sft").folder("final")
    tokenizer = load_chat_tokenizer(source)
    data = stage.input("08_dpo_data")
    train, val = (
        read_examples([data.file(f"{side}.parquet")], pair_rows, tokenizer, stage.settings.max_length, stage.ledger,
                      "preference")
        for side in ("train", "val")
    )  # fmt: skip
    set_aside(stage.ledger, val)
    _tell_of_cut_answers(stage, len(train) + len(val))
    steps = horizon(len(train), stage.settings).steps  # of all pairs: `epochs` below 1 means a share of them
    train = _within_horizon(train, stage, steps)
    check_held_out(stage, len(val))
    trainer = make_trainer(stage, load_model(source), tokenizer, train, steps)
    held_out = val.spread(stage.settings.val_examples).dataset()
    reference = trainer.reference_logps(held_out, "val")
    if not stage.finished("final"):
        trainer.train_resumably(lambda: trainer.measure(held_out, reference))
        with stage.unit("final") as unit:
            unit.result = trainer.conclude()
            save_model(trainer.model, source, unit.path("final"), end_of_turn_id(tokenizer))
    stage.result = {
        "steps": trainer.args.max_steps,
        "pairs": len(train),
        "before": {"val_accuracy": float((reference[:, 0] > reference[:, 1]).mean())} if len(reference) else {},
        **stage.unit_result("final"),
    }
    stage.adopt(METRICS)
