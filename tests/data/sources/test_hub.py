"""Local folders of data sets, in the Hub's layout or written by `save_to_disk`, streamed or not."""

import json
import shutil

import datasets
import pytest
from corpora import ROWS, TEXTS, documents, hub_folder, kept_entries, made, tokens
from source_reader import read, refused

from hfbsz.data.prepare.budget import Needed, needed_by
from hfbsz.data.rows import prepare
from hfbsz.data.sources.hub import Hub
from hfbsz.data.sources.records import Columns, Tally
from hfbsz.data.sources.sources import open_source
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data, EvalSet
from hfbsz.recipe.load import load


@pytest.fixture(autouse=True)
def _caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def saved(folder, several):
    dataset = datasets.Dataset.from_list(ROWS)
    splits = datasets.DatasetDict(train=dataset, validation=dataset.select(range(30)))
    (splits if several else dataset).save_to_disk(folder)
    return folder


def test_a_folder_in_the_hubs_layout_with_a_share_or_a_split_held_out(tmp_path):
    folder = str(hub_folder(tmp_path / "corpus"))
    assert documents(made(hub=folder)) == len(TEXTS)
    data = made(hub=folder, validation_split="validation")
    assert data.manifest.train.documents == 60 and data.manifest.validation.documents == 30
    assert documents(made(hub=folder, split="train[:50%]")) == 30


def test_folders_of_save_to_disk(tmp_path):
    one, several = str(saved(tmp_path / "one", False)), str(saved(tmp_path / "several", True))
    first, second = made(hub=one), made(hub=several)
    assert documents(first) == documents(second) == len(TEXTS) and tokens(first.train) == tokens(second.train)
    data = made(hub=several, validation_split="validation")
    assert data.manifest.train.documents == 60 and data.manifest.validation.documents == 30


