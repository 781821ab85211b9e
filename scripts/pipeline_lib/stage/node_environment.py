"""What a job on another machine needs to find this program: shell lines for its script."""

import shlex
import sys
from pathlib import Path

from .code_version import SCRIPTS
from .errors import UserError

LAUNCHER = "launch_pickled_pipeline"  # of datatrove


def search_paths() -> list[str]:
    """Return the lines after which a node finds datatrove's launcher and the modules below scripts/.

    Raises UserError when this Python's environment has no launcher.
    """
    programs = Path(sys.executable).parent
    if not (programs / LAUNCHER).is_file():
        raise UserError(f"{programs / LAUNCHER} is missing; install requirements.txt into this Python's environment")
    return [
        f"export PATH={shlex.quote(str(programs))}:$PATH",
        f"export PYTHONPATH={shlex.quote(str(SCRIPTS))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]
