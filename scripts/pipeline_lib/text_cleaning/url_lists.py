"""Block lists of web addresses: what FineWeb removes before it reads a page.

What: listed domains (the address's host, or any domain it lies below), listed addresses, and words in the address that
are banned alone, banned anywhere, or banned when there are several. The lists are the ones inside the installed
datatrove package (4.6 million domains of the UT1 collection of Université Toulouse Capitole), yours, or both.
How: the domains are kept as sorted 64-bit hashes, 8 bytes each; a false match has a chance of one in a million.
Cost: about two seconds and 40 MB per process for datatrove's lists.
Difference from datatrove: it looks up the registered domain and the full host; here every domain between the two counts
as well, so that a listed blogs.example.org blocks a.blogs.example.org, and no list of public suffixes is needed. A
document without an address passes; datatrove stops with an error.
"""

import re
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import StageFailure, UserError, bytes_digest

from .words import hash_bytes

if TYPE_CHECKING:
    from pipeline_lib.config.clean import CleanSettings, UrlSettings

URL_COLUMNS = ("blocked_domain", "blocked_url", "banned_url_words", "banned_url_subwords", "soft_banned_url_words")
ARCHIVE = "url_filterblacklistsv0_3_0.tar.gz"

_OTHER = re.compile("[^a-zA-Z0-9]+")


class UrlLists:
    """The lists, loaded once per process."""

    def __init__(self, settings: "UrlSettings"):
        """Raises UserError for a list file that cannot be read, StageFailure when datatrove's lists are missing."""
        domains = [line.strip().lower().encode() for line in settings.blocked_domains]
        urls = [line.strip().encode() for line in settings.blocked_urls]
        self._banned = {_squeeze(word) for word in settings.banned_words}
        self._soft = {_squeeze(word) for word in settings.soft_banned_words}
        self._anywhere = {_squeeze(word) for word in settings.banned_subwords}
        listed = [_line_hashes(_lowered(_read(file))) for file in settings.domain_files]
        addresses = []
        if settings.datatrove_lists:
            folder = _datatrove_assets()
            with tarfile.open(folder / ARCHIVE) as archive:
                listed.append(_line_hashes(archive.extractfile("domains").read()))
                addresses.append(_line_hashes(archive.extractfile("urls").read()))
            self._banned |= _words_of(folder / "banned_words.txt")
            self._soft |= _words_of(folder / "soft_banned_words.txt")
            self._anywhere |= _words_of(folder / "banned_subwords.txt")
        self._domains = np.unique(np.concatenate([_line_hashes(b"\n".join(domains)), *listed]))
        self._urls = np.unique(np.concatenate([_line_hashes(b"\n".join(urls)), *addresses]))
        for words in (self._banned, self._soft, self._anywhere):
            words.discard("")

    def score(self, urls: list[str | None]) -> dict[str, np.ndarray]:
        """Return {URL_COLUMNS: int32[documents]}: 0 or 1 for the lists, numbers of different words for the words."""
        columns = {name: np.zeros(len(urls), np.int32) for name in URL_COLUMNS}
        hosts: list[bytes] = []
        owners: list[int] = []
        for number, url in enumerate(urls):
            if not url:
                continue
            above = _domains_of(url)
            hosts += above
            owners += [number] * len(above)
            words = set(_OTHER.split(url))
            columns["banned_url_words"][number] = len(words & self._banned)
            columns["soft_banned_url_words"][number] = len(words & self._soft)
            squeezed = _squeeze(url)
            columns["banned_url_subwords"][number] = sum(word in squeezed for word in self._anywhere)
        found = _are_in(_hashes(hosts), self._domains)
        columns["blocked_domain"][np.array(owners, np.int64)[found]] = 1
        given = [number for number, url in enumerate(urls) if url]
        addresses = [urls[number].removesuffix("\r").encode() for number in given]
        columns["blocked_url"][np.array(given, np.int64)[_are_in(_hashes(addresses), self._urls)]] = 1
        return columns


def own_list_files(settings: "CleanSettings") -> dict[str, str]:
    """Return {file: digest} of the user's lists of domains where they count. Raises UserError for one that is gone."""
    if "url" not in settings.quality_rules:
        return {}
    return {file: bytes_digest(_read(file)) for file in settings.url.domain_files}


def _squeeze(text: str) -> str:
    return _OTHER.sub("", text).lower()


def _words_of(file: Path) -> set[str]:
    return {_squeeze(line) for line in file.read_text("utf-8").splitlines() if not line.startswith("#")}


def _domains_of(url: str) -> list[bytes]:
    """Return the host of an address and every domain above it that has a dot in it."""
    rest = url.split("://", 1)[-1]
    host = re.split("[/?#\\s]", rest, maxsplit=1)[0].rpartition("@")[2].split(":")[0].rstrip(".").lower()
    labels = host.split(".")
    return [".".join(labels[i:]).encode() for i in range(max(len(labels) - 1, 1)) if labels[i]]


def _datatrove_assets() -> Path:
    package = find_spec("datatrove")
    folder = Path(package.submodule_search_locations[0], "assets") if package else None
    if folder is None or not (folder / ARCHIVE).is_file():
        raise StageFailure(
            "datatrove's block lists are missing: install it (pip install -r requirements.txt) or set"
            " clean.url.datatrove_lists to false"
        )
    return folder


def _read(file: str) -> bytes:
    from pipeline_lib.config import resolve_path

    path = resolve_path(file)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"clean.url.domain_files: {path} cannot be read ({error.strerror})") from None


def _lowered(data: bytes) -> bytes:
    """Return a list as hosts are looked up: in lower case, without a byte order mark; what is no UTF-8 stays."""
    return data.decode("utf-8-sig", "surrogateescape").lower().encode("utf-8", "surrogateescape")


def _are_in(hashes: np.ndarray, listed: np.ndarray) -> np.ndarray:
    if not listed.size:
        return np.zeros(hashes.size, np.bool_)
    places = np.minimum(np.searchsorted(listed, hashes), listed.size - 1)
    return listed[places] == hashes


def _hashes(texts: list[bytes]) -> np.ndarray:
    """Return the hash of every text, uint64[texts]; of a list's line it is that of the line."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return _hash_each(np.frombuffer(b"".join(texts), np.uint8), offsets)


@kernel
def _hash_each(data, offsets):
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(hashes)):
        hashes[i] = hash_bytes(data, offsets[i], offsets[i + 1])
    return hashes


def _line_hashes(data: bytes) -> np.ndarray:
    """Return the hash of every line, without blanks around it, that is not empty and no comment: uint64[lines]."""
    return _hash_lines(np.frombuffer(data, np.uint8))


@kernel
def _hash_lines(data):
    count = 1
    for i in range(data.size):
        count += data[i] == 0x0A
    hashes = np.empty(count, np.uint64)
    found = 0
    begin = 0
    for i in range(data.size + 1):
        if i < data.size and data[i] != 0x0A:
            continue
        end = i
        while begin < end and data[begin] <= 0x20:
            begin += 1
        while begin < end and data[end - 1] <= 0x20:
            end -= 1
        if end > begin and data[begin] != 0x23:  # "#" begins a comment
            hashes[found] = hash_bytes(data, begin, end)
            found += 1
        begin = i + 1
    return hashes[:found]
