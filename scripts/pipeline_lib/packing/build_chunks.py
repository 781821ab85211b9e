"""Shards to chunk files: encode runs of documents, cut them into chunks, write those that are not there yet.

Both halves go through a claim table, so a second process takes units from the other end; what is finished is what lies
under its final name. A small shard alone is not worth files and claims: it stays in memory, and who comes late or was
killed encodes it again, in less than a second. A chunk that is made again must be the one that the index lists, to the
last byte.
"""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.stage import StageFailure, UserError, bytes_digest, json_digest, ordered_threads, write_bytes_atomic
from pipeline_lib.stage.memory import give_freed_memory_back
from pipeline_lib.stage.workspace import Workspace

from .cache_index import by_number, describe_chunk, tokenizer_digests
from .chunk_format import ChunkDamaged, ChunkFile, chunk_digest, encode_chunk
from .chunk_ranges import ChunkRange, cut_into_chunks
from .claims import ClaimTable, closing_mark
from .encoded_runs import EncodedRuns, Selection, amounts_by_source, encode_run
from .kept_parts import CacheLayout, lay_out
from .run_files import RunFile
from .shards import Run, plan_runs
from .so_far import publish_part, published_parts
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage

UNITS_AT_ONCE = 2
"""So that one computes while the other waits for the disk, or is at a step that takes one core."""
_IN_MEMORY_BYTES = 64 << 20
_GIVEN_BACK_BYTES = 8 << 20
"""A batch of text, its tokens, the tokens of a chunk: kept by the heap, they are 200 MB of the peak; given back,
they cost 5 to 12 % of the processor time between Parquet and chunks."""


@dataclass(frozen=True)
class Wanted:
    """A chunk to make; opens: the first of its part.

    digest: of its header, when it is made again and its header is known, else None; recorded: of its whole file, when
    it was published before.
    """

    name: str
    part: int
    range: ChunkRange
    digest: str | None
    opens: bool
    recorded: str | None = None


def chunk_name(number: int) -> str:
    """Return the file name of a chunk within the cache."""
    return f"chunks/chunk-{number:05d}.lz4"


def make_chunks(stage: "Stage", layout: CacheLayout, encoder: TextEncoder, backwards: bool) -> list[str]:
    """Make every chunk that is missing, alone or with other processes; return the names of those made.

    Where a cache is made in several parts, each one is published before the next begins (so_far.py).
    """
    closed = closing_mark(stage.work / "claims")
    closed.parent.mkdir(exist_ok=True)
    closed.unlink(missing_ok=True)

    def finish(part: int, names: list[str]) -> None:
        if len(layout.parts) > 1 and not layout.kept:
            publish_part(stage, layout, encoder, part, names)

    made = _make_missing(stage, layout, encoder, backwards, finish)
    closed.touch()
    return made


def _make_missing(
    stage: "Stage",
    layout: CacheLayout,
    encoder: TextEncoder,
    backwards: bool,
    finish: Callable[[int, list[str]], None] = lambda part, names: None,
) -> list[str]:
    """Make the missing chunks part after part; `finish` is told of every new part and its chunks once it is made."""
    made: list[str] = []
    following = len(layout.chunks)
    for part in range(len(layout.parts)):
        published = _published_chunks(stage, part)
        listed = published or [chunk for chunk in layout.chunks if chunk["part"] == part]
        if published:
            damaged = [chunk for chunk in listed if not _is_whole(stage, chunk["file"], chunk["digest"])]
            made += [chunk["file"] for chunk in published]
            following += len(published)
        else:
            damaged = [chunk for chunk in listed if chunk["file"] not in layout.whole]
        if (published or part < layout.kept) and not damaged:
            continue
        runs = plan_runs(layout.shards(part))
        if listed:
            wanted = [_made_again(listed, chunk, layout) for chunk in damaged]
            encoded = _encode(stage, encoder, part, runs, [chunk.range for chunk in wanted], backwards)
        else:
            encoded = _encode(stage, encoder, part, runs, None, backwards)
            wanted = _new_chunks(stage, part, following, encoded)
        _write(stage, layout, encoder, encoded, wanted, backwards)
        if published:
            continue
        made += [chunk.name for chunk in wanted]
        if part >= layout.kept:
            following += len(wanted)
            finish(part, [chunk.name for chunk in wanted])
    return made


def _published_chunks(stage: "Stage", part: int) -> list[dict[str, Any]]:
    """Return the chunks of a part that this unfinished work has published already; nothing for another part."""
    index = published_parts(stage.work)
    return [chunk for chunk in index["chunks"] if chunk["part"] == part] if index else []


