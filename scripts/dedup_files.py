"""Deduplicate parquet files outside a run: once, against other files, or with an index that grows.

python scripts/dedup_files.py run SHARDS OUT --max-ram 512M        what stays of SHARDS, and removed.parquet
python scripts/dedup_files.py subtract A OUT --known B             A without what is in B
python scripts/dedup_files.py index add INDEX NAME SHARDS          add a source, paying only for the new data
python scripts/dedup_files.py index export INDEX NAME OUT          what stays of it now, with cluster sizes
python scripts/dedup_files.py index undo INDEX NAME                as if the source had never been added
"""

import argparse
import errno
import sys
from pathlib import Path
from typing import Any

EXAMPLE = '{"jaccard": 0.85}'


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="deduplicate a file or folder")
    run.add_argument("input", type=Path)
    run.add_argument("output", type=Path)
    subtract = commands.add_parser("subtract", help="remove from a file or folder what is in another")
    subtract.add_argument("input", type=Path)
    subtract.add_argument("output", type=Path)
    subtract.add_argument(
        "--known", type=Path, required=True, help="parquet file or folder whose documents are removed"
    )
    index = commands.add_parser("index", help="an index to which sources are added").add_subparsers(
        dest="action", required=True
    )
    for action, words in (
        ("add", "deduplicate a source against all before it"),
        ("undo", "take a source out"),
        ("forget", "take out a source of which files are damaged"),
        ("export", "write what stays of a source"),
        ("show", "list the sources"),
    ):
        command = index.add_parser(action, help=words)
        command.add_argument("index", type=Path)
        if action != "show":
            command.add_argument("name")
        if action in ("add", "export"):
            command.add_argument("input" if action == "add" else "output", type=Path)
        _add_settings(command)
    run.add_argument("--engine", choices=("local", "slurm", "ray"), help="datatrove executor (default: this process)")
    run.add_argument("--tasks", type=int, help="ranks of each step, with --engine (default: 1)")
    run.add_argument("--engine-options", help='datatrove\'s, as JSON: {"partition": "cpu", "time": "4:00:00"}')
    _add_settings(run)
    _add_settings(subtract)
    return top


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=int, help="threads (default: all cores)")
    command.add_argument("--max-ram", help="memory that may be reached, such as 512M; changes nothing but the time")
    command.add_argument("--parameters", default="{}", help='parameters that differ, as JSON: {"jaccard": 0.85}')
    for column in ("text", "id", "source", "quality"):
        command.add_argument(f"--{column}-column", default=column)


def main(options: argparse.Namespace) -> None:
    """Do what the command line asks. Raises UserError and StageFailure."""
    from dedup.cpu_dedup import fuzzy_dedup
    from dedup.index import DedupIndex, Run
    from dedup.memory_limit import parse_size
    from pipeline_lib.stage import UserError, available_cores

    parameters = _parameters(options.parameters)
    workers = options.workers or available_cores()
    limit = parse_size(options.max_ram) if options.max_ram else None
    run = Run(workers, limit, print)
    if options.command == "run" and options.engine:
        from dedup.scale_out import dedup_at_scale

        corpus, extra = (
            _corpus(options, options.input, options.output),
            _json("--engine-options", options.engine_options or "{}"),
        )
        tasks = 1 if options.tasks is None else options.tasks
        dedup_at_scale(corpus, options.output, parameters, options.engine, tasks, options.workers or -1, limit, extra)
    elif options.command == "run":
        for flag in ("tasks", "engine_options"):
            if getattr(options, flag) is not None:
                raise UserError(f"--{flag.replace('_', '-')} says how an engine works; give --engine too")
        fuzzy_dedup(
            options.input,
            options.output,
            parameters,
            text_column=options.text_column,
            id_column=options.id_column,
            source_column=options.source_column,
            quality_column=options.quality_column,
            workers=workers,
            max_ram=options.max_ram,
            one_file=False,
            say=print,
        )
    elif options.command == "subtract":
        _subtract(options, parameters, run)
    elif options.action == "forget":
        print("decided again:", ", ".join(DedupIndex.forget(options.index, options.name, run, parameters)) or "nothing")
    else:
        _change_index(options, DedupIndex.open(options.index, parameters), run)


