"""Puts this folder's helper module (installed_packages) within reach of its tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
