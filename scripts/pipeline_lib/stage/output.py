"""Printing that outlives its reader: a closed pipe (`| head`, a lost ssh connection) must not end hours of training."""

import os
import sys


def print_line(line: str) -> None:
    """Print one line at once; when nobody reads any more, go on in silence (log.txt keeps what a stage says)."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
