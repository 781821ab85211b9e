"""safetensors reports a full disk as its own exception; the rest of the program expects an OSError with its number."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_os_errors(path: Path) -> Iterator[None]:
    """Turn a SafetensorError that carries an operating-system error into that OSError, naming `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
