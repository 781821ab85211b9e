"""The claim table: what a dead process held is free, and what is published is not begun again."""

import os
import signal
from pathlib import Path

import pytest

from pipeline_lib.packing.claims import ClaimTable


def test_the_claims_of_a_dead_process_are_free(tmp_path: Path):
    done = {"a"}
    first, found = ClaimTable(tmp_path / "claims", ["a", "b", "c"]), []
    for key in first.unfinished(done.__contains__, found=found.append):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:  # another process sees the claim
            other = ClaimTable(tmp_path / "claims", ["a", "b", "c"])
            os.write(writer, next(other.unfinished(done.__contains__, backwards=True)).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert os.read(reader, 1).decode() == ("c" if key == "b" else "b")
        done.add(key)
        if key == "b":
            break
    rest = list(ClaimTable(tmp_path / "claims", ["a", "b", "c"]).unfinished(done.__contains__))
    assert rest == ["c"] and found == ["a"]


def test_the_claims_of_work_that_is_published_or_discarded_are_not_made_anew(tmp_path: Path):
    folder = tmp_path / "claims"
    with pytest.raises(FileNotFoundError):
        ClaimTable(folder / "encode-part-0", ["a"])
    assert not folder.exists()
    folder.mkdir()
    late = ClaimTable(folder / "encode-part-0", ["a"])
    folder.rename(tmp_path / "removed")
    folder.mkdir()  # of other work
    first = ClaimTable(folder / "encode-part-0", ["a"])
    with pytest.raises(FileNotFoundError, match="a was published or discarded"):
        next(late.unfinished(lambda key: False))
    assert next(first.unfinished(lambda key: False)) == "a"
