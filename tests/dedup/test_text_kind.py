"""Code and tables told from prose: against the rule in plain Python, on fixtures, and on genuine records."""

import csv
import gzip
import io
import json
import re
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup import DedupParameters, find_duplicates
from dedup.normalise import batch_of
from dedup.text_kind import BEGINNINGS, CODE, PROSE, TABLE, text_kinds
from pipeline_lib.stage import UserError

CALL = re.compile(r"[A-Za-z0-9_][(\[]")
SEPARATORS = [re.compile(pattern) for pattern in (r"\|", r"\t", ",", ";", r"(?<! ) {2,}(?! )")]


def looks_like_code(line: str) -> bool:
    if "\\" in line:
        return False
    if line[-1] in "{};" or line.startswith(BEGINNINGS) or set(line) <= set(")]},;"):
        return True
    return "$" not in line and (" = " in line or (CALL.search(line) is not None and line[-1] in ")]({[:,'\""))


def kind_of(text: str) -> int:
    lines = [line for line in (line.strip(" \t\r\f\v") for line in text.split("\n")) if line]
    in_table = [0] * len(SEPARATORS)
    for number, separator in enumerate(SEPARATORS):
        counts = [len(separator.findall(line)) for line in lines]
        at = 0
        while at < len(counts):
            after = next((k for k in range(at, len(counts)) if counts[k] != counts[at]), len(counts))
            if counts[at] >= 2 and after - at >= 4:
                in_table[number] += after - at
            at = after
    if lines and 3 * max(in_table) >= 2 * len(lines):
        return TABLE
    return CODE if len(lines) >= 5 and 2 * sum(map(looks_like_code, lines)) >= len(lines) else PROSE


def kinds(texts: list[str]) -> list[int]:
    return text_kinds(batch_of(texts)).tolist()


fragments = st.sampled_from(
    [
        "a",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "|",
        ",",
        ";",
        "x = 1",
        "f(x)",
        "def ",
        "{",
        "}",
        "#",
        "$",
        "\\",
        "é",
        "\r",
        ":",
        "=",
    ]
)


@pytest.mark.slow
@settings(deadline=None)  # the first call compiles
@given(st.lists(st.lists(fragments, max_size=60).map("".join), max_size=5))
def test_the_compiled_rule_is_the_plain_one(texts):
    assert kinds(texts) == [kind_of(text) for text in texts]


TABLES = [
    "| name | size |\n|---|---|\n| a | 1 |\n| b | 2 |\n| c | 3 |",
    "name,size,colour\na,1,red\nb,2,blue\nc,3,green\nd,4,red",
    "a\t1\t2\nb\t3\t4\nc\t5\t6\nd\t7\t8",
    "Title of the table\n\nname     size  colour\nfirst       1  red\nsecond     22  blue\nthird       3  green",
]
PROGRAMS = [
    "import os\nimport sys\n\ndef f(x):\n    y = x + 1\n    return y\n",
    '#include <stdio.h>\nint main(void) {\n  printf("%d", 1);\n  return 0;\n}\n',
    "function f(a) {\n  if (a) {\n    return g(a);\n  }\n}",
]
TEXTS = [
    "",
    "one line",
    "The river runs, in May, to the sea.\nIt takes stone, sand and ice.\nWho knows how much?\nSome guess.\nOne asks.",
    "Call f(x) to begin.\nThen wait a while.\nNothing happens at first.\nSoon it does.\nThat is all.",
    "\\begin{equation}\nf(x) = y\n\\end{equation}\nwhere $g(x) = 2$,\nwe have seen\nthat all is well.",
]


def test_fixtures_are_what_they_are():
    assert kinds(TABLES) == [TABLE] * len(TABLES)
    assert kinds(PROGRAMS) == [CODE] * len(PROGRAMS)
    assert kinds(TEXTS) == [PROSE] * len(TEXTS)


def read_lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def test_genuine_prose_is_prose_and_genuine_tables_are_tables(shared_data):
    web = read_lines(shared_data / "pretrain_text" / "c4_demo.jsonl.gz")
    posts = read_lines(shared_data / "webdocs" / "us_gov_posts.jsonl.gz")
    papers = read_lines(shared_data / "pretrain_text" / "arxiv.part1.jsonl.gz")
    for records in (web, posts, papers):
        found = Counter(kinds([record["text"] for record in records]))
        assert found[PROSE] >= 0.99 * len(records) - 1, found
    tables = []
    for file in sorted((shared_data / "mmlu").glob("*/*.csv")):
        rows = list(csv.reader(file.read_text().splitlines()))
        text = io.StringIO()
        csv.writer(text, delimiter="\t").writerows([[cell.replace("\t", " ") for cell in row] for row in rows])
        tables.append(text.getvalue())
    assert kinds(tables) == [TABLE] * len(tables)


def test_genuine_code_is_code(shared_data):
    answers = [
        r["response"] for r in json.loads((shared_data / "alpaca" / "gpteacher_codegen-instruct.json").read_text())
    ]
    answers = [answer for answer in answers if len([line for line in answer.split("\n") if line.strip()]) >= 5]
    found = Counter(kinds(answers))
    assert found[CODE] >= 0.9 * len(answers), found
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    found = Counter(kinds([file.read_text(encoding="utf-8", errors="replace") for file in files]))
    assert found[CODE] >= 0.6 * len(files), found


def test_code_and_tables_are_compared_exactly_when_that_is_asked_for(oracle, tmp_path):
    table = "\n".join(f"| item {n} | {n * 7} | in stock |" for n in range(200))
    program = "\n".join(f"value_{n} = compute({n}, {n * 3})" for n in range(200))
    text = " ".join(f"word{n}" for n in range(200))
    pairs = {"table": (table, table.replace("| 70 |", "| 71 |")), "code": (program, program.replace("(10,", "(11,"))}
    records = [{"id": f"{name}-{n}", "text": part} for name, pair in pairs.items() for n, part in enumerate(pair)]
    records += [{"id": f"exact-{n}", "text": table + " "} for n in range(2)]
    records += [{"id": "text-0", "text": text}, {"id": "text-1", "text": text + " more"}]
    files = oracle.write_shards(tmp_path, records)

    def removed(*exact_kinds: str) -> set[str]:
        receipts = find_duplicates(files, DedupParameters(exact_kinds=exact_kinds), 1, tmp_path / "scratch")
        return set(receipts["id"].to_pylist())

    always = {"exact-1", "table-0", "text-0"}
    assert removed() == always | {"table-1", "code-1"}
    assert removed("table") == always | {"code-1"}
    assert removed("code", "table") == always
    with pytest.raises(UserError, match="exact_kinds is 'prose'; choose one of code, table"):
        DedupParameters(exact_kinds=("prose",))
