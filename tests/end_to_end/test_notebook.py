"""notebooks/pipeline.ipynb runs as it stands."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from pipeline_lib.config.base import PROJECT_ROOT

NOTEBOOK = PROJECT_ROOT / "notebooks" / "pipeline.ipynb"


def test_the_notebook_runs_the_stages_in_order(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PIPELINE_CONFIG", "configs/tiny_test.yaml")
    monkeypatch.setenv("PIPELINE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PIPELINE_LAST_STAGE", "04")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "03_packed tokenises and packs: done" in printed and "04_init makes the untrained model: done" in printed
