"""Open the packed cache of a run for a stage that reads it, whether stage 03 has finished it or is still at work."""

from typing import TYPE_CHECKING

from pipeline_lib.stage import UserError

from .cache_index import INDEX
from .reader import PackedCache
from .so_far import newest_index_name

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage, StageInput


def open_packed(stage: "Stage") -> "tuple[StageInput, PackedCache]":
    """Return stage 03 as the run has it now, and its cache with all plans read. Raises UserError.

    An unfinished one may move its files into place at any moment, so what fails to open then is opened once more.
    """
    packed = stage.input("03_packed")
    try:
        return packed, open_cache(packed)
    except (UserError, FileNotFoundError):
        if packed.finished:
            raise
    packed = stage.input_again("03_packed")
    return packed, open_cache(packed)


def open_cache(packed: "StageInput") -> PackedCache:
    """Return the cache of stage 03, finished or not, after verifying its tables. Raises UserError."""
    name = INDEX if packed.finished else newest_index_name(list(packed.manifest.files))
    packed.file(name)
    packed.file("token_bytes.npy")
    packed.files("tokenizer/*")
    cache = PackedCache(packed.path, command=packed.command, index=name)
    if cache.unfinished:
        _ = cache.token_bytes
        for context in cache.contexts:  # the files of the plans go when the cache is finished
            cache.table(context)
    return cache
