"""The model card's lines run as they stand, whatever the task."""

import re

import pytest
import watched
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hfbsz.report.card import model_card

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 258}
TURNS = "{% for turn in messages %}{{ turn.content }}{% endfor %}"


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, "<pad>", "<end>"])}
    bare = Tokenizer(models.BPE(vocabulary, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", eos_token="<end>", model_input_names=names, chat_template=TURNS
    )


@pytest.mark.parametrize("task", ["language_modeling", "instruction", "preference", "classification"])
def test_its_lines_run(task, tmp_path, capsys):
    labels = {0: "fresh", 1: "rotten"}
    if task == "classification":
        model = BertForSequenceClassification(BertConfig(**SIZE, num_labels=2, id2label=labels))
        plan = watched.classification()
    else:
        model, plan = LlamaForCausalLM(LlamaConfig(**SIZE)), watched.plan_of(f"task={task}")
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    card = model_card("name", "tiny", "reviews", str(tmp_path), "Trained.", {"loss": "0.5 nats/target"}, plan)
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    exec(code, {})
    told = capsys.readouterr().out.strip()
    assert told in labels.values() if task == "classification" else len(told) > 5
    tag = "text-classification" if task == "classification" else "text-generation"
    assert f"pipeline_tag: {tag}\n" in card and "| loss | 0.5 nats/target |" in card
