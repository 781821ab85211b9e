"""The README's table shows figures of RESULTS.md and no others."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def claims():
    specification = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["claims"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_the_readme_says_what_the_results_say(claims):
    readme = (ROOT / "README.md").read_text()
    assert claims.with_table(readme, (ROOT / "benchmarks" / "RESULTS.md").read_text()) == readme


def test_a_new_figure_makes_a_new_table(claims):
    results = "# Results\n\n## fast\n\na day.\n\n| claim | ours | peer | ratio | quality |\n|---|---|---|---|---|\n"
    claim = (claims.Claim("it is fast", "fast", "speed"),)
    first = claims.table(results + "| speed | 9 \\| 3 | x 2 | 4.5 | same |\n| size | 1 | x 1 | 1 | |\n", claim)
    assert first.splitlines()[2:] == ["| it is fast | 9 \\| 3 | x 2 | 4.5 |"]
    assert "| 8 |" in claims.table(results + "| speed | 16 | x 2 | 8 | same |\n", claim)


@pytest.mark.parametrize(
    ("section", "complaint"),
    [("## slow\n", "no section fast"), ("## fast\n\n| claim | peer |\n|---|---|\n| size | x |\n", "0 rows say")],
)
def test_a_claim_without_a_row_is_refused(claims, section, complaint):
    with pytest.raises(ValueError, match=complaint):
        claims.table(f"# Results\n\n{section}", (claims.Claim("it is fast", "fast", "speed"),))


def test_a_missing_section_with_options_is_answered_with_a_command_that_measures_it(claims):
    claim = claims.Claim("it is fast", "fast --reduced --seeds 3", "speed")
    with pytest.raises(ValueError, match=r"run python benchmarks/run_all.py fast -- --reduced --seeds 3$"):
        claims.table("# Results\n", (claim,))


def test_a_readme_without_a_place_for_the_table_is_refused(claims):
    with pytest.raises(ValueError, match="README.md has no lines"):
        claims.with_table("# A project\n", "# Results\n")
