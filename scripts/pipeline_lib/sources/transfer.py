"""Bytes from a URL: whole files that continue where they broke off, or ranges of a file read in place.

A file is received into `<name>.partial`, continued with a Range request after every break, checked against its
digest, made durable and only then renamed, so a file under its own name is whole and right. The digest is the only
proof: lengths lie (a proxy that cuts a body and corrects Content-Length), and continued pieces may come from two
versions of a file. Wrong bytes are thrown away and fetched anew once; twice wrong is a failure that shows both digests.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.sources import SourceSettings
from ..stage import StageFailure, UserError
from ..stage.atomic import commit
from .base import Workbench
from .patience import Patience, TryAgain, retry_after

if TYPE_CHECKING:
    import httpx

_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_READ_BLOCK = 1 << 20
READ_AHEAD_BYTES = 8 << 20


class RangeIgnored(StageFailure):
    """The server answers a request for a part of a file with the whole file."""

    def __init__(self, url: str):
        super().__init__(f"{url}: the server ignores Range requests")


@dataclass(frozen=True, slots=True)
class Expected:
    """What proves a file right: `algorithm` is sha256, or git-sha1 (SHA-1 over git's blob header and the content)."""

    algorithm: str
    digest: str
    size: int | None = None

    def problem(self, path: Path) -> str | None:
        """What is wrong with the file, or None."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"it has {size} bytes, not {self.size}"
        digest = hashlib.sha1(usedforsecurity=False) if self.algorithm == "git-sha1" else hashlib.sha256()
        if self.algorithm == "git-sha1":
            digest.update(b"blob %d\x00" % size)
        with open(path, "rb") as stream:
            while block := stream.read(_READ_BLOCK):
                digest.update(block)
        if digest.hexdigest() != self.digest.lower():
            return f"its {self.algorithm} is {digest.hexdigest()}, not {self.digest.lower()}"
        return None


class Transfer:
    """Downloads for one source, over one connection pool."""

    def __init__(
        self,
        settings: SourceSettings,
        bench: Workbench,
        headers: dict[str, str] | None = None,
        permit: Callable[[], None] = lambda: None,
    ):
        """permit: called before every request; raises what forbids it."""
        self._settings, self._bench, self._permit = settings, bench, permit
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        self._pool: httpx.Client | None = None

    def patience(self, what: str) -> Patience:
        """A fresh count of failures with the source's limits."""
        return Patience(
            what, self._settings.attempts, self._settings.longest_wait_seconds, self._bench.say, self._bench.pause
        )

    def fetch(self, url: str, target: Path, expected: Expected) -> Path:
        """Make `target` the file behind `url`, continuing what an earlier attempt or process left.

        Raises UserError when the server refuses (401, 403, 404), StageFailure when attempts run out or the bytes are
        wrong twice.
        """
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        patience = self.patience(url)
        wrong = 0
        furthest = partial.stat().st_size if partial.exists() else 0
        while True:
            try:
                self._receive(url, partial, expected.size)
            except TryAgain as failure:
                received = partial.stat().st_size if partial.exists() else 0
                if received > furthest:
                    patience.progress()
                furthest = max(furthest, received)
                patience.wait(failure)
                continue
            problem = expected.problem(partial)
            if problem is None:
                break
            partial.unlink()
            furthest, wrong = 0, wrong + 1
            if wrong == 2:
                raise StageFailure(f"{url}: wrong bytes twice: {problem}; check the address and the expected digest")
            self._bench.say(f"  {url}: wrong bytes ({problem}), fetching it anew")
        commit(partial, target)
        return target

    def _receive(self, url: str, partial: Path, size: int | None) -> None:
        """Append to the partial file until the server's end of file. Raises TryAgain when it comes too early."""
        start = partial.stat().st_size if partial.exists() else 0
        if size is not None and start >= size:
            partial.touch()  # a file of no bytes is a file
            return
        with self._response(url, {"Range": f"bytes={start}-"} if start else {}) as response:
            first, total = _content_range(response)
            if response.status_code == 416:
                if total == start:
                    return
                partial.unlink(missing_ok=True)
                raise TryAgain(f"nothing at byte {start}, starting anew")
            continued = response.status_code == 206 and first == start
            if response.status_code == 206 and not continued:
                partial.unlink(missing_ok=True)
                raise TryAgain(f"asked for byte {start}, got byte {first}, starting anew")
            with open(partial, "ab" if continued else "wb") as stream:
                for block in response.iter_raw():
                    stream.write(block)
                    self._bench.pause()
        received = partial.stat().st_size
        whole = size if size is not None else total
        if whole is not None and received < whole:
            raise TryAgain(f"the body ended after {received} of {whole} bytes")

    def read_range(self, url: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the file, continued across breaks. Raises RangeIgnored when the server cannot."""
        patience = self.patience(url)
        data = bytearray()
        while len(data) < end - start:
            before = len(data)
            try:
                with self._response(url, {"Range": f"bytes={start + before}-{end - 1}"}) as response:
                    if response.status_code == 200:
                        raise RangeIgnored(url)
                    first, _ = _content_range(response)
                    if response.status_code != 206 or first != start + before:
                        raise TryAgain(f"asked for byte {start + before}, got status {response.status_code}")
                    for block in response.iter_raw():
                        data += block
                        self._bench.pause()
                if len(data) < end - start:
                    raise TryAgain(f"the body ended after {len(data)} of {end - start} bytes")
            except TryAgain as failure:
                if len(data) > before:
                    patience.progress()
                patience.wait(failure)
        return bytes(data[: end - start])

    def size_of(self, url: str) -> int | None:
        """The size of the file in bytes, asked once, or None where the server does not tell it. Raises TryAgain."""
        with self._response(url, {"Range": "bytes=0-0"}) as response:
            return _content_range(response)[1]

    def serves_ranges(self, url: str, size: int) -> bool:
        """Whether the server gives a part of the file when asked for one."""
        try:
            self.read_range(url, size - 1, size)
        except RangeIgnored:
            return False
        return True

    @contextmanager
    def _response(self, url: str, headers: dict[str, str]) -> Iterator["httpx.Response"]:
        """A streamed answer with a usable status; whatever may pass is raised as TryAgain, in the block as well.

        A signal ends it in the middle of a read: what the block appended to a file so far is continued another time.
        """
        import httpx

        self._permit()
        try:
            with (
                self._bench.while_waiting(),
                self._client().stream("GET", url, headers=headers) as response,
            ):
                _judge(url, response.status_code, retry_after(response.headers.get("Retry-After")))
                yield response
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise UserError(f"{url}: {error}; correct the address") from error
        except httpx.TransportError as error:
            raise TryAgain(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error

    def _client(self) -> "httpx.Client":
        if self._pool is None:
            import httpx

            timeout = httpx.Timeout(self._settings.timeout_seconds)
            self._pool = httpx.Client(headers=self._headers, timeout=timeout, follow_redirects=True)
        return self._pool


class RangedFile(io.RawIOBase):
    """A remote file as a seekable binary stream that asks for READ_AHEAD_BYTES at a time.

    Read ahead, because a Parquet row group is dozens of small neighbouring column chunks, and a hub counts requests.
    """

    def __init__(self, transfer: Transfer, url: str, size: int):
        self._transfer, self._url, self._size, self._position = transfer, url, size, 0
        self._window, self._window_start = b"", 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Offset of the next read, bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte offset."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the file goes."""
        wanted = max(0, min(len(buffer), self._size - self._position))
        filled = 0
        while filled < wanted:
            offset = self._position - self._window_start
            if not 0 <= offset < len(self._window):
                end = min(self._size, self._position + max(wanted - filled, READ_AHEAD_BYTES))
                self._window = self._transfer.read_range(self._url, self._position, end)
                self._window_start, offset = self._position, 0
            piece = self._window[offset : offset + wanted - filled]
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled


def _judge(url: str, status: int, wait: float | None) -> None:
    if status in (200, 206, 416):
        return
    if status in _PASSING_STATUS:
        raise TryAgain(f"status {status}", wait)
    if status in (401, 403):
        raise UserError(f"{url}: access refused (status {status}); accept the data's terms or give a token (HF_TOKEN)")
    if status in (404, 410):
        raise UserError(f"{url}: no such file (status {status}); correct the address")
    raise StageFailure(f"{url}: unexpected answer (status {status})")


def _content_range(response: "httpx.Response") -> tuple[int | None, int | None]:
    """(first byte, size of the whole file) as far as the answer tells."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match:
        first, _, total = match.groups()
        return (int(first) if first else None), (int(total) if total != "*" else None)
    length = response.headers.get("Content-Length", "")
    return None, int(length) if length.isdigit() and response.status_code == 200 else None
