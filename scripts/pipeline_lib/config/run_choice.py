"""Which run a command is about: `--config YAML` and, if it lies elsewhere, `--run-dir FOLDER`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .command_line import DEFAULT_CONFIG, run_arguments, run_folder_of
from .load import load_config
from .run import RunConfig


@dataclass(frozen=True)
class RunChoice:
    """A run's configuration and folder; arguments: flags that lead a script there; flags: the command's own."""

    config: RunConfig
    run_folder: Path
    arguments: str
    flags: argparse.Namespace


def read_run_choice(
    description: str, argv: list[str], own_flags: Callable[[argparse.ArgumentParser], Any] | None = None
) -> RunChoice:
    """Parse the command line of a command that looks at a run. Raises UserError for a bad configuration."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", "-c", default=str(DEFAULT_CONFIG), metavar="YAML", help="the run's configuration")
    parser.add_argument("--run-dir", metavar="FOLDER", help="where the run's outputs are (default: runs/<run name>)")
    if own_flags:
        own_flags(parser)
    flags = parser.parse_args(argv)
    config = load_config(Path(flags.config)).config
    folder = Path(flags.run_dir).resolve() if flags.run_dir else run_folder_of(config, Path(flags.config))
    return RunChoice(config, folder, run_arguments(Path(flags.config), folder if flags.run_dir else None), flags)
