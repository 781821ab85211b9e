"""Stages 06 to 10: from original chat records to fine-tuned, aligned and adapted models.

    originals.py            records of 01_download, one by one, with where they stand
    chat_tokens.py          the chat template: token ids, loss masks, prompts and answers
    conversation_checks.py  06: which conversations can be trained on
    pair_checks.py          08: which preference pairs can
    prepared_data.py        06 and 08: check in resumable batches, drop duplicates, split, write Parquet, balance
    format_advice.py        06, 08, 10: which format a source is in of which every record was dropped
    held_out.py             06, 08, 10: the validation split
    examples.py             07, 09, 10: the Parquet files as tokenised examples
    batch_order.py          the order of the examples, a function of seed and epoch
    resumable_trainer.py    TRL's trainers with checkpoints that continue bit for bit
    validations.py          07, 09, 10: validation while training runs, and the best weights so far
    logp_slices.py          09: the reference's log-probabilities, kept while they are computed
    compact_head.py         what makes TRL's steps faster on a CPU
    training_setup.py       settings -> TRL arguments; loading and saving models
    supervised.py preference.py adapters.py    the three training stages
"""
