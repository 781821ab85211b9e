"""What torchrun tells a process about its own restarts (`--max-restarts`), for a stage that it starts again.

Trap: it repeats the whole command line, `--force` included.
"""

import os


def restart() -> int:
    """Return how often torchrun has started this again after a failure: 0 at the first start, and without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def starts_again() -> bool:
    """Say whether torchrun will start this again when it fails."""
    return restart() < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
