"""How much memory can still be had: the machine's, or less in a container."""

from pathlib import Path

import psutil
import pytest

from pipeline_lib.stage.memory import container_limit, free_bytes


def container(folder: Path, limit: str, current: int, inactive_file: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 7\nfile 9\ninactive_file {inactive_file}\nactive_file 1\n")
    return folder


def test_a_container_has_what_its_limit_leaves_and_cached_pages_are_given_up(tmp_path):
    cgroup = container(tmp_path, str(100 << 20), current=60 << 20, inactive_file=20 << 20)
    assert container_limit(cgroup) == 100 << 20 and free_bytes(cgroup) == 60 << 20
    container(tmp_path, str(100 << 20), current=130 << 20, inactive_file=20 << 20)
    assert free_bytes(cgroup) == 0


@pytest.mark.parametrize("limit", ["max", str(1 << 60), None])
def test_without_a_limit_that_binds_it_is_what_the_machine_has(tmp_path, limit):
    cgroup = tmp_path if limit is None else container(tmp_path, limit, 1 << 20, 0)
    assert free_bytes(cgroup) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
