"""Content digests: 128-bit xxh3, because a digest that is slower than the disk would not be checked on every read.

They find damage and change, not malice: files from the network carry a sha256 of their own (sources/http.py).
"""

import json
from pathlib import Path
from typing import Any

import xxhash

_BLOCK_BYTES = 1 << 22
_WHOLE_DIGEST_BYTES = 64 << 20
_SAMPLE_BYTES = 1 << 20
_SAMPLES = 16


def bytes_digest(data: bytes) -> str:
    """Return the digest of `data` as `xxh3:` and 32 hexadecimal digits."""
    return "xxh3:" + xxhash.xxh3_128_hexdigest(data)


def file_digest(path: Path) -> str:
    """Return the digest of the file's bytes; memory use does not depend on its size. Raises OSError."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            state.update(block)
    return "xxh3:" + state.hexdigest()


def content_digest(file: Path) -> dict[str, Any]:
    """Size and xxh3-128 digest of a file: of all of it up to 64 MiB, of 16 spread blocks and the mtime beyond.

    A corpus of hundreds of gigabytes could not be read whole each time a run asks whether it is up to date.
    """
    status = file.stat()
    digest = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        if status.st_size <= _WHOLE_DIGEST_BYTES:
            while block := stream.read(_SAMPLE_BYTES):
                digest.update(block)
            return {"bytes": status.st_size, "xxh3": digest.hexdigest()}
        for index in range(_SAMPLES):
            stream.seek((status.st_size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return {"bytes": status.st_size, "xxh3_of_samples": digest.hexdigest(), "modified_ns": status.st_mtime_ns}


def canonical_json(value: Any) -> bytes:
    """Return one spelling per value: sorted keys, no spaces, UTF-8; NaN is refused because it equals nothing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def json_digest(value: Any) -> str:
    """Return the digest of a JSON value, independent of key order and formatting."""
    return bytes_digest(canonical_json(value))
