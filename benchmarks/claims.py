"""The README's table of claims, filled from benchmarks/RESULTS.md: no figure in it is typed by hand.

    python benchmarks/claims.py      rewrite the table, as after new results (a test compares the two files)

A claim names a benchmark and words that only one of its rows has. A benchmark that is not measured, or whose rows were
reworded, is an error: the README never shows a figure that RESULTS.md does not hold.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- measured: python benchmarks/claims.py -->\n", "<!-- end of measured -->\n"


@dataclass(frozen=True)
class Claim:
    """A line of the README: what is compared, and where its figures lie."""

    text: str
    benchmark: str
    row: str


CLAIMS = (
    Claim("02: all Gopher and FineWeb scores; datatrove's filters at their best", "cleaning_quality", "at its best"),
    Claim("02: the same; datatrove as documented", "cleaning_quality", "as documented"),
    Claim("02: personal data, nine validated kinds; datatrove's PIIFormatter", "personal_data", "personal data found"),
    Claim("02: 13-gram decontamination; datatrove's", "cleaning_stage", "decontamination"),
    Claim("02: near-duplicates, verified; datatrove's MinHash", "dedup_speed", "datatrove, four stages, 2 tasks, as"),
    Claim("02: the same; datasketch in bulk, unverified", "dedup_speed", "datasketch, bulk"),
    Claim("02: the same; rensa, unverified", "dedup_speed", "rensa"),
    Claim("03: Parquet to packed tokens; Hugging Face datasets + TRL", "packing_speed", "as documented"),
    Claim("03: encoding alone, same ids; Hugging Face tokenizers", "packing_speed", "encoding, against HF"),
    Claim(
        "03: Parquet to packed tokens; gigatoken, which only encodes",
        "packing_speed",
        "59 MB, against bare gigatoken on text",
    ),
    Claim("03: packing; TRL's best fit", "packing_rules", "as documented"),
    Claim("05: time to the peer's loss; Hugging Face Trainer after a sweep", "pretrain_time_to_quality", "Trainer"),
    Claim("05: the same; litgpt after a sweep", "pretrain_time_to_quality --peers litgpt --batches 4 8", "litgpt"),
    Claim("05: the same, 75 seconds a run; litgpt after a sweep", "pretrain_time_to_quality --reduced", "litgpt"),
)


def rows_of(results: str, benchmark: str) -> list[dict[str, str]]:
    """Return the rows of a benchmark's section. Raises ValueError when there is no such section with rows."""
    for section in re.split(r"^## ", results, flags=re.M)[1:]:
        if section.partition("\n")[0].strip() != benchmark:
            continue
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line] for line in lines]
        return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    command = f"python benchmarks/run_all.py {benchmark.replace(' ', ' -- ', 1)}"  # options follow a --
    raise ValueError(f"RESULTS.md has no section {benchmark}; run {command}")


def table(results: str, claims: tuple[Claim, ...] = CLAIMS) -> str:
    """Return the claims as a Markdown table. Raises ValueError for a claim without a row of its own."""
    lines = ["| stage: what; against what | ours | theirs | ratio |", "|---|---|---|---|"]
    for claim in claims:
        found = [row for row in rows_of(results, claim.benchmark) if claim.row in f"{row['claim']} {row['peer']}"]
        if len(found) != 1:
            raise ValueError(f"{claim.benchmark}: {len(found)} rows say {claim.row!r}, not one")
        row = found[0]
        lines.append(f"| {claim.text} | {row['ours']} | {row['peer']} | {row['ratio']} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str, results: str) -> str:
    """Return the README with its table filled anew. Raises ValueError when it has no place for one."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no lines {BEGIN.strip()} and {END.strip()}")
    return head + begin + table(results) + end + tail


def main() -> None:
    """Rewrite the table of README.md."""
    from pipeline_lib.stage import write_bytes_atomic

    readme, results = ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md"
    write_bytes_atomic(readme, with_table(readme.read_text(), results.read_text()).encode())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
