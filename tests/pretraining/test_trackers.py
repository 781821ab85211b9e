"""Trackers are views of a run: under which name they show it, and that they cannot harm it."""

from tiny_training import SETTINGS, make_run

from pipeline_lib.pretraining import logbook
from pipeline_lib.stage.workspace import Workspace


def test_a_run_begun_anew_has_another_name_for_weights_and_biases_and_a_continued_one_keeps_it(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(logbook, "open_trackers", lambda *given: named.append(given[3]) or [])
    settings = SETTINGS.model_copy(update={"trackers": ["wandb"], "tensorboard": False})

    def start(fresh: bool) -> str:
        workspace = Workspace(tmp_path, {"settings": {}})
        workspace.open(fresh=fresh, keep_superseded=False, say=print)
        logbook.open_logbook(workspace.folder, make_run(), False, settings, "test").close()
        workspace.journal.close()
        return named[-1]

    first = start(fresh=False)
    assert len(first) == 16 and not set(first) & set(":;,#?/'")  # which W&B refuses
    assert start(fresh=False) == first
    assert start(fresh=True) != first
