"""Open the packed cache of a run for a stage that reads it, whether stage 03 has finished it or is still at work."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pipeline_lib.stage import UserError

from .cache_index import INDEX
from .reader import PackedCache
from .so_far import newest_index_name

if TYPE_CHECKING:
    from pipeline_lib.stage import Stage, StageInput

Content = TypeVar("Content")


def open_packed(stage: "Stage") -> "tuple[StageInput, PackedCache]":
    """Return stage 03 as the run has it now, and its cache with all plans read. Raises UserError."""
    return read_packed(stage, lambda packed: (packed, open_cache(packed)))


def read_packed(stage: "Stage", read: "Callable[[StageInput], Content]") -> Content:
    """Return what `read` makes of stage 03 as the run has it now. Raises UserError.

    An unfinished one may move its files into place at any moment, so what cannot be read then is read once more.
    """
    packed = stage.input("03_packed")
    try:
        return read(packed)
    except (UserError, FileNotFoundError):
        if packed.finished:
            raise
    return read(stage.input_again("03_packed"))


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
