"""How stage 05 starts and ends as one of several processes."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.pretraining import distribution, launch
from pipeline_lib.pretraining.inputs import open_training_inputs


@pytest.mark.parametrize("missing", ["03_packed", "configuration"])
def test_a_process_that_alone_does_not_see_the_files_says_so(packed_run, tmp_path, monkeypatch, capsys, missing):
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    if missing != "configuration":
        shutil.copy(packed_run[0], config)
    told = {"train": PretrainSettings().model_dump(mode="json")}
    monkeypatch.setattr(distribution, "join", lambda _: SimpleNamespace(share=lambda _: told))
    monkeypatch.setattr(sys, "argv", ["05_pretrain.py", "--config", str(config), "--run-dir", str(run)])
    monkeypatch.setenv("RANK", "9")
    with pytest.raises(SystemExit) as end:
        launch._follow("05_pretrain", open_training_inputs)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("process 9: ") and str(run if missing == "03_packed" else config) in said, said
