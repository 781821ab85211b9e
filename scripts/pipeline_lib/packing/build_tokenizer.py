"""The tokenizer of a cache: kept, copied or trained, then proven, then compared with a reference."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.stage import StageFailure, file_digest, write_json_atomic

from .cache_index import tokenizer_digests
from .kept_parts import CacheLayout, published_tokenizer
from .mixture_plan import BYTES_PER_TOKEN, copies_of
from .pretoken_counts import DISTINCT_BYTES, count_pieces
from .shards import Run, TrainingSample, plan_runs, sample_texts, weighted_sample
from .text_encoder import PROBES, TextEncoder
from .tokenizer_folder import chat_template_is_trainable, copy_tokenizer, resolve_tokenizer
from .tokenizer_report import compare_with_reference
from .trained_tokenizer import learn_vocabulary, write_tokenizer

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage

CHECKED_BYTES = 1_000_000


def make_tokenizer(stage: "Stage", layout: CacheLayout) -> TextEncoder:
    """Make the tokenizer folder and the number of bytes of each token beside it; return the encoder.

    Raises StageFailure when the tokenizer of chunks that stay is gone and cannot be made again.
    """
    for key in stage.todo(["tokenizer"], "making the tokenizer"):
        with stage.unit(key) as unit:
            folder = unit.path("tokenizer")
            kept = published_tokenizer(stage, layout)
            if kept is not None:
                copy_tokenizer(kept, folder)
                unit.result = stage.published_result().get("tokenizer_training", {})
            elif stage.settings.tokenizer is not None:
                copy_tokenizer(resolve_tokenizer(stage.settings.tokenizer), folder)
            else:
                unit.result = _train(stage, layout, folder)
            if layout.tokenizer is not None and tokenizer_digests(folder) != layout.tokenizer:
                raise StageFailure(
                    f"the tokenizer below {stage.folder} is damaged and training it again gives another one, so the"
                    " chunks made with it are of no use; make all of it again with --force-rebuild"
                )
            with open(unit.path("token_bytes.npy"), "wb") as stream:
                np.save(stream, TextEncoder(folder).token_bytes(), allow_pickle=False)
    return TextEncoder(stage.work / "tokenizer")


def _train(stage: "Stage", layout: CacheLayout, folder: Path) -> dict[str, Any]:
    """Train on a weighted sample of the text that was there when the cache was first made; return the rule and size.

    That text is one part, or as many as `pack.part_bytes` made of it.
    """
    settings = stage.settings
    began = stage.published_result().get("tokenizer_training", {}).get("parts", 1) if layout.kept else len(layout.parts)
    runs = [run for part in range(began) for run in plan_runs(layout.shards(part))]
    if layout.kept and "fractions" in (known := stage.published_result().get("tokenizer_training", {})):
        sample = TrainingSample(known["seed"], known["fractions"])  # the text of now would have another one
    else:
        cleaned = stage.input("02_clean").ledger.items()
        sizes = {source: entry.kept[1] for flow, source, entry in cleaned if flow == "text"}
        copies = copies_of(sizes, settings, BYTES_PER_TOKEN)
        sample = weighted_sample(sizes, copies, settings.training_bytes, stage.seed)
    counted = count_pieces(sample.batches(runs))
    limit = counted.limit_to_json()
    if limit:
        stage.note(
            f"the tokenizer is trained on {limit['bytes'] / sample.bytes:.2%} of the {sample.bytes / 1e6:,.1f} MB of"
            f" its sample, in which {limit['distinct_pieces']:,} pieces are distinct: those of more do not fit into"
            f" {DISTINCT_BYTES / 1e6:,.3g} MB, the limit of its memory"
        )
    write_tokenizer(folder, learn_vocabulary(counted, settings.vocab_size, settings.min_pair_count))
    return {**sample.to_json(), **({"parts": began} if began > 1 else {}), **({"limited": limit} if limit else {})}


def check_encoder(stage: "Stage", encoder: TextEncoder, runs: list[Run]) -> None:
    """Prove on a sample of this run that two tokenizer implementations agree and that no text is lost."""
    texts = [*PROBES, *sample_texts(runs, CHECKED_BYTES)]
    if encoder.fallback is not None:
        stage.note(f"Hugging Face tokenizers encodes, many times slower: gigatoken refuses it ({encoder.fallback})")
    encoder.check_against_hugging_face(texts)
    if not encoder.is_lossless(texts):
        if stage.settings.tokenizer is None:
            raise StageFailure("the trained tokenizer does not give a text back unchanged; please report this defect")
        stage.note("the given tokenizer rewrites text: decoding does not give it back, bits per byte are approximate")
    if not chat_template_is_trainable(encoder.folder):
        stage.note("the given tokenizer has no chat template with generation markers: fine-tuning needs another one")
    if encoder.special.pad == encoder.special.separator:
        stage.note("the given tokenizer has no pad_token besides its eos_token: fine-tuning needs another one")


def write_tokenizer_report(stage: "Stage", encoder: TextEncoder, runs: list[Run]) -> None:
    """Write tokenizer_report.json: bytes per token of each source, beside those of the reference tokenizer, if any."""
    reference = stage.settings.reference_tokenizer
    other = None if reference is None else TextEncoder(resolve_tokenizer(reference), only_counts=True)
    rows = compare_with_reference(runs, encoder, other)
    identity = other and {"name": reference, "digest": file_digest(other.folder / "tokenizer.json")}
    report = {
        "reference": identity,
        "vocab_size": encoder.vocab_size,
        "reference_vocab_size": None if other is None else other.vocab_size,
        "sources": rows,
    }
    write_json_atomic(stage.work / "tokenizer_report.json", report)
    stage.adopt("tokenizer_report.json")
