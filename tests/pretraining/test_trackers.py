"""Trackers are views of a run: under which name they show it, and that they cannot harm it."""

import json
import sys
from types import SimpleNamespace

import pytest
from tiny_training import SETTINGS, BareStage, make_run, open_data

from pipeline_lib.pretraining import logbook, trackers
from pipeline_lib.pretraining.loop import train
from pipeline_lib.pretraining.trackers import Curves
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


class Failing:
    """A tracker whose network goes away: from its second step on, or only at the end."""

    def __init__(self, name: str, at_step: int | None):
        self.name, self.at_step, self.steps = name, at_step, []

    def store_init_configuration(self, values):
        pass

    def log(self, values, step):
        self.steps.append(step)
        if step == self.at_step:
            raise ConnectionError("the network is gone")

    def finish(self):
        if self.at_step is None:
            raise ConnectionError("the network is gone")


def test_a_tracker_that_fails_is_noted_once_and_training_goes_on_without_it(packed_run, tmp_path, monkeypatch, capsys):
    made = {"lost": Failing("lost", 2), "whole": Failing("whole", 99), "late": Failing("late", None)}
    monkeypatch.setitem(sys.modules, "own", SimpleNamespace(**{name: lambda t=t: t for name, t in made.items()}))
    given = {"trackers": [f"own:{name}" for name in made], "tensorboard": False, "max_steps": 5}
    settings = SETTINGS.model_copy(update=given)
    run = make_run(settings)
    with logbook.open_logbook(tmp_path, run, False, settings, "test") as book:
        train(BareStage(settings, tmp_path), run, open_data(packed_run[1] / "03_packed"), book)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5] == made["whole"].steps
    assert made["lost"].steps == [0, 1, 2]
    said = capsys.readouterr().out
    assert said.count("the tracker lost failed at step 2 (ConnectionError: the network is gone)") == 1
    assert said.count("the tracker late failed at the end") == 1 and "whole" not in said


@pytest.mark.parametrize("fails", ["__init__", "start", "store_init_configuration"])
def test_a_tracker_that_cannot_start_is_noted_and_the_others_start(tmp_path, monkeypatch, fails):
    def gone(*_):
        raise ConnectionError("the network is gone")

    lost = type("Lost", (), {"start": lambda _: None, "store_init_configuration": lambda *_: None, fails: gone})
    own = SimpleNamespace(Lost=lost, Whole=lambda: Failing("whole", 99))
    monkeypatch.setitem(sys.modules, "own", own)
    said = []
    started = trackers.open_trackers(["own:Lost", "own:Whole"], "demo", tmp_path, "id", {}, said.append)
    assert [tracker.name for tracker in started] == ["whole"]
    assert len(said) == 1 and said[0].startswith("the tracker own:Lost failed at its start (ConnectionError: the net")


def test_a_tensorboard_that_cannot_start_is_noted_and_the_run_goes_on(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where its folder would be")
    settings, said = SETTINGS.model_copy(update={"tensorboard": True}), []
    run = make_run(settings)
    with logbook.open_logbook(tmp_path, run, False, settings, "test", said.append) as book:
        assert book.write(run, {"step": 0, "val_loss": 6.0}) is None
    assert len(said) == 1 and said[0].startswith("the tracker tensorboard failed at its start (FileExistsError")


def test_a_tensorboard_whose_disk_is_full_is_dropped_too(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_):
        raise OSError(28, "No space left on device")

    said = []
    curves = Curves(tmp_path, -1, note=said.append)
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    curves.add({"step": 0, "val_loss": 6.0}, {})
    curves.add({"step": 1, "loss": 6.0}, {})
    curves.close()
    assert len(said) == 1 and "tensorboard failed at step 0 (OSError: [Errno 28] No space left" in said[0]