def test_configurations_of_a_readme(tmp_path):
    folder = hub_folder(tmp_path / "corpus")
    configs = "".join(
        f"- config_name: {name}\n  data_files: data/{name}*.parquet\n" for name in ("train", "validation")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert documents(made(hub=str(folder), hub_config="validation")) == 30
    with pytest.raises(UserError, match="has several configurations, name one of train, validation"):
        made(hub=str(folder))
    with pytest.raises(UserError, match=r"has no 'trian'; did you mean 'train'\?; there are train, validation"):
        made(hub=str(folder), hub_config="trian")


def test_an_evaluation_set_may_be_a_split(tmp_path):
    folder = str(hub_folder(tmp_path / "corpus"))
    data = made(hub=folder, sets={"other": EvalSet(hub=folder, split="validation", text="text")})
    assert data.manifest.sets["other"].documents == 30 and documents(data) == len(TEXTS)
    with pytest.raises(UserError, match=r"eval.sets.other.split: .* has no split 'test'; there are train, validation"):
        made(hub=folder, sets={"other": EvalSet(hub=folder, split="test")})


class Counting(Hub):
    read = 0

    def records(self, columns, tally):
        for record in super().records(columns, tally):
            type(self).read += 1
            yield record


@pytest.mark.parametrize("several", [None, False, True])
@pytest.mark.parametrize("pack", [True, False])
def test_a_stream_gives_the_first_rows_of_the_split_and_reads_no_further(tmp_path, monkeypatch, several, pack):
    rows = [{"text": f"{number} " + TEXTS[number % 60]} for number in range(3000)]
    if several is None:
        folder = str(hub_folder(tmp_path / "corpus", rows))
    else:
        monkeypatch.setitem(globals(), "ROWS", rows)
        folder = str(saved(tmp_path / "corpus", several))
    tokenizer = str(made(hub=folder, pack=pack).tokenizer_path)
    complete = made(hub=folder, pack=pack, tokenizer=tokenizer)
    monkeypatch.setattr("hfbsz.data.sources.sources.Hub", Counting)
    monkeypatch.setattr(Counting, "read", 0)
    part = made(needed=Needed(200), hub=folder, stream=True, pack=pack, tokenizer=tokenizer)
    first, count = tokens(complete.train), len(part.train)
    assert tokens(part.train) == first[:count] and 200 <= count < 200 + 10  # at most a document more
    used = documents(part)
    assert used <= Counting.read <= used + 256 < len(rows)
    held_out = tokens(complete.validation)
    assert tokens(part.validation)[:-1] == held_out[: len(part.validation) - 1] and len(part.validation) > 2


def test_training_a_tokenizer_reads_only_the_beginning_of_a_stream(tmp_path, monkeypatch):
    rows = [{"text": f"{number} " + TEXTS[number % 60]} for number in range(5000)]
    folder = str(hub_folder(tmp_path / "corpus", rows))
    monkeypatch.setattr("hfbsz.data.sources.sources.Hub", Counting)
    monkeypatch.setattr(Counting, "read", 0)
    part = made(needed=Needed(100), hub=folder, stream=True)
    assert Counting.read < 2 * (documents(part) + 256) and len(part.train) < 110


def test_an_evaluation_set_is_streamed_if_the_training_source_is(tmp_path, monkeypatch):
    rows = [{"text": f"{number} " + TEXTS[number % 60]} for number in range(5000)]
    folder = str(hub_folder(tmp_path / "corpus", rows))
    tokenizer = str(made(hub=folder).tokenizer_path)
    monkeypatch.setattr("hfbsz.data.sources.sources.Hub", Counting)
    monkeypatch.setattr(Counting, "read", 0)
    part = made(needed=Needed(100), hub=folder, stream=True, tokenizer=tokenizer, sets={"other": EvalSet(hub=folder)})
    assert 100 <= len(part.sets["other"]) < 110 and Counting.read < 1500


def test_the_rows_of_a_stream_are_cached_by_the_number_needed(tmp_path):
    folder = str(hub_folder(tmp_path / "corpus"))
    counts = []
    for need in (Needed(40), Needed(60), Needed(40)):
        counts.append((len(made(needed=need, hub=folder, stream=True).train), len(kept_entries())))
    assert counts[0][0] < counts[1][0] and counts[2] == (counts[0][0], 2)


def test_a_stream_that_ends_early_gives_a_note(tmp_path):
    folder = str(hub_folder(tmp_path / "corpus"))
    data = made(needed=Needed(10_000), hub=folder, stream=True)
    assert documents(data) == len(TEXTS) and "the stream ended after" in data.notes[0]


def test_ragged_rows_for_a_budget_in_tokens_hold_that_many_tokens(tmp_path):
    rows = [{"text": f"{number} short"} for number in range(3000)]
    folder = str(hub_folder(tmp_path / "corpus", rows))
    words = [
        f"data.hub={folder}",
        "data.stream=true",
        "data.pack=false",
        "data.sequence_length=64",
        "data.vocab_size=300",
    ]
    recipe = load([*words, "batch.size=8seq", "duration=4096tok"]).recipe
    need = needed_by(recipe)
    data = prepare(recipe.data, {}, lambda *_: None, need)
    targets = sum(len(row) - 1 for row in tokens(data.train))
    assert need.tokens <= targets < need.tokens + 64 and need.tokens == 4096 + 8 * 64


def test_a_run_needs_its_budget_and_one_batch():
    words = ["data.hub=x", "data.stream=true", "batch.ramp=0:4 50%:16"]
    assert needed_by(load([*words, "duration=100seq"]).recipe) == Needed(116)
    assert needed_by(load([*words, "duration=12800tok"]).recipe) == Needed(116)
    assert needed_by(load(["batch.size=16seq", "duration=1epochs"]).recipe) is None
    with pytest.raises(UserError, match="'2 epochs' of a stream is not known before it is read to its end"):
        needed_by(load([*words, "duration=2epochs"]).recipe)


def test_the_streaming_preset_without_a_network_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the Hub's client tries for a minute
    recipe = load(["data=fineweb_edu", "batch.size=16seq", "duration=1Mtok"]).recipe
    assert recipe.data.stream and needed_by(recipe) == Needed(977 + 16)
    with pytest.raises(UserError, match=r"openai-community/gpt2|HuggingFaceFW/fineweb-edu"):
        prepare(recipe.data, {}, lambda *_: None, needed_by(recipe))
    assert kept_entries() == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("form", "fields", "message"),
    [
        ("hub", {"split": "trian"}, "no split 'trian'; did you mean 'train'?; there are train, validation"),
        ("several", {"split": "trian"}, "no split 'trian'; did you mean 'train'?; there are train, validation"),
        ("one", {"split": "test"}, "no split 'test'; there are train"),
        ("hub", {"validation_split": "test"}, "no split 'test'; there are train, validation"),
        ("hub", {"text": "txt"}, "no column 'txt' (data.text); did you mean 'text'?; there are 'text', 'label'"),
        ("several", {"text": "label"}, "train:0 holds a int, not text"),
        ("hub", {"hub_config": "small"}, "has no 'small'; there are default"),
        ("hub", {"hub": "./nowhere"}, "no folder './nowhere'"),
        ("hub", {"hub": "HuggingFaceFW/fineweb-edu"}, "a folder, or data.package, needs no network"),
        ("script", {}, "Dataset scripts are no longer supported"),
        ("pickle", {}, "No (supported) data files found"),
        ("broken", {}, "Parquet magic bytes not found"),
    ],
)
def test_a_missing_split_column_or_folder_gives_one_line_and_no_cache_entry(tmp_path, form, fields, message, stream):
    folder = tmp_path / form
    if form == "hub":
        hub_folder(folder)
    elif form in ("one", "several"):
        saved(folder, form == "several")
    else:
        folder.mkdir()
        name = {"script": "script.py", "pickle": "train.pkl", "broken": "train.parquet"}[form]
        (folder / name).write_text("raise SystemExit('run')")
    with pytest.raises(UserError) as caught:
        made(needed=Needed(10), **{"hub": str(folder), "stream": stream, **fields})
    (line,) = caught.value.lines
    assert message in line and "\n" not in line and kept_entries() == []


