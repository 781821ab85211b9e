"""The hub's configurations and splits mean the same files as in the `datasets` library."""

import random

import pytest
from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns

from pipeline_lib.sources import hub_listing
from pipeline_lib.sources.hub_listing import list_data_files
from pipeline_lib.sources.patience import Patience
from pipeline_lib.stage import StageFailure, UserError

COMMIT = "a" * 40
REPO = "owner/set"
EXTENSIONS = [".parquet", ".jsonl", ".json", ".csv"]


def listed(settings, said=None):
    patience = Patience("hub", 3, 0.01, (said if said is not None else []).append, lambda: None)
    return list_data_files(settings, patience)


def paths(settings):
    return [file.path for file in listed(settings).files]


@pytest.fixture
def entry(quick):
    def make(**fields):
        return quick(type="hub", repo=REPO, **fields)

    return make


def by_the_library(folder, patterns=None):
    """{split: file names} as `datasets` resolves a local folder with the same files."""
    try:
        patterns = sanitize_patterns(patterns) if patterns else get_data_patterns(str(folder))
    except EmptyDatasetError:
        return {}
    found = DataFilesDict.from_patterns(patterns, base_path=str(folder), allowed_extensions=EXTENSIONS)
    prefix = f"{folder}/"
    return {str(split): sorted(name.removeprefix(prefix) for name in names) for split, names in found.items()}


def random_tree(draw, suffix):
    stems = [
        "train",
        "test",
        "validation",
        "dev",
        "data",
        "train_0",
        "my-test",
        "part.train",
        "training-1",
        "eval",
        "x",
    ]
    folders = ["", "data/", "train/", "en/test/", "raw/v1/", ".cache/", "__pycache__/"]
    names = {draw.choice(folders) + draw.choice(stems) + suffix for _ in range(draw.randrange(1, 7))}
    if draw.random() < 0.3:
        names |= {f"data/{split}-0000{n}-of-00002{suffix}" for split in ("train", "test") for n in (0, 1)}
    return sorted(names | set(draw.sample(["README.md", ".gitattributes", "dataset_infos.json", "LICENSE"], 2)))


@pytest.mark.parametrize("seed", range(60))
def test_names_alone_give_the_same_splits_as_the_library(hub, entry, tmp_path, seed):
    draw = random.Random(seed)
    names = random_tree(draw, draw.choice(EXTENSIONS))
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    hub.put(REPO, COMMIT, dict.fromkeys(names, b"{}"))
    expected = by_the_library(tmp_path)
    for split in ("train", "test", "validation"):
        if expected.get(split):
            assert sorted(paths(entry(split=split))) == expected[split], names
        else:
            with pytest.raises(UserError, match=f"no split '{split}'|no data files"):
                paths(entry(split=split))


CARD = {
    "configs": [
        {
            "config_name": "main",
            "default": True,
            "data_files": [
                {"split": "train", "path": ["main/train-*.parquet", "extra/more.parquet"]},
                {"split": "test", "path": "main/test-*"},
            ],
        },
        {"config_name": "socratic", "data_files": "socratic/**"},
        {"config_name": "folder", "data_dir": "folder"},
    ]
}
FILES = [
    "README.md",
    "extra/more.parquet",
    "folder/test.parquet",
    "folder/train.parquet",
    "main/deep/train-2.parquet",
    "main/test-0.parquet",
    "main/train-0.parquet",
    "main/train-1.parquet",
    "socratic/a.parquet",
    "socratic/deep/b.parquet",
]


@pytest.fixture
def card_hub(hub):
    hub.put(REPO, COMMIT, dict.fromkeys(FILES, b"{}"), CARD)
    return hub


def test_configurations_of_the_card_are_followed(card_hub, entry, tmp_path):
    assert paths(entry()) == ["main/train-0.parquet", "main/train-1.parquet", "extra/more.parquet"]
    assert paths(entry(split="test")) == ["main/test-0.parquet"]
    assert paths(entry(config_name="socratic")) == ["socratic/a.parquet", "socratic/deep/b.parquet"]
    assert paths(entry(config_name="folder")) == ["folder/train.parquet"]
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for config in CARD["configs"][:2]:
        library = by_the_library(tmp_path, config["data_files"])
        assert sorted(paths(entry(config_name=config["config_name"]))) == library["train"]


