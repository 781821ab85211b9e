"""The folder of downloaded files of one source, with at most a file or two on disk at a time.

Units are read in order, so when a unit reads file n, every earlier file has been written out and committed: its
download is deleted then, and a source of terabytes needs the disk of one file. The folder lies in the stage's work
folder, survives a kill, and is gone when the stage is finished.
"""

import hashlib
from pathlib import Path, PurePosixPath

from ..config.sources import SourceSettings
from .base import Workbench
from .transfer import Expected, Transfer


class Downloads:
    """Fetches numbered files of a source into its folder and forgets the ones before."""

    def __init__(self, settings: SourceSettings, bench: Workbench, transfer: Transfer):
        self.folder = bench.scratch / f"{settings.kind}-{settings.name}"
        self._files = self.folder / "readers" / bench.reader if bench.reader else self.folder
        self._transfer = transfer

    def get(self, number: int, url: str, label: str, expected: Expected) -> Path:
        """The verified file with this number, downloaded if it is not there. `label` gives the suffix it keeps."""
        tag = hashlib.sha256(f"{url} {expected.digest}".encode()).hexdigest()[:12]
        target = self._files / f"{number:06d}-{tag}-{PurePosixPath(label).name[-80:]}"
        return self._transfer.fetch(url, target, expected)

    def forget_before(self, number: int) -> None:
        """Delete the downloads of files whose units are finished."""
        for file in sorted(self._files.glob("[0-9]*-*")):
            if int(file.name.partition("-")[0]) < number:
                file.unlink()
