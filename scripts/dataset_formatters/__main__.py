"""Which format reads a file, what it would refuse, and what its first record becomes.

PYTHONPATH=scripts python -m dataset_formatters chat.jsonl                      the format is told by the records
PYTHONPATH=scripts python -m dataset_formatters pairs.parquet --format orca-dpo the drop reasons of this one

Exit code 0: every record was read; 1: some were refused, or no format fits; 2: the file or the format is not known.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pipeline_lib.stage import UserError
from pipeline_lib.stage.output import print_line

from .detect import records_read
from .record_files import records_of_file
from .validation import SAMPLE, DatasetValidationResult, validate_dataset


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_formatters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="JSON Lines, a JSON array or Parquet")
    parser.add_argument("--format", help="read the records by this format instead of the detected one")
    options = parser.parse_args(arguments)
    try:
        found = validate_dataset(options.file, options.format)
        _show(options.file, found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if found.is_valid else 1


def _show(path: Path, found: DatasetValidationResult) -> None:
    for line in _report(path, found):
        print_line(_printable(line))


def _report(path: Path, found: DatasetValidationResult) -> Iterator[str]:
    sample = [value for _, value in islice(records_of_file(path), SAMPLE)]
    for name, count in records_read(sample).items():
        if count:
            yield f"{name} reads {count} of the first {len(sample)} records"
    if found.format_type is not None:
        kept = found.total_samples - sum(found.refused.values())
        yield f"\nformat {found.format_type}: {kept} of {found.total_samples} records are read"
    for reason, count in found.refused.items():
        yield f"  dropped as {reason}: {count}"
    yield from (f"  {line}" for line in found.errors)
    yield from (f"  warning: {line}" for line in found.warnings)
    if found.sample_preview is not None:
        yield "\nthe first one:"
        yield json.dumps(found.sample_preview, ensure_ascii=False, indent=2)


def _printable(text: str) -> str:
    """Return a text without what the terminal's encoding cannot spell."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


if __name__ == "__main__":
    sys.exit(main())
