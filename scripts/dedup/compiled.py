"""`@kernel`: a numba function that releases the interpreter lock and keeps its machine code on disk.

Trap that this avoids: numba renews a cached function when the file it stands in changes, not when a function or a
constant that it takes from another file does. After an update of verify.py the machine code of clusters.py, with the
old comparison inside, would run on without a word. So the folder of the machine code is named by a digest of every file
of this package: a change anywhere is a new folder, and a compilation of some seconds.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import xxhash
from numba import config, njit

PACKAGE = Path(__file__).parent


@cache
def cache_folder() -> Path:
    """Return the folder for machine code made of exactly these sources; NUMBA_CACHE_DIR, if set, is its parent."""
    digest = xxhash.xxh3_64()
    for source in sorted(PACKAGE.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    parent = Path(config.CACHE_DIR) if config.CACHE_DIR else PACKAGE / "__pycache__"
    return parent / f"kernels-{digest.hexdigest()}"


def kernel(function: Callable | None = None, **options: Any) -> Any:
    """Compile `function` on its first call. `options` are numba's; use as `@kernel` or `@kernel(inline="always")`."""
    if function is None:
        return lambda decorated: kernel(decorated, **options)
    folder = cache_folder()
    previous, config.CACHE_DIR = config.CACHE_DIR, str(folder)  # numba reads it while the decorator runs
    try:
        return njit(cache=True, nogil=True, **options)(function)
    finally:
        config.CACHE_DIR = previous
