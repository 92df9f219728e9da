"""Scores during a run, at its end, and of a saved model: a fault is one warning, and scores are added once."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import records
from small_models import small_tokenizer

from hfbsz.commands import harness as command
from hfbsz.errors import UserError
from hfbsz.recipe.load import load
from hfbsz.records.record import Clock
from hfbsz.run import scores as scoring
from hfbsz.run.scores import Scorer, check_packages

SCORES = {"harness/t/acc": 0.5, "harness/t/acc_stderr": 0.05, "harness/t/examples": 100, "harness/seconds": 1.0}
needs_harness = pytest.mark.harness


@pytest.fixture(scope="module")
def run(hfbsz, tmp_path_factory):
    """A finished run."""
    path = tmp_path_factory.mktemp("scored") / "run"
    words = ["recipe=tests/tiny.yaml", "duration=40seq", "data.vocab_size=300", "log.page=true", f"output_dir={path}"]
    corpus = path.parent / "corpus.txt"
    corpus.write_text("a line of text and one more\n" * 2000)
    ended = hfbsz("pretrain.py", *words, f"data.files={corpus}")
    assert ended.code == 0, ended.err
    return path


@pytest.fixture(autouse=True)
def _environment(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFBSZ_CACHE", environment["HFBSZ_CACHE"])


def scorer(monkeypatch, score, tasks="t"):
    """A Scorer of a made-up run, with what it emits and its warnings."""
    limit = ["eval.harness.limit=7"] if tasks else []
    recipe = load(["recipe=debug", f"eval.harness.tasks=[{tasks}]", *limit]).recipe
    model = torch.nn.Linear(1, 1)
    optimizer = SimpleNamespace(averaged=lambda: torch.no_grad())
    accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model, is_main_process=True, num_processes=1)
    plan = SimpleNamespace(recipe=recipe)
    setup = SimpleNamespace(plan=plan, model=model, optimizer=optimizer, accelerator=accelerator, tokenizer=None)
    monkeypatch.setattr(scoring, "score", score)
    emitted, warnings = [], []
    return Scorer(setup, emitted.append, warnings.append, lambda *_: None), emitted, warnings


def test_scores_are_recorded_with_the_step_of_the_weights(monkeypatch):
    def score(model, tokenizer, request, show):
        assert request.tasks == ("t",) and request.limit == 7
        model.eval()
        return SCORES

    one, emitted, warnings = scorer(monkeypatch, score)
    assert one.score_alone(Clock(9, 72, 4536, 1.5), 5) == {"t, accuracy": "0.500 ± 0.050 (100 examples)"}
    (reading,) = emitted
    assert reading.event == "harness" and reading.at.step == 9 and reading.values == {"model/step": 5, **SCORES}
    assert warnings == [] and one.setup.model.training


def test_a_fault_is_one_warning_and_training_goes_on(monkeypatch):
    def fails(model, *_):
        model.eval()
        raise ConnectionError("the Hub cannot be reached")

    one, emitted, warnings = scorer(monkeypatch, fails)
    one.score(Clock(9, 72, 4536, 1.5), 9)
    assert emitted == [] and one.setup.model.training
    assert warnings == [
        "eval.harness: the weights of step 9 could not be scored: ConnectionError: the Hub cannot be reached"
    ]


def test_nothing_is_scored_without_tasks(monkeypatch):
    one, emitted, warnings = scorer(monkeypatch, lambda *_: 1 / 0, tasks="")
    one.score(Clock(), 0)
    assert one.score_alone(Clock(), 0) == {} and emitted == warnings == []


def test_a_missing_package_or_file_is_told_before_training(monkeypatch):
    from hfbsz.system import extras

    recipe = load(["recipe=debug", "eval.harness.tasks=[a,./mine.yaml]"]).recipe
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"eval.harness.tasks: .*pip install 'hfbsz\[harness\]'"):
        check_packages(recipe)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"eval.harness.tasks: './mine.yaml': no such file"):
        check_packages(recipe)


def test_a_recipe_file_cannot_name_a_task_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: debug\neval: {harness: {tasks: [a, ./t.yaml]}}\n")
    with pytest.raises(UserError, match=r"eval.harness.tasks: './t.yaml' .* runs code with your permissions"):
        load(["recipe=mine.yaml"])
    (tmp_path / "mine.yaml").write_text("base: debug\neval: {harness: {tasks: [a]}}\n")
    assert load(["recipe=mine.yaml"]).recipe.eval.harness.tasks == ["a"]


@pytest.mark.parametrize("word", ["eval.harness.every=10%", "eval.harness.limit=3"])
def test_options_without_tasks_are_refused(word):
    with pytest.raises(UserError, match=r"eval: harness.every and harness.limit are of tasks"):
        load(["recipe=debug", word])


def test_a_classifier_has_no_tasks():
    with pytest.raises(UserError, match=r"eval.harness.tasks does not belong to task=classification"):
        load(["recipe=debug", "task=classification", "data.label=label", "eval.harness.tasks=[a]"])


@pytest.fixture
def fake_score(monkeypatch):
    """The command scores without lm-evaluation-harness; the list is of what it asks for."""
    asked = []

    def score(model, tokenizer, request, show):
        assert not hasattr(model, "module") and tokenizer.eos_token_id is not None
        asked.append(request)
        return SCORES | {"harness/seconds": float(len(asked))}

    monkeypatch.setattr(scoring, "score", score)
    monkeypatch.setattr(command, "require", lambda *_: None)
    return asked


def test_the_command_adds_scores_once_and_draws_the_page_again(run, fake_score, capsys):
    before = (run / "records.jsonl").read_text()
    assert command.main([str(run), "tasks=t", "limit=100"]) == 0
    assert "t                            accuracy               0.500 ± 0.050" in capsys.readouterr().out
    (record,) = records(run, "harness")
    assert record["model/step"] == record["train/global_step"] == 5 and record["harness/t/acc"] == 0.5
    assert record["train/num_input_tokens_seen"] == records(run, "final")[0]["train/num_input_tokens_seen"]
    page = (run / "report.html").read_text()
    assert "Scores on tasks" in page and "0.500 ± 0.050" in page
    assert command.main([str(run), "tasks=t", "format=json"]) == 0
    (score,) = json.loads(capsys.readouterr().out)[str(run)]
    assert score == {"task": "t", "measure": "acc", "value": 0.5, "error": 0.05, "examples": 100, "step": 5}
    assert len(records(run, "harness")) == 1 and (run / "records.jsonl").read_text().startswith(before)
    numbers = [json.loads(line)["record"] for line in (run / "records.jsonl").read_text().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert [request.limit for request in fake_score] == [100, None]


def test_a_checkpoint_is_scored_at_its_own_step(run, fake_score, capsys):
    (checkpoint, *_) = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    step = int(checkpoint.name.split("-")[1])
    assert command.main([str(checkpoint)]) == 0, capsys.readouterr().err
    assert fake_score[0].tasks == ("python_next_line",)
    record = records(run, "harness")[-1]
    assert record["model/step"] == record["train/global_step"] == step < 5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "not the folder of a run with a saved model"),
        ([], "name at least one run"),
        ([".", "limit=0"], "limit=0: not a whole number above 0"),
        ([".", "limit=many"], "limit=many"),
        ([".", "batch_size=-1"], "batch_size=-1"),
        ([".", "format=xml"], "neither text nor json"),
        ([".", "tasks="], "a name is empty"),
        ([".", "tasks=a,,b"], "a name is empty"),
        (["task=a"], "task=a: no such folder"),
    ],
)
def test_wrong_words_are_told(words, told, fake_score, capsys):
    assert command.main(["format=json", *words] if words else ["format=json"]) == 2
    assert told in capsys.readouterr().err


def test_a_run_at_work_is_told(run, fake_score, capsys):
    from filelock import FileLock

    with FileLock(run / ".lock"):
        assert command.main([str(run)]) == 2
    assert "another run is at work" in capsys.readouterr().err


@needs_harness
def test_a_model_is_scored_the_same_twice_and_random_states_stay(tmp_path):
    pytest.importorskip("lm_eval")
    from transformers import AutoConfig, AutoModelForCausalLM

    from hfbsz.measure.harness import Request, score

    tokenizer = small_tokenizer()
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=300
    )
    model = AutoModelForCausalLM.from_config(config)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    first, second = (score(model, tokenizer, Request(("python_next_line",), 12), lambda *_: None) for _ in range(2))
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    seconds = first.pop("harness/seconds"), second.pop("harness/seconds")
    assert first == second and min(seconds) > 0 and first["harness/python_next_line/examples"] == 12
    assert 0 <= first["harness/python_next_line/acc"] <= 1 and "harness/python_next_line/acc_norm_stderr" in first
    assert not model.training


@needs_harness
def test_a_task_file_is_scored_and_a_wrong_one_is_told(tmp_path):
    pytest.importorskip("lm_eval")
    from transformers import AutoConfig, AutoModelForCausalLM

    from hfbsz.measure.harness import Request, score

    lines = [json.dumps({"context": f"{number} =", "choices": [" 1", " 2"], "answer": 0}) for number in range(6)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/mine.jsonl}}}}\ndoc_to_text: '{{{{context}}}}'\n"
        "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n"
    )
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=300
    )
    model, tokenizer = AutoModelForCausalLM.from_config(config), small_tokenizer()
    found = score(model, tokenizer, Request((f"{tmp_path}/mine.yaml",)), lambda *_: None)
    assert found["harness/mine/examples"] == 6 and 0 <= found["harness/mine/acc"] <= 1
    (tmp_path / "wrong.yaml").write_text("output_type: multiple_choice\n")
    for name, told in (("wrong.yaml", "cannot be loaded"), ("none.yaml", "no such file")):
        with pytest.raises(UserError, match=told):
            score(model, tokenizer, Request((f"{tmp_path}/{name}",)), lambda *_: None)


@needs_harness
@pytest.mark.process
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_scores_its_model_during_training_and_at_the_end(hfbsz, ragged, tmp_path, processes):
    pytest.importorskip("lm_eval")
    path = tmp_path / "run"
    words = ["recipe=tests/tiny.yaml", f"data.files={ragged}", "duration=6steps", f"output_dir={path}"]
    plain = hfbsz("pretrain.py", *words[:-1], f"output_dir={tmp_path}/plain", processes=processes)
    words += ["eval.harness.tasks=[python_next_line]", "eval.harness.limit=4", "eval.harness.every=3steps"]
    ended = hfbsz("pretrain.py", *words, processes=processes)
    assert plain.code == ended.code == 0 and "warning" not in ended.out, ended.err
    assert [record["model/step"] for record in records(path, "harness")] == [3, 6]
    assert "python_next_line, accuracy" in ended.out
    weights = [(folder / "model.safetensors").read_bytes() for folder in (path, tmp_path / "plain")]
    assert weights[0] == weights[1]  # scoring changes nothing
