"""What is pushed to the Hub, against a local stand-in: files, card metadata, and one line for each fault."""

import io
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import watched
from fake_hub import TOKEN, FakeHub, fake_hub
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import close_session
from pyarrow import parquet

from hfbsz.commands import push
from hfbsz.errors import UserError
from hfbsz.experiment.jobs import assign_folders, product
from hfbsz.recipe.load import load
from hfbsz.records.evaluations import final_result
from hfbsz.records.run_data import read_run
from hfbsz.report.batch_story import batch_story
from hfbsz.report.card import model_card
from hfbsz.report.hub import pushes
from hfbsz.report.hub.contents import contents
from hfbsz.report.hub.pushes import Push, Pushes
from hfbsz.report.hub.request import Outcome, Request
from hfbsz.report.hub.upload import upload
from hfbsz.report.page import page
from hfbsz.run.publication import write_card
from hfbsz.system.yaml import read_yaml

LOCAL_DATA = "/data/of me & mine/own texts/*.jsonl"


@pytest.fixture
def hub(monkeypatch):
    """The stand-in, and a user of this process who is logged in there."""
    with fake_hub() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        close_session()
        yield server
        close_session()


@pytest.fixture
def run(tmp_path, made) -> Path:
    """The folder of a finished run."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    words = [f"data.files={LOCAL_DATA}", "log.entity=somebody", f"output_dir={folder}", "hub.id=me/small"]
    plan = watched.plan_of(*words, epochs=1)
    watched.make(folder, plan, watched.records_of(plan, overfits=False, every=8))
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(f"{{}} {name}")
    saved = dict.fromkeys(("config.json", "model.safetensors"), "")
    (folder / "status.json").write_text(json.dumps({"state": "finished", "saved": saved, "host": "host-of-me"}))
    (folder / "machine.json").write_text('{"hfbsz": "0.1.0", "torch": "2.13", "processes": 1, "device": "cpu"}')
    for name in ("checkpoint-8/model.safetensors", "wandb/a.wandb", "train.log", "rows.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    write_card(folder, folder, load(words), plan, "Trained.", {"loss": "0.4"}, None, pytest.fail)
    (folder / "report.html").write_text(page.render([read_run(folder)]))
    return folder


def request(run: Path, **changes) -> Request:
    return Request(**{"folder": run, "model": run, "repository": "me/small", "private": True, "seconds": 60} | changes)


def test_what_is_pushed_and_what_stays(hub: FakeHub, run: Path):
    outcome = upload(request(run))
    assert outcome == Outcome(url=f"{hub.url}/me/small", is_new=True)
    (repository,) = hub.repositories.values()
    files = repository.files
    expected = {"config.json", "model.safetensors", "README.md", "batch.png", "recipe.yaml", "plan.json"}
    assert files.keys() - {".gitattributes"} == expected | {"records.jsonl", "records.parquet", "report.html"}
    assert repository.private and repository.messages == ["run: finished"]
    assert files["records.jsonl"] == (run / "records.jsonl").read_bytes()
    assert files["batch.png"][:4] == b"\x89PNG" and files["model.safetensors"] == b"{} model.safetensors"


def test_no_path_user_host_or_token_is_pushed(hub: FakeHub, run: Path, made: Path):
    upload(request(run))
    files = hub.repositories["me/small"].files
    names = [
        str(run.parent),
        str(made),
        str(Path.home()),
        str(Path.cwd()),
        "/data/of me",
        "somebody",
        "host-of-me",
        TOKEN,
    ]
    for file, content in files.items():
        assert not [name for name in names if name.encode() in content], file
    recipe = load([f"recipe={_written(run / 'pushed.yaml', files['recipe.yaml'])}"]).recipe
    assert recipe.data.files == "LOCAL/*.jsonl" and recipe.log.entity is None and recipe.hub.id == "me/small"
    assert recipe.optim == load([f"recipe={run}/recipe.yaml"]).recipe.optim
    assert json.loads(files["plan.json"])["recipe"] == read_yaml(run / "pushed.yaml")
    assert "files: LOCAL/*.jsonl" in files["report.html"].decode() and b"files: LOCAL/*.jsonl" in files["README.md"]
    assert LOCAL_DATA in (run / "recipe.yaml").read_text()  # the run's own files stay as they are


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_second_push_makes_no_commit_unless_something_changed(hub: FakeHub, run: Path):
    assert upload(request(run)).is_new
    assert upload(request(run)) == Outcome(url=f"{hub.url}/me/small", is_new=False)
    assert len(hub.repositories["me/small"].commits) == 2  # the first is the repository's own
    (run / "README.md").write_text((run / "README.md").read_text().replace("---\n", "---\nlicense: mit\n", 1))
    assert upload(request(run)).is_new
    before, after = hub.repositories["me/small"].commits[-2:]
    assert {name for name in after if before[name] != after[name]} == {"README.md"}
    assert ModelCard(after["README.md"].decode()).data.license == "mit"


def test_the_table_has_every_record(hub: FakeHub, run: Path):
    with (run / "records.jsonl").open("a") as file:
        file.write(
            '{"event": "step", "train/global_step": 99, "train/loss": "NaN", "train/grad_norm": 3}\n{"event": "st'
        )
    files, notes = contents(run, run, "me/small")
    table = parquet.read_table(io.BytesIO(files["records.parquet"]))
    run_data = read_run(run)
    assert (
        notes == []
        and table.num_rows == len(run_data.records)
        and files["records.jsonl"].endswith(b'"train/grad_norm": 3}\n')
    )
    for read, record in zip(table.to_pylist(), run_data.records, strict=True):
        assert {name: value for name, value in read.items() if value is not None} == pytest.approx(
            dict(record), nan_ok=True
        )
    assert math.isnan(table["train/loss"][-1].as_py()) and str(table["train/global_step"].type) == "int64"


def test_the_metadata_is_what_the_hub_reads(run: Path):
    """Valid for huggingface_hub, and the same after a round trip through its model-index."""
    card = ModelCard((run / "README.md").read_text())
    result = final_result(read_run(run))
    found = {entry.metric_type: entry for entry in card.data.eval_results}
    assert found.keys() == {"loss", "perplexity", "bits_per_byte"} and card.data.pipeline_tag == "text-generation"
    assert (card.data.model_name, card.data.library_name, card.data.tags) == ("run", "transformers", ["hfbsz"])
    for name, entry in found.items():
        assert entry.metric_value == result.values[name] and entry.task_type == "text-generation"
        assert (entry.dataset_type, entry.dataset_name) == ("own", "own (validation)")
        assert entry.dataset_args == {"rows": 2000}
    again = ModelCard(str(card))
    assert again.data.eval_results == card.data.eval_results and again.data.to_dict() == card.data.to_dict()


def test_metadata_of_data_and_model_from_the_hub(tmp_path):
    words = ["data.hub=stanfordnlp/imdb", "data.hub_config=plain", "data.revision=v1", "model.path=bert-base-uncased"]
    plan = watched.classification(*words, "data.validation_split=test", "eval.sets.other=more.jsonl", epochs=1)
    records = watched.records_of(plan, overfits=False)
    records[-1] |= {"full/other/loss": 0.7, "full/other/rows": 9, "full/other/accuracy": math.nan, "full/f": 0.5}
    run = read_run(watched.make(tmp_path / "run", plan, records))
    data = ModelCard(model_card("n", "bert", "imdb", "x", "", {}, plan, run, final_result(run))).data
    assert (data.datasets, data.base_model) == (["stanfordnlp/imdb"], "bert-base-uncased")
    places = {
        (entry.dataset_type, entry.dataset_config, entry.dataset_split, entry.dataset_revision)
        for entry in data.eval_results
    }
    assert places == {("stanfordnlp/imdb", "plain", "test", "v1"), ("other", None, None, None)}
    found = {(entry.dataset_type, entry.metric_type): entry.metric_value for entry in data.eval_results}
    assert (
        found["other", "loss"] == 0.7 and ("other", "accuracy") not in found and found["stanfordnlp/imdb", "f"] == 0.5
    )
    assert {"f1", "matthews_correlation", "accuracy"} <= {name for _, name in found}


def test_a_folder_is_not_a_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    for path in ("base", "./none", f"{tmp_path}/none"):
        plan = watched.plan_of(f"model.path={path}")
        assert ModelCard(model_card("n", "m", "d", "x", "", {}, plan)).data.base_model is None


def test_metrics_of_other_weights_are_not_in_the_card(run: Path):
    plan = watched.plan_of(epochs=1)
    records = [record for record in watched.records_of(plan, False, every=8) if record["event"] != "final"]
    (run / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step, is_known in ((records[-1]["train/global_step"], True), (5, False)):
        write_card(run, run, load([f"recipe={run}/recipe.yaml"]), plan, "", {}, step, pytest.fail)
        assert ("model-index" in (run / "README.md").read_text()) == is_known


def test_a_run_without_a_recorded_step_has_a_card(run: Path):
    text = (run / "records.jsonl").read_text().splitlines(keepends=True)
    for kept in (1, 0):
        (run / "records.jsonl").write_text("".join([line for line in text if '"eval/loss"' in line][:kept]))
        write_card(run, run, load([f"recipe={run}/recipe.yaml"]), watched.plan_of(), "", {}, 0, pytest.fail)
        assert "## The batch" not in (run / "README.md").read_text() and (run / "batch.png").is_file()


def test_the_story_of_a_ramp(tmp_path):
    batches = [8, 8, 16, 16, 32, 64, 128, 256, 512, 1024]
    records = [
        {"event": "step", "batch/global": batch, "train/num_input_tokens_seen": 1000 * (number + 1)}
        for number, batch in enumerate(batches)
    ]
    records[-1] |= {"noise/scale": 64.0}
    told = batch_story(read_run(watched.make(tmp_path / "run", watched.plan_of(), records)))
    assert told.startswith("The batch began at 8 sequences and became 16 after 2,000 tokens, 32 after 4,000 tokens, ")
    assert "…, 1,024 after 9,000 tokens. The noise scale at the end was 64 sequences: the batch of 1,024 is far" in told


@pytest.mark.parametrize(
    ("route", "status", "error"),
    [
        (
            "create",
            401,
            r"the Hub does not accept the token for me/small \(401\): it needs the right to write; hf auth.*",
        ),
        ("commit", 403, r"the Hub does not accept the token for me/small \(403\).*"),
        ("create", 500, "HfHubHTTPError: Server error '500 .*"),
        ("commit", 507, "HfHubHTTPError: Server error '507 .*"),
        ("validate", 400, r"ValueError: Invalid metadata in README.md.*"),
    ],
)
def test_a_fault_is_one_line(hub: FakeHub, run: Path, route: str, status: int, error: str):
    hub.broken[route] = status
    outcome = upload(request(run))
    assert outcome.url is None and re.fullmatch(error, outcome.error), outcome.error
    assert len(outcome.error) <= 300 and TOKEN not in outcome.error
    hub.broken.clear()
    assert upload(request(run)).is_new


def test_a_wrong_token_and_a_server_that_is_down(hub: FakeHub, run: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_WRONG")
    outcome = upload(request(run))
    assert "does not accept the token" in outcome.error and "hf_WRONG" not in outcome.error
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert upload(request(run)).error.startswith("ConnectError: ")
    assert hub.repositories == {}


def test_no_token_or_offline(run: Path, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert upload(request(run)).error == "nobody is logged in to the Hub (hf auth login, or set HF_TOKEN)"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert upload(request(run)).error == "HF_HUB_OFFLINE is set"


def test_a_public_repository_is_not_taken_for_a_private_one(hub: FakeHub, run: Path):
    assert upload(request(run, private=False)).is_new
    assert upload(request(run)).error.startswith("me/small exists and is public: hub.private=false pushes to it")
    assert len(hub.repositories["me/small"].commits) == 2


def test_a_file_outside_the_folder_is_not_pushed(hub: FakeHub, run: Path):
    secret = _written(run.parent / "secret", b"PLANTED")
    (run / "config.json").unlink()
    (run / "config.json").symlink_to(secret)
    assert (
        upload(request(run)).error == f"{run}/config.json: this leads out of the folder of the run: nothing is pushed"
    )
    (run / "status.json").write_text(json.dumps({"state": "finished", "saved": {"../secret": ""}}))
    assert "../secret: this leads out of the folder" in upload(request(run)).error
    assert all(b"PLANTED" not in content for content in hub.repositories["me/small"].files.values())


def test_an_interrupted_run_is_pushed(hub: FakeHub, run: Path):
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "preempted"}))
    assert upload(request(run)).is_new and hub.repositories["me/small"].messages == ["run: preempted"]


def test_runs_of_a_comparison_do_not_replace_each_other():
    with pytest.raises(
        UserError, match=r"hub\.id=me/x: 2 runs would replace each other there: leave it out, and push one"
    ):
        assign_folders(product(["recipe=debug", "hub.id=me/x", "seed=0,1"]))


def test_a_model_that_is_gone_is_not_pushed(hub: FakeHub, run: Path):
    (run / "model.safetensors").unlink()
    assert upload(request(run)).error == f"{run}: model.safetensors of the saved model is gone"
    (run / "status.json").write_text('{"state": "preempted"}')
    assert upload(request(run)).error == f"{run}: it has no saved model"


@pytest.mark.parametrize(
    "name", ["a/b/c", "https://huggingface.co/me/x", "-x", "me/x.git", "me/a..b", "me/", "x" * 97, "me/ä", "me x"]
)
def test_an_id_of_another_form_is_one_line_before_training(name: str):
    with pytest.raises(UserError) as caught:
        load(["recipe=debug", f"hub.id={name}"])
    (line,) = caught.value.lines
    assert line.startswith(f"hub.id: {name!r} is not the id of a repository, which is OWNER/NAME or NAME: ")


def test_the_hub_does_not_change_the_digest():
    one, other = (load(["recipe=debug", *words]).recipe for words in ([], ["hub.id=me/x", "hub.every=10%"]))
    assert one.digest() == other.digest() and one != other
    with pytest.raises(UserError, match="every: nothing is pushed without a repository"):
        load(["recipe=debug", "hub.every=10%"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["{run}", "id=a/b/c"], "id: 'a/b/c' is not the id of a repository"),
        (["{run}", "private=maybe"], "private: "),
        (["{run}", "ids=me/x"], "ids: no such word; did you mean 'id'?"),
        (["{run}", "{run}"], "one folder of a run is pushed at a time, not 2"),
        (["id=me/x"], "one folder of a run is pushed at a time, not 0"),
        (["{run}", "id="], "id: the value is empty"),
        (["none"], "none: no records.jsonl: not the folder of a run"),
    ],
)
def test_wrong_words_of_push(run: Path, capsys, words: list[str], line: str):
    assert push.main([word.format(run=run) for word in words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}") and told.count("\n") == 1


@pytest.mark.parametrize("state", ["running", "failed", "diverged"])
def test_only_a_run_that_has_ended_is_pushed(run: Path, capsys, state: str):
    (run / "status.json").write_text(json.dumps({"state": state}))
    assert push.main([str(run)]) == 2
    assert f"its state is {state}: a run that has finished or was interrupted is pushed" in capsys.readouterr().err


def test_a_run_without_a_repository_asks_for_one(run: Path, capsys):
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("id: me/small", "id: null"))
    assert push.main([str(run)]) == 2 and "error: id=OWNER/NAME is missing" in capsys.readouterr().err


@pytest.mark.process
def test_the_command_pushes_once(hub: FakeHub, run: Path, capsys):
    assert push.main([str(run), "id=me/other", "private=false"]) == 0
    assert f"pushed to {hub.url}/me/other" in capsys.readouterr().out
    assert push.main([str(run), "id=me/other", "private=false"]) == 0
    assert f"nothing has changed since the last push to {hub.url}/me/other" in capsys.readouterr().out
    assert not hub.repositories["me/other"].private and len(hub.repositories["me/other"].commits) == 2
    hub.broken["create"] = 500
    assert push.main([str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run}: not pushed to me/small: HfHubHTTPError: Server error '500")


def stage(model: Path) -> None:
    (model / "model.safetensors").write_text("now")
    (model / "README.md").write_text("---\ntags: [x]\n---\nnow")


@pytest.mark.process
def test_a_push_during_the_run_does_not_block_it(hub: FakeHub, run: Path):
    warnings: list[str] = []
    background = Pushes(run, "me/small", True, warnings.append)
    begun = time.monotonic()
    background.start(stage)
    assert time.monotonic() - begun < 1 and not background.is_ready()  # one at a time
    while not background.is_ready():
        time.sleep(0.05)
    files = hub.repositories["me/small"].files
    assert files["model.safetensors"] == b"now" and "config.json" not in files and "report.html" not in files
    assert background.finish(lambda *_: None, lambda: False) == f"{hub.url}/me/small"
    assert hub.repositories["me/small"].messages == ["run: in training", "run: finished"]
    assert warnings == [] and not (run / ".hub.tmp").exists()


@pytest.mark.process
def test_a_server_that_stalls_costs_a_bounded_time_and_one_warning(hub: FakeHub, run: Path, monkeypatch):
    monkeypatch.setattr(pushes, "LEAST_SECONDS", 4.0)
    hub.stalls.add("create")
    warnings: list[str] = []
    background, begun = Pushes(run, "me/small", True, warnings.append), time.monotonic()
    background.start(stage)
    while not background.is_ready():
        time.sleep(0.05)
    background.start(stage)
    assert background.finish(lambda *_: None, lambda: False) is None and time.monotonic() - begun < 16
    (line,) = warnings
    assert line.startswith("not pushed to the Hub: it took longer than 4 s; nothing is lost, ") and "push" in line
    assert background.finish(lambda *_: None, lambda: True) is None  # the run was asked to end
    assert warnings[1:] == [line.replace("it took longer than 4 s", "the run was asked to end")]


def test_a_full_disk_is_one_warning(run: Path):
    def full(model: Path) -> None:
        raise OSError(28, "No space left on device")

    warnings: list[str] = []
    background = Pushes(run, "me/small", True, warnings.append)
    for _ in range(2):
        background.start(full)
    (line,) = warnings
    assert "No space left on device" in line and background.is_ready()


def test_a_process_that_breaks_off(run: Path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert Push(run, run, "me/small", True).wait(lambda *_: None) == Outcome(error="it broke off")