def test_a_stream_has_no_slices(tmp_path):
    with pytest.raises(UserError, match=r"no split 'train\[:10%\]'"):
        made(needed=Needed(10), hub=str(hub_folder(tmp_path / "corpus")), stream=True, split="train[:10%]")


LABELED = [{"text": f"film {number}", "label": (0, 1, -1, None)[number % 4], "more": number} for number in range(12)]
NAMES = ["negative", "positive", None, None] * 3


def labeled(rows=LABELED):
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    return datasets.Dataset.from_list(rows, features=datasets.Features({**kinds, "more": datasets.Value("int64")}))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["hub", "one", "several"])
def test_case_20_classes_are_read_by_name_and_minus_one_is_null(tmp_path, form, stream):
    folder = tmp_path / form
    if form == "hub":
        (folder / "data").mkdir(parents=True)
        labeled().to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    else:
        (datasets.DatasetDict(train=labeled()) if form == "several" else labeled()).save_to_disk(folder)
    data = Data(hub=str(folder), stream=stream, label="label")
    source, tally = open_source(data), Tally()
    records = list(source.records(Columns({"data.text": "text", "data.label": "label"}), tally))
    assert [record.columns["label"] for record in records] == NAMES and tally.rows == 12
    assert source.class_names("label") == ["negative", "positive"] and source.class_names("text") is None
    assert list(tally.columns) == ["text", "label", "more"] and set(records[0].columns) == {"text", "label"}


def test_case_20_a_parquet_file_has_the_class_names_that_datasets_wrote(tmp_path):
    labeled().to_parquet(tmp_path / "x.parquet")
    records, _ = read("text", "label", optional=["more", "none"], files=str(tmp_path / "x.parquet"))
    assert [record.columns["label"] for record in records] == NAMES and records[3].columns["more"] == 3
    source = open_source(Data(files=str(tmp_path / "*.parquet")))
    assert source.class_names("label") == ["negative", "positive"] and source.class_names("more") is None
    datasets.Dataset.from_list([{"text": "a", "label": 1}]).to_parquet(tmp_path / "y.parquet")
    assert read("label", files=str(tmp_path / "y.parquet"))[0][0].columns == {"label": 1}
    assert open_source(Data(files=str(tmp_path / "y.parquet"))).class_names("label") is None


