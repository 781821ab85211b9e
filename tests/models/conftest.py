"""The finished stages these tests start from are made by tests/pretraining/packed_run.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "pretraining"))
