"""Shards to chunk files: encode runs of documents, cut them into chunks, write those that are not there yet.

Both halves go through a claim table, so a second process takes units from the other end; what is finished is what lies
under its final name. A chunk that is made again must be the one that the index lists, to the last byte.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.stage import StageFailure, json_digest, write_bytes_atomic

from .cache_index import describe_chunk, tokenizer_digests
from .chunk_format import ChunkFile, chunk_digest, encode_chunk
from .chunk_ranges import ChunkRange, cut_into_chunks
from .claims import ClaimTable, closing_mark
from .encoded_runs import EncodedRuns, Selection, amounts_by_source, encode_run, finished_run
from .kept_parts import CacheLayout, lay_out
from .shards import Run, plan_runs
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage


@dataclass(frozen=True)
class Wanted:
    """A chunk to make: digest is that of the index when it is made again, else None; opens: the first of its part."""

    name: str
    part: int
    range: ChunkRange
    digest: str | None
    opens: bool


def chunk_name(number: int) -> str:
    """Return the file name of a chunk within the cache."""
    return f"chunks/chunk-{number:05d}.lz4"


def make_chunks(stage: "Stage", layout: CacheLayout, encoder: TextEncoder, backwards: bool) -> list[str]:
    """Make every chunk that is missing, alone or with other processes; return the names of those made."""
    closed = closing_mark(stage.work / "claims")
    closed.unlink(missing_ok=True)
    made = _make_missing(stage, layout, encoder, backwards)
    closed.parent.mkdir(exist_ok=True)
    closed.touch()
    return made


def _make_missing(stage: "Stage", layout: CacheLayout, encoder: TextEncoder, backwards: bool) -> list[str]:
    made = []
    for part in range(len(layout.parts)):
        damaged = [chunk for chunk in layout.chunks if chunk["part"] == part and chunk["file"] not in layout.whole]
        if part < layout.kept and not damaged:
            continue
        runs = plan_runs(layout.shards(part))
        if part < layout.kept:
            wanted = [_made_again(layout, chunk) for chunk in damaged]
            selection = _selection([chunk.range for chunk in wanted])
            encoded = _encode(stage, encoder, part, runs, selection, backwards)
        else:
            encoded = _encode(stage, encoder, part, runs, None, backwards)
            wanted = _new_chunks(stage, layout, part, encoded)
        _write(stage, layout, encoder, encoded, wanted, backwards)
        made += [chunk.name for chunk in wanted]
    return made


def list_chunks(stage: "Stage", layout: CacheLayout, made: list[str]) -> list[dict[str, Any]]:
    """Return the index entries of all chunks in the order of the cache, after verifying those that were made."""
    entries = {}
    for name in sorted(made):
        chunk = ChunkFile(stage.work / name, command=stage.command)
        chunk.verify()
        entries[name] = describe_chunk(chunk, name)
    return [entries.pop(chunk["file"], chunk) for chunk in layout.chunks] + [entries[name] for name in sorted(entries)]


def _made_again(layout: CacheLayout, chunk: dict[str, Any]) -> Wanted:
    first = next(other["file"] for other in layout.chunks if other["part"] == chunk["part"])
    chunk_range = ChunkRange.from_json(chunk["range"])
    return Wanted(chunk["file"], chunk["part"], chunk_range, chunk["digest"], chunk["file"] == first)


def _selection(ranges: list[ChunkRange]) -> Selection:
    """Return the function that picks the documents of these chunks only."""

    def wanted(order: np.ndarray, split: np.ndarray) -> np.ndarray:
        return np.any([chunk.wants(order, split) for chunk in ranges], axis=0)

    return wanted


def _encode(
    stage: "Stage", encoder: TextEncoder, part: int, runs: list[Run], wanted: Selection | None, backwards: bool
) -> EncodedRuns:
    """Encode the runs of a part into files of the work folder that only live until the chunks are written."""
    folder = stage.work / "encoded" / f"part-{part}"
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    by_key = {run.key: run for run in runs}
    rate = _Rate()
    for key in _shared(stage, f"encode-{part}", list(by_key), lambda key: finished_run(folder, by_key[key]) is not None,
                       backwards, "encoding", "runs", rate):  # fmt: skip
        encode_run(by_key[key], encoder, stage.seed, folder, wanted)
        rate.add(by_key[key].rows, by_key[key].bytes)
    return EncodedRuns([finished_run(folder, run) for run in runs])


def share_work(stage: "Stage") -> None:
    """Make chunks for another process that runs this stage, from the other end, until nothing is left to claim.

    Returns at once while the other one has not come to the chunks yet, and when it has published them.
    """
    ready = [stage.work / name for name in ("kept.json", "tokenizer", "token_bytes.npy")]
    if not all(path.exists() for path in ready) or closing_mark(stage.work / "claims").exists():
        return
    try:
        layout = lay_out(stage)
        stage.say(f"{stage.name}: taking a share of the work of another process")
        encoder = TextEncoder(stage.work / "tokenizer")
        made = _make_missing(stage, layout, encoder, backwards=stage.flags.get("mode") == "inverse")
    except FileNotFoundError:
        return  # the other process published meanwhile
    stage.say(f"{stage.name}: {len(made)} chunks are made, the other process finishes the cache")


def _new_chunks(stage: "Stage", layout: CacheLayout, part: int, encoded: EncodedRuns) -> list[Wanted]:
    """Cut a new part into chunks, numbered on from those that stay."""
    cut = cut_into_chunks(encoded.statistics(), stage.settings.chunk_tokens, stage.settings.val_fraction)
    if cut.val_is_one_document:
        stage.note("no document fell into the validation share, so one was taken; raise pack.val_fraction or add text")
    first = len(layout.chunks)
    return [Wanted(chunk_name(first + place), part, chunk, None, place == 0) for place, chunk in enumerate(cut.ranges)]


def _write(
    stage: "Stage",
    layout: CacheLayout,
    encoder: TextEncoder,
    encoded: EncodedRuns,
    wanted: list[Wanted],
    backwards: bool,
) -> None:
    """Write the chunk files of a part; each is finished when it lies under its name in the work folder."""
    by_name = {chunk.name: chunk for chunk in wanted}
    rate = _Rate()
    table = f"chunks-{wanted[0].part}" if wanted else "chunks"
    for name in _shared(stage, table, list(by_name), lambda name: (stage.work / name).is_file(),
                        backwards, "writing", "chunks", rate):  # fmt: skip
        content, text_bytes = encoded.gather(by_name[name].range)
        description = _description(layout, encoder, by_name[name])
        description["text_bytes"] = int(text_bytes.sum())
        description["amounts"] = amounts_by_source(content, text_bytes)
        data = encode_chunk(content, description, stage.settings.lz4_level, stage.threads)
        if by_name[name].digest not in (None, chunk_digest(data)):
            raise StageFailure(
                f"{name} made again from the recorded shards is not the chunk that the index lists: another version of"
                " lz4 or of this program; make the whole cache again with --force-rebuild"
            )
        write_bytes_atomic(stage.work / name, data)
        rate.add(len(content.ids), description["text_bytes"], len(data))


def _description(layout: CacheLayout, encoder: TextEncoder, chunk: Wanted) -> dict[str, Any]:
    description = {
        "part": chunk.part,
        "split": chunk.range.split,
        "range": chunk.range.to_json(),
        "vocab_size": encoder.vocab_size,
        "separator_id": encoder.special.separator,
        "tokenizer": json_digest(tokenizer_digests(encoder.folder)),
    }
    if chunk.opens:
        description["shards"] = [shard.to_json() for shard in layout.parts[chunk.part]]
    return description


class _Rate:
    """Samples and megabytes per second of what this process made, and how much smaller it became."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._documents = self._bytes = self._stored = 0

    def add(self, documents: int, text_bytes: int, stored: int = 0) -> None:
        self._documents += documents
        self._bytes += text_bytes
        self._stored += stored

    def __str__(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._started)
        text = f"{self._bytes / seconds / 1e6:,.1f} MB/s, {self._documents / seconds:,.0f} samples/s"
        return f"{text}, {self._bytes / self._stored:.1f}x smaller" if self._stored else text


def _shared(stage, table, keys, finished, backwards, label, unit, rate) -> Iterator[str]:
    """Yield the units that this process is to make, with progress over all of them and a look at signals after each."""
    earlier = {key for key in keys if finished(key)}
    if earlier and len(earlier) < len(keys):
        stage.say(f"  {label}: {len(earlier)} of {len(keys)} {unit} were finished before, continuing")
    claims = ClaimTable(Path(stage.work) / "claims" / table, keys)
    own = 0
    try:
        with stage.progress(len(keys), label, unit) as bar:
            bar.skip(len(earlier))

            def made_by_others(key: str) -> None:
                if key not in earlier:
                    bar.advance(1, str(rate))

            for key in claims.unfinished(finished, backwards, made_by_others):
                yield key
                own += 1
                bar.advance(1, str(rate))
                stage.stop_if_interrupted()
    finally:
        claims.release()
    if others := len(keys) - len(earlier) - own:
        stage.say(f"  {label}: this process made {own} of {len(keys)} {unit}, others {others}")