def test_named_files_are_read_in_the_order_of_the_globs(card_hub, entry):
    files = ["socratic/**/*.parquet", "main/train-1.parquet"]
    assert paths(entry(files=files)) == ["socratic/a.parquet", "socratic/deep/b.parquet", "main/train-1.parquet"]


def test_only_the_part_of_the_tree_that_matters_is_listed(card_hub, entry, server):
    paths(entry(files=["main/train-*.parquet"]))
    assert f"/api/datasets/{REPO}/tree/{COMMIT}/main" in [path for path, _, _ in server.requests]
    assert hub_listing._common_folder(["en/c4-train.000*.json.gz", "en/noblocklist/x.json"]) == "en"
    assert hub_listing._common_folder(["data/*.parquet", "datb/x.parquet"]) == ""
    assert hub_listing._common_folder(["sample/10BT/0[01]*.parquet"]) == "sample/10BT"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"config_name": "other"}, "no configuration 'other': it has main, socratic, folder"),
        ({"split": "validation"}, "no split 'validation', it has train, test"),
        ({"files": ["main/*.csv"]}, "no readable file matches"),
        ({"files": ["nowhere/*.csv"]}, "no folder for nowhere"),
        ({"revision": "v9"}, "no revision 'v9'"),
        ({"repo": "owner/other"}, "was not found"),
    ],
)
def test_name_that_the_hub_does_not_know_is_the_users_to_mend(card_hub, entry, server, fields, words):
    server.json_errors = {
        f"/api/datasets/{REPO}/revision/v9": "RevisionNotFound",
        "/api/datasets/owner/other/revision/main": "RepoNotFound",
    }
    with pytest.raises(UserError, match=words):
        settings = entry(**fields) if "repo" not in fields else entry().model_copy(update=fields)
        paths(settings)


def test_several_configurations_without_a_default_ask_for_a_choice(hub, entry):
    configs = [{"config_name": name, "data_files": f"{name}/*"} for name in ("en", "de")]
    hub.put(REPO, COMMIT, dict.fromkeys(["en/a.csv", "de/a.csv"], b"{}"), {"configs": configs})
    with pytest.raises(UserError, match="set `config_name` to one of en, de"):
        paths(entry())
    assert paths(entry(config_name="de")) == ["de/a.csv"]


def test_files_of_several_formats_ask_for_a_choice(hub, entry):
    hub.put(REPO, COMMIT, dict.fromkeys(["data.csv", "data.jsonl"], b"{}"))
    with pytest.raises(UserError, match="several formats"):
        paths(entry())
    assert paths(entry(files=["*.jsonl"])) == ["data.jsonl"]


def test_gated_data_set_says_what_to_do(hub, entry, server):
    hub.put(REPO, COMMIT, {"a.csv": b"a\n"})
    server.json_errors = {f"/api/datasets/{REPO}/revision/main": "GatedRepo"}
    with pytest.raises(UserError, match="terms to be accepted"):
        paths(entry())


def test_busy_hub_is_asked_again_and_given_up_in_the_end(hub, entry, server, said):
    hub.put(REPO, COMMIT, {"a.csv": b"a\n"})
    address = f"/api/datasets/{REPO}/revision/main"
    server.misbehave(address, "status", status=429, headers={"Retry-After": "0"})
    server.misbehave(address, "status", status=503)
    assert [file.path for file in listed(entry(), said).files] == ["a.csv"]
    assert len(said) == 2
    server.misbehave(address, "status", status=500, times=3)
    with pytest.raises(StageFailure, match="gave up after 3 attempts"):
        listed(entry(), said)


def test_hub_that_is_switched_off_says_so(quick):
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        paths(quick(type="hub", repo=REPO))