def _is_whole(stage: "Stage", name: str, digest: str | None) -> bool:
    """Say whether a chunk of this unfinished work is as it was written (digest: None where no index lists it yet)."""
    path = stage.work / name
    try:
        ChunkFile(path, digest, stage.command).verify()
    except ChunkDamaged:
        return False
    return True


def list_chunks(stage: "Stage", layout: CacheLayout, made: list[str]) -> list[dict[str, Any]]:
    """Return the index entries of all chunks in the order of the cache, after verifying those that were made."""
    entries = {}
    for name in sorted(made, key=by_number):
        chunk = ChunkFile(stage.work / name, command=stage.command)
        chunk.verify()
        entries[name] = describe_chunk(chunk, name)
    return [entries.pop(chunk["file"], chunk) for chunk in layout.chunks] + list(entries.values())


def _made_again(part: list[dict[str, Any]], chunk: dict[str, Any], layout: CacheLayout) -> Wanted:
    name, chunk_range = chunk["file"], ChunkRange.from_json(chunk["range"])
    return Wanted(name, chunk["part"], chunk_range, chunk["digest"], name == part[0]["file"], layout.recorded.get(name))


def _selection(ranges: list[ChunkRange]) -> Selection:
    """Return the function that picks the documents of these chunks only."""

    def wanted(order: np.ndarray, split: np.ndarray) -> np.ndarray:
        return np.any([chunk.wants(order, split) for chunk in ranges], axis=0)

    return wanted


def stays_in_memory(runs: list[Run]) -> bool:
    """Say whether the runs are so little text, of one shard, that they are encoded faster than shared."""
    return len({run.shard for run in runs}) == 1 and sum(run.bytes for run in runs) <= _IN_MEMORY_BYTES


def bound_memory(runs: list[Run]) -> bool:
    """Give freed memory back from now on, and return True, where the runs are so much text that the peak needs it."""
    if large := not stays_in_memory(runs):
        give_freed_memory_back(_GIVEN_BACK_BYTES)
    return large


def _encode(
    stage: "Stage", encoder: TextEncoder, part: int, runs: list[Run], chunks: list[ChunkRange] | None, backwards: bool
) -> EncodedRuns:
    """Encode the runs of a part, in memory or to files that live until the chunks are written.

    chunks: those whose documents alone are wanted. Files of other chunks, left by an earlier start, are other files.
    """
    rate = _Rate()
    wanted = None if chunks is None else _selection(chunks)
    name = f"part-{part}"
    if chunks is not None:
        name += "-" + json_digest([chunk.to_json() for chunk in chunks])[-12:]
    if stays_in_memory(runs) and encoder.fallback is None:
        encoded = []
        with stage.progress(len(runs), "encoding", "runs") as bar:
            for each in ordered_threads(lambda run: encode_run(run, encoder, stage.seed, wanted), runs, UNITS_AT_ONCE):
                rate.add(runs[len(encoded)].rows, runs[len(encoded)].bytes)
                encoded.append(each)
                bar.advance(1, str(rate))
        return EncodedRuns(encoded, encoder)
    folder = stage.work / "encoded" / name
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    by_key = {run.key: run for run in runs}
    files = {run.key: RunFile(folder, run) for run in runs}

    def make(key: str) -> tuple[int, int]:
        files[key].write(encode_run(by_key[key], encoder, stage.seed, wanted), encoder)
        return by_key[key].rows, by_key[key].bytes

    while True:
        _make_shared(stage, f"encode-{name}", list(files), lambda key: files[key].is_finished(),
                     make, backwards, "encoding", "runs", rate)  # fmt: skip
        damaged = [file for file in files.values() if file.drop_if_damaged()]
        if not damaged:
            return EncodedRuns([files[run.key] for run in runs], encoder)


def share_work(stage: "Stage") -> None:
    """Make chunks for another process that runs this stage, from the other end, until nothing is left to claim.

    Returns at once while the other one has not come to the chunks yet, and when it has published them or other work
    has begun in their place.
    """
    begun = Workspace.mark(stage.work)
    ready = [stage.work / name for name in ("kept.json", "tokenizer", "token_bytes.npy", "claims")]
    if not all(path.exists() for path in ready) or closing_mark(stage.work / "claims").exists():
        return
    try:
        layout = lay_out(stage, decide=False)
        bound_memory(plan_runs(list(layout.paths.values())))
        stage.say(f"{stage.name}: taking a share of the work of another process")
        encoder = TextEncoder(stage.work / "tokenizer")
        made = _make_missing(stage, layout, encoder, backwards=stage.flags.get("mode") == "inverse")
    except (FileNotFoundError, UserError):
        if Workspace.mark(stage.work) == begun and not closing_mark(stage.work / "claims").exists():
            raise
        return  # what was shared is published, or gone
    stage.say(f"{stage.name}: {len(made)} chunks are made, the other process finishes the cache")


