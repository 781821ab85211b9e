"""What lies below the folders of a local source, behind links too, and words for the part of it that is not read."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NoReturn

from ..data_file_names import COMPRESSIONS
from ..stage import UserError

_SUFFIXES_SHOWN = 5


def files_among(paths: Sequence[Path]) -> list[Path]:
    """Every file among the paths and below the folders among them, each once, in the order of their names.

    A file that is one of the paths may be hidden, and is called so whatever links in the folders lead to it. Raises
    UserError like `files_below`.
    """
    folders = [path for path in paths if path.is_dir()]
    below = set(files_below(*folders))
    named = set(paths).difference(folders)
    real = cache(os.path.realpath)
    names: dict[tuple[str, str], Path] = {}
    for file in sorted(below | named, key=lambda file: (file not in named, len(file.parts), file not in below, file)):
        names.setdefault((real(file.parent), file.name), file)
    return sorted(names.values())


def files_below(*tops: Path) -> list[Path]:
    """Every file below, in the order of their names; what is hidden (its name begins with a dot) is left out.

    Linked folders are entered, each folder once: under its own name if it has one here, else that of the first link.
    Links that lead back to a folder above therefore end. Links to nothing are among the files. Raises UserError for a
    folder that cannot be listed.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = sorted(tops, key=lambda top: (top.is_symlink(), len(top.parts), top))  # a link back is longer
    while waiting:
        links: list[Path] = []
        for top in waiting:
            for here, folders, files in os.walk(top, onerror=_cannot_be_listed):
                status = Path(here).stat()
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                links += [path for name in folders if (path := Path(here, name)).is_symlink()]
                found += [Path(here, name) for name in files if not name.startswith(".")]
        waiting = sorted(links)
    return sorted(found)


def _cannot_be_listed(error: OSError) -> NoReturn:
    raise UserError(
        f"the folder {error.filename} cannot be listed ({error.strerror}); correct its permissions, or `paths`"
    ) from error


def describe_left_out(files: Sequence[Path]) -> str:
    """Say how many files are not read, how many of them per suffix, and which is the first; all of it is UTF-8."""
    kinds = Counter(_kind(file) for file in files).most_common()
    shown = [f"{kind} {count:,}" for kind, count in kinds[:_SUFFIXES_SHOWN]]
    more = [f"and {len(kinds) - _SUFFIXES_SHOWN} more"] if len(kinds) > _SUFFIXES_SHOWN else []
    line = f"{len(files):,} files left out ({', '.join(shown + more)}), first {files[0]}"
    return os.fsencode(line).decode("utf-8", "backslashreplace")  # the bytes of a name need not be UTF-8


def _kind(file: Path) -> str:
    if not file.is_file():
        return "links to nothing" if file.is_symlink() else "no regular files"
    suffixes = [suffix.lower() for suffix in PurePosixPath(file.name).suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    return "".join(suffixes[-2:] if packed else suffixes[-1:]) or "no suffix"
