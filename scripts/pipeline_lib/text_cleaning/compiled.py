"""`@kernel`: a numba function that releases the interpreter lock and whose compiled form is kept on disk.

Why not `njit(cache=True)` alone: numba watches only the file that a function stands in. After an update of `words.py`
the cached form of a caller in another file, with the old words compiled into it, would go on being used without a word.
So the cache folder here carries a digest of every file that has kernels: a change in one of them is a new folder.
"""

from functools import cache
from pathlib import Path

import xxhash
from numba import config, njit

FOLDER = Path(__file__).parent


@cache
def cache_folder() -> Path:
    """Return where the compiled kernels of exactly these sources are kept."""
    digest = xxhash.xxh3_64()
    for source in sorted(FOLDER.glob("*.py")):
        content = source.read_bytes()
        if b"@kernel" in content:
            digest.update(source.name.encode() + b"\0" + content)
    base = Path(config.CACHE_DIR) if config.CACHE_DIR else FOLDER / "__pycache__"
    return base / f"kernels-{digest.hexdigest()}"


def kernel(function):
    """Compile `function` at its first call; the place of its cache is settled now, while the decorator runs."""
    previous, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
    try:
        return njit(cache=True, nogil=True)(function)
    finally:
        config.CACHE_DIR = previous