def _new_chunks(stage: "Stage", part: int, first: int, encoded: EncodedRuns) -> list[Wanted]:
    """Cut a new part into chunks, numbered from `first` on."""
    cut = cut_into_chunks(encoded.statistics(), stage.settings.chunk_tokens, stage.settings.val_fraction)
    if cut.val_is_one_document:
        stage.note("no document fell into the validation share, so one was taken; raise pack.val_fraction or add text")
    return [Wanted(chunk_name(first + place), part, chunk, None, place == 0) for place, chunk in enumerate(cut.ranges)]


def make_chunk(
    encoded: EncodedRuns, wanted: ChunkRange, description: dict[str, Any], lz4_level: int, threads: int
) -> bytes:
    """Return the bytes of a chunk file, after entering in `description` what only its documents tell."""
    content, text_bytes = encoded.gather(wanted)
    description["text_bytes"] = int(text_bytes.sum())
    description["amounts"] = amounts_by_source(content, text_bytes)
    return encode_chunk(content, description, lz4_level, threads)


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
    there = [name for name in by_name if (stage.work / name).is_file()]  # what an earlier start left
    damaged = {name for name in there if not _is_whole(stage, name, by_name[name].digest)}
    damaged = {name for name in damaged if (stage.work / name).is_file()}  # not one that was published meanwhile
    for name in sorted(damaged):
        stage.say(f"  {stage.work / name} is damaged: it is made again")
    table = f"chunks-{wanted[0].part}" if wanted else "chunks"

    def make(name: str) -> tuple[int, int, int]:
        chunk = by_name[name]
        description = _description(layout, encoder, chunk)
        data = make_chunk(encoded, chunk.range, description, stage.settings.lz4_level, stage.threads)
        if chunk.digest not in (None, chunk_digest(data)) or chunk.recorded not in (None, bytes_digest(data)):
            raise StageFailure(
                f"{name} made again from the recorded shards is not the chunk that was published: another version of"
                " lz4 or of this program; make the whole cache again with --force-rebuild"
            )
        write_bytes_atomic(stage.work / name, data)
        damaged.discard(name)
        documents = sum(amounts["documents"] for amounts in description["amounts"].values())
        return documents, description["text_bytes"], len(data)

    _make_shared(stage, table, list(by_name), lambda name: name not in damaged and (stage.work / name).is_file(),
                 make, backwards, "writing", "chunks", _Rate())  # fmt: skip


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


def _make_shared(
    stage: "Stage",
    table: str,
    keys: list[str],
    finished: Callable[[str], bool],
    make: Callable[[str], tuple[int, ...]],
    backwards: bool,
    label: str,
    unit: str,
    rate: _Rate,
) -> None:
    """Make the units that this process is to make, with progress over all of them and a look at signals after each.

    make: makes a unit, in a thread, and returns what `rate` is to add.
    """
    earlier = {key for key in keys if finished(key)}
    if earlier and len(earlier) < len(keys):
        stage.say(f"  {label}: {len(earlier)} of {len(keys)} {unit} were finished before, continuing")
    claims = ClaimTable(Path(stage.work) / "claims" / table, keys)
    running: dict[Future, str] = {}
    own = 0
    try:
        with stage.progress(len(keys), label, unit) as bar, ThreadPoolExecutor(UNITS_AT_ONCE) as pool:
            bar.skip(len(earlier))

            def made_by_others(key: str) -> None:
                if key not in earlier:
                    bar.advance(1, str(rate))

            def finish_one() -> None:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    rate.add(*future.result())
                    claims.give_back(running.pop(future))
                    bar.advance(1, str(rate))
                stage.stop_if_interrupted()

            for key in claims.unfinished(finished, backwards, made_by_others, stage.stop_if_interrupted):
                running[pool.submit(make, key)] = key
                own += 1
                if len(running) == UNITS_AT_ONCE:
                    finish_one()
            while running:
                finish_one()
    finally:
        claims.release()
    if others := len(keys) - len(earlier) - own:
        stage.say(f"  {label}: this process made {own} of {len(keys)} {unit}, others {others}")
