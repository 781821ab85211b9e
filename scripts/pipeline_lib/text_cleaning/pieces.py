"""How the text shards of stage 01 are cut into units of work, and where the scratch files of each lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.stage import Stage, StageFailure, UserError, file_digest

SCRATCH = "scratch"
PIECE_BYTES = 16_000_000  # of text per unit, a few seconds of work


@dataclass(frozen=True)
class Piece:
    """Some row groups of an input shard, and the scratch files that hold what became of them."""

    unit: str
    groups: tuple[int, ...]
    bytes: int
    candidates: Path
    receipts: Path
    scores: Path
    copies: Path


@dataclass(frozen=True)
class Shard:
    """One input shard, its pieces, and the scratch files of its final form."""

    name: str
    source: Path
    pieces: tuple[Piece, ...]
    final: Path
    duplicate_receipts: Path


def text_shards(stage: Stage) -> list[Path]:
    """Return the text shards of stage 01, verified. Raises UserError when there is none."""
    files = stage.input("01_download").files("part-*.parquet")
    if not files:
        raise UserError("01_download has no text shards; give `download.sources` a source of kind text")
    return files


def shards_of(stage: Stage) -> list[Shard]:
    """Return the shards to clean, their pieces, and where the scratch files lie."""
    folder = stage.work / SCRATCH
    return [
        Shard(
            file.stem,
            file,
            tuple(_pieces(file, folder)),
            folder / "final" / file.name,
            folder / "duplicate_receipts" / file.name,
        )
        for file in text_shards(stage)
    ]


def _pieces(file: Path, folder: Path) -> list[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} is no readable Parquet file ({error}); run stage 01 with --force") from None
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    runs: list[list[int]] = [[]]
    for group, size in enumerate(sizes):
        if runs[-1] and sum(sizes[g] for g in runs[-1]) + size > PIECE_BYTES:
            runs.append([])
        runs[-1].append(group)
    return [
        Piece(
            f"clean/{file.stem}/{number:04d}",
            tuple(groups),
            sum(sizes[group] for group in groups),
            folder / "candidates" / f"{file.stem}-{number:04d}.parquet",
            folder / "receipts" / f"{file.stem}-{number:04d}.parquet",
            folder / "scores" / f"{file.stem}-{number:04d}.parquet",
            folder / "copies" / f"{file.stem}-{number:04d}.parquet",
        )
        for number, groups in enumerate(runs)
    ]


def pieces_of(shards: Sequence[Shard]) -> list[Piece]:
    """Return the pieces of all shards in order."""
    return [piece for shard in shards for piece in shard.pieces]


def verified(stage: Stage, unit: str, name: str, path: Path) -> Path:
    """Return a scratch file of a finished unit. Raises StageFailure when it is not what that unit wrote."""
    check_digest(path, stage.unit_result(unit)["digests"][name])
    return path


def check_digest(path: Path, digest: str) -> None:
    """Raise StageFailure when a scratch file is not there as it was written."""
    if not path.is_file() or file_digest(path) != digest:
        raise StageFailure(f"the scratch file {path} is missing or damaged; start this stage again with --force")
