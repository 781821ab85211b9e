"""A finished stage 02 in miniature, made of the standard library's docstrings, for everything in this folder."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import yaml

from fork_launcher import run_script
from pipeline_lib.stage import Ledger, file_digest
from pipeline_lib.stage.manifest import FileEntry, Manifest

TINY = {"vocab_size": 1000, "contexts": [64, 256], "chunk_tokens": 20_000, "val_fraction": 0.05}


def docstrings_of(path: Path) -> str:
    tree = ast.parse(path.read_text("utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes)))


@pytest.fixture(scope="session")
def documents() -> list[dict[str, str]]:
    """Some 60 documents of real text in two sources, with a few characters that are hard to keep."""
    modules = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    texts = [text for text in map(docstrings_of, modules) if text]
    texts += ["one document that writes <|endoftext|> and <|im_end|> as text", "日本語 👩‍👩‍👧 naïve \x00 \r\n x", "a"]
    return [
        {
            "id": xxhash.xxh3_128_hexdigest(text.encode()),
            "text": text,
            "source": "library" if number % 3 else "other",
            "url": "",
            "origin": f"library.jsonl:{number + 1}",
            "license": "PSF-2.0",
        }
        for number, text in enumerate(texts)
    ]


def write_shards(folder: Path, documents: list[dict[str, str]], shards: int) -> list[Path]:
    """Write documents as text shards of the pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(shards):
        paths.append(folder / f"part-{number:05d}.parquet")
        table = pa.Table.from_pylist(documents[number::shards])
        pq.write_table(table, paths[-1], compression="zstd", row_group_size=20)
    return paths


class PackingRun:
    """A run folder whose stage 02 is finished, and the command that runs stage 03 in it."""

    def __init__(self, folder: Path, scripts: Path, documents: list[dict[str, str]], shards: int = 3, **settings):
        self.script = scripts / "03_tokenize_and_pack.py"
        self.folder = folder / "run"
        self.config = folder / "test.yaml"
        self.config.write_text(yaml.safe_dump({"run": "test", "seed": 7, "pack": {**TINY, **settings}}))
        self._finish_cleaning(documents, shards)

    def _finish_cleaning(self, documents: list[dict[str, str]], shards: int) -> None:
        write_shards(self.folder / "02_clean", documents, shards)
        self._describe_cleaning(documents)

    def add_text(self, documents: list[dict[str, str]], added: list[dict[str, str]]) -> None:
        """Let stage 02 have kept `added` in a shard of its own besides `documents`."""
        number = len(list((self.folder / "02_clean").glob("part-*.parquet")))
        write_shards(self.folder / "added", added, 1)[0].rename(self.folder / "02_clean" / f"part-{number:05d}.parquet")
        self._describe_cleaning([*documents, *added])

    def _describe_cleaning(self, documents: list[dict[str, str]]) -> None:
        clean = self.folder / "02_clean"
        paths = sorted(clean.glob("part-*.parquet"))
        ledger = Ledger()
        for document in documents:
            size = len((document["text"] or "").encode())
            ledger.enter("text", document["source"], documents=1, bytes=size)
            ledger.keep("text", document["source"], documents=1, bytes=size)
        files = {path.name: FileEntry(path.stat().st_size, file_digest(path)) for path in paths}
        made_from = {"inputs": {}, "settings": {}, "seed": 7, "data": {}, "code": {}}
        Manifest("02_clean", made_from, files, ledger.to_json(), {}, [], 0).write(clean / "manifest.json")

    @property
    def packed(self) -> Path:
        return self.folder / "03_packed"

    def start(self, *flags: str) -> subprocess.Popen:
        command = [sys.executable, str(self.script), "-c", str(self.config), "--run-dir", str(self.folder), *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")

    def run(self, *flags: str) -> tuple[int, str, str]:
        done = run_script(self.script.name, self.config, self.folder, *flags)
        return done.returncode, done.stdout, done.stderr

    def outputs(self) -> dict[str, str]:
        """Return {path: digest} of what the finished stage made."""
        return {name: entry.digest for name, entry in Manifest.read(self.packed / "manifest.json").files.items()}


@pytest.fixture
def packing_run(tmp_path: Path, scripts: Path) -> Callable[..., PackingRun]:
    """Make a run folder: packing_run(documents, shards=3, **settings of the pack section)."""
    return lambda documents, shards=3, **settings: PackingRun(tmp_path, scripts, documents, shards, **settings)


@pytest.fixture(scope="session")
def packed_run(tmp_path_factory: pytest.TempPathFactory, documents: list[dict[str, str]]) -> PackingRun:
    """One finished run of stage 03 that tests may read and must not change."""
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    run = PackingRun(tmp_path_factory.mktemp("packed"), scripts, documents)
    code, out, err = run.run()
    assert code == 0, out + err
    return run
