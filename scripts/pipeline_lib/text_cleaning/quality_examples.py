"""The examples that the quality model learns from: the user's files, and documents of the corpus as the contrast.

Files are read as stage 01 reads a local source, and repaired as stage 02 repairs the corpus: a difference in spaces
would otherwise be what the model learns.
Trap: against the corpus itself a score is relative. The good documents of a corpus that is half good are half of the
contrast and score about a third; choose the threshold by reading, or give a contrast.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import UserError

if TYPE_CHECKING:
    import pyarrow

    from pipeline_lib.config.clean import CleanSettings
    from pipeline_lib.sources.local import LocalSource

    from .quality_model import QualityModel

MOST_BYTES = 20_000_000
"""Of text per side: more examples than that change a linear model little."""
CONTRAST_BYTES = 10_000_000
"""Of text that is taken from the corpus when no contrast is given."""


def example_files(settings: "CleanSettings") -> dict[str, Any]:
    """JSON that changes when an example does, for the up-to-date check."""
    model = settings.quality_model
    sides = {"examples": model.examples, "contrast": model.contrast}
    return {name: _source(name, paths).fingerprint() for name, paths in sides.items() if paths}


def train_on_examples(
    settings: "CleanSettings", shards: Sequence[Path], seed: int, note: Callable[[str], None] = lambda line: None
) -> "tuple[QualityModel, dict[str, int]]":
    """Return the model that the settings ask for, and how many documents each side had.

    shards: of the corpus, for the contrast; note: takes a line for the card. Raises UserError for paths that name no
    document.
    """
    from .quality_model import train

    model = settings.quality_model
    wanted = examples(model.examples, "examples", settings, note)
    if model.contrast:
        unwanted = examples(model.contrast, "contrast", settings, note)
    else:
        unwanted = corpus_sample(shards, settings)
    return train(wanted, unwanted, seed), {"examples": len(wanted), "contrast": len(unwanted)}


def examples(
    paths: Sequence[str], name: str, settings: "CleanSettings", note: Callable[[str], None]
) -> "pyarrow.Array":
    """The documents of these files, large_string, about MOST_BYTES at most, of every unit of reading an equal share.

    `note` is told when there were more. Raises UserError when there is none.
    """
    import pyarrow as pa

    from .normalise import normalise_batch

    texts: list[str] = []
    room, is_cut = MOST_BYTES, False
    documents = _documents_of_units(_source(name, paths))
    for number, unit in enumerate(documents):
        share = room // (len(documents) - number)  # what the units before leave over goes to those behind them
        for text in unit:
            if share <= 0:
                is_cut = True
                break
            texts.append(text)
            share -= len(text)
            room -= len(text)
    if is_cut:
        note(
            f"clean.quality_model.{name}: learned from {len(texts):,} documents, the first of every 64 MiB of"
            " files, not from all"
        )
    if not texts:
        raise UserError(f"clean.quality_model.{name}: no document in {', '.join(paths)}; name other files")
    return normalise_batch(pa.array(texts, pa.large_string()), settings.normalise)[0]


def corpus_sample(shards: Sequence[Path], settings: "CleanSettings") -> "pyarrow.Array":
    """Documents from row groups spread evenly over the corpus, about CONTRAST_BYTES of them at most."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from .normalise import normalise_batch

    groups = [(shard, group) for shard in shards for group in range(pq.read_metadata(shard).num_row_groups)]
    every = max(1, len(groups) // 16)
    chosen = groups[every // 2 :: every]
    samples = [pa.array([], pa.large_string())]
    for shard, group in chosen:
        with pq.ParquetFile(shard) as file:
            texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks().fill_null("")
        before = pc.cumulative_sum(pc.binary_length(texts).cast(pa.int64())).to_numpy()
        wanted = 1 + int((before < CONTRAST_BYTES // len(chosen)).sum())
        samples.append(texts.slice(0, wanted).cast(pa.large_string()))
    return normalise_batch(pa.concat_arrays(samples), settings.normalise)[0]


def _source(name: str, paths: Sequence[str]) -> "LocalSource":
    from pipeline_lib.config.sources import SourceSettings
    from pipeline_lib.sources.local import LocalSource

    return LocalSource(SourceSettings(name=name, kind="text", type="local", paths=list(paths)))


def _documents_of_units(source: "LocalSource") -> list[Iterator[str]]:
    """Return the texts of every unit, 64 MiB of files at most, read as far as they are asked for."""
    from pipeline_lib.sources.base import Dropped

    def texts(unit: str) -> Iterator[str]:
        return (record["text"] for record in source.read(unit) if not isinstance(record, Dropped))

    return [texts(unit) for unit in source.units()]
