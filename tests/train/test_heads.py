"""Pretrained classifiers: which heads are kept, which are reset, and the notes about it."""

import json

import pytest
import torch
from small_models import logits, same_logits, small_model, small_tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification

from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.train.model import build_model
from hfbsz.train.pretrained import labels_of

ORDER = ["pos", "neg"]  # not that of the alphabet
OUTPUT = {"bert": "classifier", "roberta": "classifier.out_proj", "distilbert": "classifier", "gpt2": "score"}


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def classifier(folder, labels=ORDER, kind="bert", **changed):
    id2label = dict(enumerate(labels))
    return small_model(folder, kind, labels=len(labels), id2label=id2label, **changed)


def built(path, tokenizer, labels, **fields):
    notes = []
    return build_model(Model(path=str(path), **fields), tokenizer, 0, 16, labels, notes), notes


@pytest.mark.parametrize("kind", OUTPUT)
def test_case_02_a_head_of_the_same_labels_is_kept(tmp_path, tokenizer, kind):
    path = classifier(tmp_path, kind=kind)
    saved = AutoModelForSequenceClassification.from_pretrained(path)
    assert labels_of(Model(path=str(path))) == ORDER
    model, notes = built(path, tokenizer, ORDER)
    assert same_logits(model, saved) and notes == [] and model.config.id2label == {0: "pos", 1: "neg"}


def test_case_02_another_order_of_the_same_labels_is_refused(tmp_path, tokenizer):
    path = classifier(tmp_path)
    with pytest.raises(UserError) as caught:
        built(path, tokenizer, ["neg", "pos"])
    (line,) = caught.value.lines
    assert line.startswith("data.labels: ") and str(path) in line
    assert "pos, neg, not neg, pos" in line and "data.labels=[pos,neg]" in line


@pytest.mark.parametrize("kind", OUTPUT)
@pytest.mark.parametrize("labels", [["ham", "spam"], ["neg", "pos", "neutral"]])
def test_case_02_a_head_of_other_labels_is_reset_and_reported(tmp_path, tokenizer, kind, labels):
    path = classifier(tmp_path, kind=kind)
    saved = AutoModelForSequenceClassification.from_pretrained(path)
    (model, notes), (same, _) = (built(path, tokenizer, labels) for _ in range(2))
    (note,) = notes
    assert note.startswith(f"model.path: '{path}'") and "pos, neg" in note and ", ".join(labels) in note
    before, after = (dict(each.named_parameters()) for each in (saved, model))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith(OUTPUT[kind])}
    assert torch.equal(logits(model), logits(same)) and logits(model).abs().max() > 0


def test_case_02_labels_without_names_are_reported(tmp_path, tokenizer):
    path = small_model(tmp_path, "bert", labels=2)
    saved = AutoModelForSequenceClassification.from_pretrained(path)
    assert labels_of(Model(path=str(path))) == []
    model, notes = built(path, tokenizer, ["ham", "spam"])
    (note,) = notes
    assert note.startswith(f"model.path: '{path}'") and note.endswith("LABEL_0 is ham, LABEL_1 is spam")
    assert same_logits(model, saved)
    (note,) = built(path, tokenizer, ["a", "b", "c"])[1]
    assert note.startswith(f"model.path: '{path}'") and "2 unnamed labels" in note and "a, b, c" in note


def test_a_head_of_another_kind_of_loss_is_reported(tmp_path, tokenizer):
    path = classifier(tmp_path, problem_type="multi_label_classification")
    model, notes = built(path, tokenizer, ORDER)
    (note,) = notes
    assert note.startswith(f"model.path: '{path}'") and "multi_label_classification" in note
    assert model.config.problem_type == "single_label_classification"


def test_labels_that_are_numbers_or_have_gaps(tmp_path):
    path = classifier(tmp_path, ["1", "0"])
    assert labels_of(Model(path=str(path))) == ["1", "0"]
    config = json.loads((path / "config.json").read_text())
    config["id2label"] = {"0": "a", "2": "b"}
    (path / "config.json").write_text(json.dumps(config))
    assert labels_of(Model(path=str(path))) == []


def test_without_a_head_there_are_no_notes(tmp_path, tokenizer):
    path = small_model(tmp_path, "bert", auto=AutoModel)
    assert labels_of(Model(path=str(path))) is None and labels_of(Model(shape={})) is None
    assert built(path, tokenizer, ORDER)[1] == []
    config = json.loads((path / "config.json").read_text())  # names a head that the weights do not have
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "pos", "1": "neg"}}
    (path / "config.json").write_text(json.dumps(config))
    assert built(path, tokenizer, ORDER)[1] == []


def test_case_02_a_saved_head_comes_back_with_lora(tmp_path, tokenizer):
    path = classifier(tmp_path)
    saved = AutoModelForSequenceClassification.from_pretrained(path)
    model, notes = built(path, tokenizer, ORDER, lora={"rank": 2})
    assert same_logits(model, saved) and notes == []
