"""`@kernel`: a numba function that releases the interpreter lock and keeps its machine code on disk.

Cost: some seconds of compiling the first time a package's kernels run on a machine, milliseconds of loading afterwards.
Trap that this avoids: numba renews a cached function when the file it stands in changes, not when a function or a
constant that it takes from another file does. After an update of `words.py` the machine code of its callers elsewhere,
with the old words compiled into it, would run on without a word. So the folder of the machine code carries a digest of
every file of the package: a change in one of them is a new folder.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import xxhash
from numba import config, njit
from numba.core import entrypoints

STAGE_VARIABLE = "PIPELINE_STAGE"
"""Set in the environment of a stage and of all that it starts: there, kernels are the only users of numba."""

if STAGE_VARIABLE in os.environ:
    # Before its first kernel numba loads what other packages teach it, used or not: awkward brings pandas and scipy,
    # 0.3 s in every worker. Private: numba has no switch. A program that imports us as a library keeps its extensions.
    entrypoints._already_initialized = True


@cache
def cache_folder(package: Path) -> Path:
    """Return the folder for machine code made of exactly these sources; NUMBA_CACHE_DIR, if set, is above it."""
    digest = xxhash.xxh3_64()
    for source in sorted(package.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    above = Path(config.CACHE_DIR) if config.CACHE_DIR else package / "__pycache__"
    return above / f"kernels-{digest.hexdigest()}"


def kernel(function: Callable | None = None, **options: Any) -> Any:
    """Compile `function` on its first call. `options` are numba's; use as `@kernel` or `@kernel(inline="always")`."""
    if function is None:
        return lambda decorated: kernel(decorated, **options)
    folder = cache_folder(Path(function.__code__.co_filename).parent)
    previous, config.CACHE_DIR = config.CACHE_DIR, str(folder)  # numba reads it while the decorator runs
    try:
        return njit(cache=True, nogil=True, **options)(function)
    finally:
        config.CACHE_DIR = previous
