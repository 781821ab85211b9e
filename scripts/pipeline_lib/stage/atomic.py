"""Files that are either whole or absent.

What: write beside the target, fsync, rename over it, fsync the folder. POSIX rename is atomic, so a reader (or the
next start after a power cut) sees the old file or the new one and never half of one.
Cost: two fsyncs per file, a few milliseconds on a disk; so batch small things into one file.
Trap: a rename without the first fsync can survive a power cut with an empty file; without the second, not at all.
"""

import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".tmp-"


def process_name() -> str:
    """Return a name that no other process has, also none of another machine that writes to the same disk."""
    return f"{platform.node()}-{os.getpid()}"


def temporary_beside(path: Path) -> Path:
    """Return a name in the same folder (rename cannot cross file systems) that keeps the suffix writers look at."""
    return path.with_name(f"{TEMPORARY_PREFIX}{process_name()}-{path.name}")


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make a file, or every file below a folder and the folders themselves, durable."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
            fsync_tree(child)
        fsync_folder(path)
        return
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def remove(path: Path) -> None:
    """Delete a file or a folder tree; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file `source` a second name on its disk, or copy it where the disk has no hard links.

    For a file that must not be lost between its old and its new owner. Raises FileExistsError when there is a `target`.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK):
            raise
        with open(source, "rb") as reader, open(target, "xb") as writer:
            shutil.copyfileobj(reader, writer)


def commit(temporary: Path, path: Path, durable: bool = True) -> None:
    """Make `temporary` (a file or a folder) durable and rename it to `path`, replacing what is there."""
    if durable:
        fsync_tree(temporary)
    if path.is_dir():  # rename cannot replace a folder that has content
        remove(path)
    os.replace(temporary, path)
    if durable:
        fsync_folder(path.parent)


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path; on a clean exit what was written there (a file or a folder) becomes `path`.

    An exception inside the block removes the temporary and leaves `path` as it was. With `durable=False` nothing is
    forced to disk: a killed process leaves the file whole or absent, a power cut may leave anything under its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    remove(temporary)
    try:
        yield temporary
        commit(temporary, path, durable)
    except BaseException:
        remove(temporary)
        raise


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all. Raises OSError (for example when the disk is full)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomic(path, text.encode("utf-8", "surrogatepass"))