@pytest.mark.parametrize(("ending", "sign"), [("tsv", "\t"), ("csv", ",")])
def test_quotes_with_which_datasets_would_join_rows_are_refused(tmp_path, ending, sign):
    rows = [f"row {number}{sign}pos" for number in range(30)]
    rows[4], rows[9] = '"' + rows[4], rows[9].replace(sign, '"' + sign)
    folder = tmp_path / "tables"
    folder.mkdir()
    path = folder / f"train.{ending}"
    path.write_text("\n".join([f"text{sign}label", *rows]))
    line = refused("text", "label", hub=str(folder))
    assert "open in line 6 and close in line 11" in line and f"data.files={path} instead of data.hub reads it" in line
    assert len(read("text", "label", files=str(path), quoting="none")[0]) == 30
    path.write_text("\n".join([f"text{sign}label", f'"two\nlines"{sign}pos', f"b{sign}neg"]))
    assert len(read("text", "label", hub=str(folder))[0]) == 2


def test_fields_for_files_are_refused_for_a_hub_data_set(tmp_path):
    assert "data.delimiter is for files" in refused(hub=str(hub_folder(tmp_path / "corpus")), delimiter=";")


def test_a_link_to_a_parent_folder_is_not_followed(tmp_path):
    folder = hub_folder(tmp_path / "corpus")
    (folder / "data" / "up").symlink_to("..")
    assert len(read(hub=str(folder))[0]) == 60


def outside_reference(tmp_path, form):
    """The folder of a data set that refers to a file outside of it."""
    (tmp_path / "victim.txt").write_text("SECRET\n" * 20)
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "x.txt").write_text("decoy\n" * 20)
    path = {"absolute": str(tmp_path / "victim.txt"), "above": "../victim.txt", "deeper": "../corpus/../victim.*"}
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '{}'\n{}---\n"
    if form in path:
        (folder / "README.md").write_text(readme.format(path[form], ""))
    elif form == "data_dir":
        (folder / "README.md").write_text(readme.format("*.txt", "  data_dir: ..\n"))
    elif form == "link":
        (folder / "y.txt").symlink_to(tmp_path / "victim.txt")
    else:
        shutil.rmtree(folder)
        saved(tmp_path / "other", False)
        saved(folder, False)
        state = json.loads((folder / "state.json").read_text())
        state["_data_files"][0]["filename"] = f"../other/{state['_data_files'][0]['filename']}"
        (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["absolute", "above", "deeper", "data_dir", "link", "saved"])
def test_case_s13_files_outside_of_the_folder_are_refused(tmp_path, form, stream):
    folder = outside_reference(tmp_path, form)
    with pytest.raises(UserError, match=r"refers to '.*', which is outside of its folder") as caught:
        list(Hub(str(folder), None, "train", None, stream).records(Columns({"data.text": "text"}), Tally()))
    assert len(caught.value.lines) == 1 and "SECRET" not in str(caught.value)


def test_case_s13_links_inside_a_folder_and_inside_the_hubs_cache_are_followed(tmp_path):
    blob = tmp_path / "datasets--a--b" / "blobs" / "0a"
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "1f"
    for folder in (blob.parent, snapshot):
        folder.mkdir(parents=True)
    blob.write_text("a row\n")
    (snapshot / "x.txt").symlink_to("../../blobs/0a")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "target").write_text("a row\n")
    (tmp_path / "plain" / "x.txt").symlink_to("target")
    for folder in (snapshot, tmp_path / "plain"):
        records = Hub(str(folder), None, "train", None, False).records(Columns({"data.text": "text"}), Tally())
        assert [record.columns["text"] for record in records] == ["a row"]


@pytest.mark.parametrize("text", ["[]", "[" * 10**5, '{"_data_files": 3}', '{"_data_files": [3]}', "{}"])
def test_an_invalid_state_json_gives_one_line(tmp_path, text):
    folder = saved(tmp_path / "corpus", False)
    (folder / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"^data\.hub: .* cannot be read: "):
        list(Hub(str(folder), None, "train", None, False).records(Columns({"data.text": "text"}), Tally()))