def _parameters(text: str) -> Any:
    from dedup.parameters import DedupParameters
    from pipeline_lib.stage import UserError

    values = _json("--parameters", text)
    try:
        return DedupParameters(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except TypeError as error:
        raise UserError(f"--parameters {text!r} cannot be used ({error}); give JSON such as {EXAMPLE!r}") from None


def _json(flag: str, text: str) -> dict[str, Any]:
    import json

    from pipeline_lib.stage import UserError

    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{flag} {text!r} cannot be used ({error}); give JSON such as {EXAMPLE!r}") from None
    if not isinstance(values, dict):
        raise UserError(f"{flag} {text!r} cannot be used (not an object); give JSON such as {EXAMPLE!r}")
    return values


def _corpus(options: argparse.Namespace, path: Path, output: Path) -> Any:
    from dedup.corpus import Corpus
    from dedup.cpu_dedup import input_files

    columns = (options.text_column, options.id_column, options.source_column, options.quality_column)
    return Corpus(input_files(path, output, options.text_column), *columns)


def _subtract(options: argparse.Namespace, parameters: Any, run: Any) -> None:
    from dedup.cpu_dedup import RECEIPTS_NAME, check_outputs, write_kept_shards
    from dedup.index import DedupIndex, subtract
    from dedup.leftovers import empty, scratch_folder
    from pipeline_lib.stage import write_json_atomic
    from pipeline_lib.stage.workspace import read_json

    corpus = _corpus(options, options.input, options.output)
    known = _corpus(options, options.known, options.output)
    check_outputs(corpus, options.output, must_stay=known.files)
    corpus.check()
    known.check()
    with scratch_folder(options.output, print) as scratch:
        made_from = _identity(known, parameters)
        if read_json(scratch / "known.json") != made_from:  # a stopped start of other files or parameters left it
            empty(scratch)
            write_json_atomic(scratch / "known.json", made_from)
        index = DedupIndex.open(scratch / "known", parameters)
        if not index.sources:
            index.add("known", known, run, keep_all=True)
        removals = subtract(corpus, index.known(), parameters, scratch / "work", run)
        write_kept_shards(corpus, removals.stays(), options.output, run.workers)
        removals.write_receipts(options.output / RECEIPTS_NAME)
        empty(scratch)
    print(f"dedup: {len(removals)} of {removals.documents} documents are in {options.known} and were removed")


def _identity(corpus: Any, parameters: Any) -> dict[str, Any]:
    """Return what an index of these files depends on, as JSON."""
    import json

    from dedup.index_record import FORMAT

    status = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in corpus.files]
    columns = [corpus.text_column, corpus.id_column, corpus.source_column, corpus.quality_column]
    made_from = {"format": FORMAT, "files": status, "columns": columns, "parameters": parameters.decisive()}
    return json.loads(json.dumps(made_from))  # as it is read back: lists instead of tuples


def _change_index(options: argparse.Namespace, index: Any, run: Any) -> None:
    if options.action == "add":
        entry = index.add(options.name, _corpus(options, options.input, options.index), run)
        print(f"dedup: {entry['documents'] - entry['removed']} of {entry['documents']} documents stay")
    elif options.action == "undo":
        print("decided again:", ", ".join(index.undo(options.name, run)) or "nothing")
    elif options.action == "export":
        index.export(options.name, options.output, run.workers, run.max_ram)
    else:
        for source in index.sources:
            print(f"{source['name']}: {source['documents']} documents, {source['removed']} removed")


def exit_code(arguments: list[str] | None = None) -> int:
    """Run the command line; returns 0, 1 (the guard, damage, a full disk) or 2 (usage, unusable input)."""
    from pipeline_lib.stage import StageFailure, UserError
    from pipeline_lib.stage.system_errors import spell_system_error, tells_of_a_full_disk

    try:
        main(parser().parse_args(arguments))
        return 0
    except UserError as error:
        message, code = str(error), 2
    except StageFailure as error:
        message, code = str(error), 1
    except OSError as error:
        message, code = spell_system_error(error), 1
    except Exception as error:
        if not tells_of_a_full_disk(error):
            raise
        message, code = spell_system_error(OSError(errno.ENOSPC, str(error))), 1
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(exit_code())
