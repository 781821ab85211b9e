"""Oracles for dedup: the same definitions in plain Python, slow and obvious, and corpora whose answer is known."""

import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup.corpus import Corpus

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for cuda_in_cpp

MASK = 2**64 - 1


def normal_form(text: str) -> str:
    """The documented normal form, straight from unicodedata."""
    folded = []
    for character in text:
        if unicodedata.category(character) == "Cs":
            folded += "\ufffd" * 3  # not encodable: three bytes that are not UTF-8
            continue
        if unicodedata.category(character) == "Cc" or character.isspace():
            folded.append(" ")
            continue
        selector = 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF
        mongolian = ord(character) in (0x180B, 0x180C, 0x180D, 0x180F)
        if unicodedata.category(character) == "Cf" or selector or mongolian or character == "\u034f":
            continue
        form = unicodedata.normalize("NFKD", character)
        for _ in range(4):
            form = unicodedata.normalize("NFKD", form.casefold())
        folded.append(form)
    return " ".join(part for part in "".join(folded).split(" ") if part)


def is_spaceless(character: str) -> bool:
    """Scripts without spaces, by the names of their characters (another source than the block list under test)."""
    name = unicodedata.name(character, "")
    scripts = "CJK UNIFIED|CJK COMPATIBILITY|HIRAGANA|KATAKANA|BOPOMOFO|THAI|LAO|KHMER|MYANMAR"
    return name.startswith(tuple(scripts.split("|")))


def word_tokens(normal: str) -> list[str]:
    """Tokens of a normalised text of Latin, Greek, Cyrillic, Hangul, Han, kana, Thai, Khmer or Myanmar letters."""
    tokens: list[str] = []
    is_open = is_single = False
    for character in normal:
        category = unicodedata.category(character)[0]
        if category == "M":
            if is_open:
                tokens[-1] += character
        elif category in "LN" or character == "_":
            single = is_spaceless(character)
            if is_open and not single and not is_single:
                tokens[-1] += character
            else:
                tokens.append(character)
            is_open, is_single = True, single
        else:
            is_open = False
    return tokens


def mix(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & MASK
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ value >> 33


def token_hash(token: str) -> int:
    data = token.encode()
    state = 0x9AE16A3B2F90404F ^ len(data) * 0xC2B2AE3D27D4EB4F & MASK
    for at in range(0, max(len(data) - 1, 0) // 8 * 8, 8):
        state = (state ^ int.from_bytes(data[at : at + 8], "little")) * 0x9E3779B97F4A7C15 & MASK
        state ^= state >> 33
    rest = data[max(len(data) - 1, 0) // 8 * 8 :]
    return mix((state ^ int.from_bytes(rest, "little")) * 0x9E3779B97F4A7C15 & MASK)


def shingle_hashes(tokens: list[str], ngram: int) -> list[int]:
    hashes = [token_hash(token) for token in tokens]
    step = 0xD1342543DE82EF95
    return [
        mix(sum(value * pow(step, offset, 2**64) for offset, value in enumerate(hashes[at : at + ngram])) & MASK)
        for at in range(len(hashes) - ngram + 1)
    ]


def shingle_set(text: str, ngram: int = 5) -> set[tuple[str, ...]]:
    """The set itself, of words, not of hashes."""
    tokens = word_tokens(normal_form(text))
    return {tuple(tokens[at : at + ngram]) for at in range(len(tokens) - ngram + 1)}


def jaccard(left: set, right: set) -> float:
    return len(left & right) / len(left | right) if left | right else 0.0


class Planted:
    """A seeded corpus of random documents, some of which are edited copies of others."""

    def __init__(self, seed: int, originals: int = 60, words: int = 3000):
        self.random = random.Random(seed)
        self.vocabulary = [f"word{number}" for number in range(words)]
        self.records: list[dict] = []
        for number in range(originals):
            text = self.words(self.random.randint(30, 300))
            self.add(f"original-{number}", text)
            for copy in range(self.random.choice([0, 0, 1, 1, 3])):
                self.add(f"copy-{number}-{copy}", self.edited(text, self.random.choice([0.0, 0.005, 0.02, 0.05, 0.1])))
        self.random.shuffle(self.records)

    def words(self, count: int) -> list[str]:
        return [self.random.choice(self.vocabulary) for _ in range(count)]

    def edited(self, words: list[str], fraction: float) -> list[str]:
        return [self.random.choice(self.vocabulary) if self.random.random() < fraction else word for word in words]

    def add(self, identity: str, words: list[str]) -> None:
        quality = self.random.choice([0.1, 0.5, 0.9])
        source = self.random.choice(["books", "web", "code"])
        self.records.append({"id": identity, "text": " ".join(words), "source": source, "quality": quality})


def write_shards(folder: Path, records: list[dict], shards: int = 1, row_group: int = 1000) -> list[Path]:
    """Write records to `shards` parquet files, dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(shards):
        path = folder / f"part-{number:05d}.parquet"
        table = pa.Table.from_pylist(records[number::shards] or records[:0], schema=schema_of(records))
        pq.write_table(table, path, row_group_size=row_group)
        files.append(path)
    return files


def schema_of(records: list[dict]) -> pa.Schema:
    kinds = {"quality": pa.float32()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in records[0]])


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    """The plain-Python definitions."""
    return SimpleNamespace(
        normal_form=normal_form,
        word_tokens=word_tokens,
        mix=mix,
        token_hash=token_hash,
        shingle_hashes=shingle_hashes,
        shingle_set=shingle_set,
        jaccard=jaccard,
        Planted=Planted,
        write_shards=write_shards,
    )


@pytest.fixture
def held_elsewhere():
    """Return a function that has another process take the lock of a folder, and returns its process id."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); from pipeline_lib.stage.lock import *"
    program += "; lock = StageLock(Path(sys.argv[2]) / LOCK, print); print('held', flush=True); input()"
    holders = []

    def hold(folder: Path) -> int:
        scripts = Path(__file__).resolve().parents[2] / "scripts"
        command = [sys.executable, "-c", program, str(scripts), str(folder)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout.readline() == "held\n"
        return holder.pid

    yield hold
    for holder in holders:
        holder.communicate("\n")


@pytest.fixture(scope="module")
def parts(oracle, tmp_path_factory):
    """Three sources that share documents, each in two files."""
    folder = tmp_path_factory.mktemp("sources")
    records = oracle.Planted(seed=21, originals=80).records
    return {
        name: Corpus(tuple(oracle.write_shards(folder / name, records[number::3], 2, row_group=9)))
        for number, name in enumerate("abc")
    }
