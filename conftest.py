"""Shared test set-up: the library on sys.path, every hub switched off, and the folder of genuine records."""

import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Genuine data-set records beside the checkout; their licences keep them out of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"genuine data-set records are not present at {folder}")
    return folder


@pytest.fixture
def scripts() -> Path:
    """The folder of the numbered scripts."""
    return SCRIPTS
