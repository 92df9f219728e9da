"""Fine-tuning by the real command: overfitting is detected, dated and stopped, and the best model is saved."""

import json
import random
import signal

import numpy as np
import pytest
import torch
from conftest import TINY, records
from test_resume import Started, same_weights, told
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from hfbsz.records.folder import read_status
from hfbsz.train.checkpoint import steps

WORDS = [f"w{number}" for number in range(300)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small BERT that knows nothing, and its tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    BertForMaskedLM(BertConfig(vocab_size=len(names), max_position_embeddings=64, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Rows whose label follows from some of their words, three times in four: the rest can only be learned by heart."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("reviews") / "rows.jsonl"
    rows = []
    for number in range(400):
        words = draw.choices(WORDS, k=draw.randint(4, 24))
        good = sum(int(word[1:]) % 2 for word in words) * 2 > len(words)
        good = good if draw.random() < 0.75 else not good
        rows.append({"text": " ".join([f"w{number % 300}", *words]), "label": ["bad", "good"][good]})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def words(encoder, reviews):
    return [
        f"model.path={encoder}", f"data.files={reviews}", "task=classification", "data.label=label", "data.rows=120",
        "data.validation=50%", "data.sequence_length=32", "batch.size=8seq", "batch.micro_max=8", "optim.lr=3e-3",
        "duration=30epochs", "schedule.shape=constant", "schedule.warmup=10steps", "eval.every=1epochs", "eval.rows=64",
        "eval.patience=4", "checkpoint.save=best", "log.wandb=off", "log.every=5steps", "recipe=tests/finetune.yaml",
        "threads=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(hfbsz, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    ended = hfbsz("finetune.py", *words, f"output_dir={folder}")
    assert ended.code == 0, ended.err
    return folder, ended


def test_overfitting_is_detected_dated_and_stopped(tuned):
    folder, ended = tuned
    evaluations = [record for record in records(folder, "eval") if "overfit/rise" in record]
    losses = {record["train/global_step"]: record["eval/loss"] for record in evaluations}
    best = min(losses, key=lambda step: losses[step])
    last = evaluations[-1]
    assert last["overfit/best_step"] == last["overfit/onset_step"] == best
    assert last["overfit/gap"] > 0.3 and last["overfit/train_loss"] < 0.5 < last["eval/loss"]
    assert list(losses).index(last["train/global_step"]) - list(losses).index(best) == 4
    status = read_status(folder)
    assert (status["state"], status["cause"]) == ("finished", "patience") and "in the 4 since" in status["why"]
    assert "overfitting since step" in ended.out and "stopped" not in ended.err
    assert best in steps(folder)


def test_the_saved_model_is_the_best_and_plain_transformers_reproduces_its_metrics(tuned, reviews):
    """LoadedRecipe as anybody would, over the validation rows as the run drew them."""
    from hfbsz.data.prepare.labels import stratified

    folder, _ = tuned
    (final,) = records(folder, "final")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in reviews.read_text().splitlines()]
    names = [f"rows.jsonl:{number}" for number in range(1, len(rows) + 1)]
    held = [rows[place] for place in sorted(stratified([row["label"] for row in rows], names, 0.5))]
    losses, correct = [], []
    for row in held:
        inputs = tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=32)
        label = torch.tensor([model.config.label2id[row["label"]]])
        with torch.no_grad():
            output = model(**inputs, labels=label)
        losses.append(output.loss.item())
        correct.append(int(output.logits.argmax()) == int(label))
    assert final["full/rows"] == final["full/targets"] == len(held)
    assert final["full/loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert final["full/accuracy"] == pytest.approx(np.mean(correct))
    assert set(model.config.id2label.values()) == {"bad", "good"}


def test_evaluation_does_not_depend_on_the_split(hfbsz, words, tmp_path):
    """The same weights in forward passes of 1, 7 and 64 rows, on one and two processes: equal to 1e-6."""
    evaluations = []
    for name, micro, processes in (("a", 64, 1), ("b", 7, 1), ("c", 1, 1), ("d", 7, 2)):
        folder = tmp_path / name
        more = ["duration=1steps", f"eval.micro_batch={micro}", "schedule.warmup=0%", "precision=fp32"]
        ended = hfbsz("finetune.py", *words, *more, f"output_dir={folder}", processes=processes)
        assert ended.code == 0, ended.err
        evaluations.append(records(folder, "eval")[0])
    for other in evaluations[1:]:
        for name in ("eval/loss", "eval/accuracy", "eval/calibration_error", "overfit/train_loss", "overfit/gap"):
            assert other[name] == pytest.approx(evaluations[0][name], abs=1e-6), name


def test_a_killed_fine_tuning_equals_the_unbroken_one(tuned, words, environment, fork_server, tmp_path):
    """Patience, best evaluation and onset are restored from the checkpoint."""
    unbroken, _ = tuned
    folder, words = tmp_path / "run", [*words, "checkpoint.every=20steps"]
    stop = read_status(unbroken)["step"]
    for target in (stop // 3, stop - 10):
        run = Started(folder, environment, *words, script="finetune.py", server=fork_server)
        run.wait_for(lambda run=run, target=target: run.step() >= target)
        run.end(signal.SIGKILL)
    last = Started(folder, environment, *words, script="finetune.py", server=fork_server)
    _, err = last.process.communicate(timeout=120)
    assert last.process.returncode == 0, err
    assert told(folder) == told(unbroken) and same_weights(folder, unbroken)


def test_dialogue_tuning_of_a_pretrained_run(hfbsz, ragged, tmp_path):
    """finetune.py reads what pretrain.py wrote; only answers are targets; memorization is measured."""
    base, folder, talk = tmp_path / "base", tmp_path / "talk", tmp_path / "talk.jsonl"
    pretrained = hfbsz("pretrain.py", TINY, f"data.files={ragged}", f"output_dir={base}")
    assert pretrained.code == 0, pretrained.err
    answer = "the parser adds argument {} and returns it, or it exits with an error and the usage"
    lines = [{"talk": [f"parse argument {n}?", answer.format(n)]} for n in range(60)]
    talk.write_text("\n".join(map(json.dumps, lines)))
    words = ["recipe=tests/finetune.yaml", "task=instruction", f"model.path={base}", f"data.files={talk}"]
    words += ["data.messages=talk", "batch.size=8seq", "duration=80steps", "optim.lr=3e-3", "eval.every=25%"]
    words += ["data.validation=20%", "data.sequence_length=96", "log.wandb=off", f"output_dir={folder}"]
    ended = hfbsz("finetune.py", *words)
    assert ended.code == 0, ended.err
    evaluations = records(folder, "eval")
    assert evaluations[-1]["eval/loss"] < evaluations[0]["eval/loss"] - 1
    assert evaluations[0]["eval/targets"] < evaluations[0]["train/num_input_tokens_seen"] + 12 * 96
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = [{"role": "user", "content": "parse argument 3?"}]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert text == "User: parse argument 3?\nAssistant:"
    assert 0 <= evaluations[-1]["overfit/train_extractable"] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["data.label=null"], "data.label: name the column"),
        (["data.messages=talk"], "data.messages does not belong to task=classification"),
        (["data.pack=true"], "data.pack and data.stream"),
        (["data.sequence_length=100"], "beyond the model's window of 64 tokens"),
        (["data.validation=0%"], "is not a share"),
        (["data.files=nothing.jsonl"], "no file matches"),
        (["model.path=nowhere/at/all"], "cannot be loaded"),
        (["eval.metrics=[acuracy]"], "metric 'acuracy'"),
        (["data.lable=x"], "did you mean 'data.label'"),
        (["data.rows=100000"], "is more than the"),
    ],
)
def test_wrong_input_is_one_line(hfbsz, words, tmp_path, change, message):
    ended = hfbsz("finetune.py", *words, *change, f"output_dir={tmp_path}/run")
    assert ended.code == 2 and message in ended.err and "Traceback" not in ended.err
    assert ended.err.count("error: ") == 1
