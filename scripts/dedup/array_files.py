"""Results of a step as one file of named arrays: whole or absent, and checked when it is read.

The container is numpy's uncompressed .npz, which is a zip file: each array carries a CRC-32 that reading it verifies.
These are scratch files, so they are renamed into place but not forced onto the disk (70 fsyncs took a third of a run
over 15 MB): after a power cut a file may be there without its content. That is found out, and the file is made again.
"""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline_lib.stage import StageFailure
from pipeline_lib.stage.atomic import temporary_beside


@contextmanager
def scratch_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` on a clean exit: whole for every reader, but not yet durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write the arrays to `path`. Raises OSError when the disk is full; then `path` is as it was."""
    with scratch_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def is_whole(path: Path) -> bool:
    """Tell whether a file is there and undamaged (reads all of it)."""
    try:
        load_arrays(path)
    except (FileNotFoundError, StageFailure):
        return False
    return True


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file. Raises StageFailure when it is damaged, FileNotFoundError when it is absent."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise StageFailure(f"dedup: {path} is damaged ({error}); delete it and start again") from None
