"""The library behind the twelve numbered scripts; see docs/ for the map."""

import sys
from importlib.util import find_spec

if find_spec("pydantic") is None or find_spec("xxhash") is None:
    # the first thing a newcomer meets who types `python` outside the environment that `make` has made
    print(
        f"error: {sys.executable} does not have the packages of requirements.txt; type `source .venv/bin/activate`"
        " (`make install` makes .venv), or pip install -r requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)
