"""Results of a step as one file of named arrays: whole or absent, and checked when it is read.

The container is numpy's uncompressed .npz, which is a zip file: each array carries a CRC-32 that reading it verifies.
"""

import zipfile
from pathlib import Path

import numpy as np

from pipeline_lib.stage import StageFailure, atomic_path


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write the arrays to `path`. Raises OSError when the disk is full; then `path` is as it was."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file. Raises StageFailure when it is damaged, FileNotFoundError when it is absent."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise StageFailure(f"dedup: {path} is damaged ({error}); delete it and start again") from None
