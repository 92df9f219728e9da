"""Forms of conversations, and which of their characters are learnt."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfbsz.data.conversations import TEMPLATE, conversation, render

SAID = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "see you")]
PLAIN = [{"role": role, "content": content} for role, content in SAID]


@pytest.mark.parametrize(
    "form",
    [
        PLAIN,
        [{"from": {"user": "human", "assistant": "gpt"}[role], "value": content} for role, content in SAID],
        [content for _, content in SAID],
        [[{"text": content, "sender": role}] for role, content in SAID],
        [{"text": content, "sender": role} for role, content in SAID],
        [{"role": "user", "content": " "}, *PLAIN],
    ],
)
def test_every_form_is_the_same_conversation(form):
    assert conversation(form) == PLAIN


def test_messages_of_one_speaker_become_one():
    said = [[{"text": "a", "sender": 1}, {"text": "b", "sender": 1}], [{"text": "c", "sender": 2}]]
    assert conversation(said) == [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("hello", "a conversation is a list of messages, this is a str"),
        ([{"role": "tool", "content": "x"}], "'tool' is no role"),
        ([{"role": "user", "content": 3}], "content is text, this is a int"),
        ([{"text": "a", "sender": n} for n in range(3)], "3 speakers"),
        ([1, 2], "messages hold role and content"),
    ],
)
def test_other_forms_are_refused(form, message):
    with pytest.raises(ValueError, match=message):
        conversation(form)


def tokenizer(template):
    inner = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="a")
    made.chat_template = template
    return made


def test_the_answers_are_marked_and_nothing_else():
    text, answers = render(PLAIN, tokenizer(TEMPLATE))
    assert text == "User: hi\nAssistant: hello</s>\nUser: bye\nAssistant: see you</s>\n"
    assert [text[start:end] for start, end in answers] == [" hello</s>\n", " see you</s>\n"]


def test_an_opening_by_the_assistant_is_context():
    text, answers = render(PLAIN[1:], tokenizer(TEMPLATE))
    assert text.startswith("Assistant: hello") and [text[start:end] for start, end in answers] == [" see you</s>\n"]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    rewriting = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        render(PLAIN, tokenizer(rewriting))
