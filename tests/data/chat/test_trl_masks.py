"""Learnt tokens are those of TRL's assistant masks: ten conversations, five families of templates."""

import json
from importlib import resources

import pytest
from chats import chat_tokenizer, said

from hfbsz.data.chat.chat import Chat
from hfbsz.data.chat.conversations import conversation

pytestmark = pytest.mark.trl
utilities = pytest.importorskip("trl.chat_template_utils", reason="TRL is not installed: pip install trl")

CONVERSATIONS = [
    said("how are you?", "I am fine."),
    said("how are you?", "I am fine.", "and today?", "fine, thank you"),
    said("a", "b", "c", "d", "e", "f", "g", "h"),
    said("is it 0 C?", "    yes: 0 C\n  indented"),
    said("the weather", "the weather is fine 日本 é"),
    said("twice", "fine", "twice", "fine"),
    said("empty lines", "one\n\n\ntwo"),
    said("quotes \"'{}", 'I am {"name": "w"}'),
    said("how are you today? " * 20, "I am fine. " * 20),
    said("last is a question", "fine", "the question"),
]
FAMILIES = {  # name: (the end of a turn, whether the original template and TRL's learn the same)
    "qwen2_5": ("<|im_end|>", False),  # TRL learns the line break before an answer too
    "qwen3": ("<|im_end|>", False),  # TRL keeps the empty thoughts of earlier turns
    "llama3": ("<|eot_id|>", True),
    "gemma": ("<end_of_turn>", True),
    "phi3": ("<|end|>", True),
}


def template_of(name):
    return (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def of_trl(tokenizer, messages):
    """Ids and mask of SFTTrainer with assistant_only_loss."""
    template = utilities.get_training_chat_template(tokenizer) or tokenizer.chat_template
    output = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=template
    )
    return output["input_ids"], output["assistant_masks"]


def of_ours(tokenizer, messages):
    (row,) = Chat(tokenizer, "all", 2000).encode(conversation(json.dumps(messages)))
    return row.ids, [int(label >= 0) for label in row.labels]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_templates_of_trl(name):
    tokenizer = chat_tokenizer(template_of(f"{name}_training"), end=FAMILIES[name][0])
    for messages in CONVERSATIONS:
        assert of_ours(tokenizer, messages) == of_trl(tokenizer, messages)


@pytest.mark.parametrize("name", [name for name, (_, same) in FAMILIES.items() if same])
def test_the_templates_of_the_models(name):
    tokenizer = chat_tokenizer(template_of(name), end=FAMILIES[name][0])
    for messages in CONVERSATIONS:
        ids, mask = of_trl(tokenizer, messages)
        assert of_ours(tokenizer, messages) == (ids, mask)


def test_what_is_learned_otherwise_is_known():
    tokenizer = chat_tokenizer(template_of("qwen2_5"))
    for messages in CONVERSATIONS:
        (ids, theirs), (own_ids, ours) = of_trl(tokenizer, messages), of_ours(tokenizer, messages)
        assert ids == own_ids
        more = {tokenizer.decode([token]) for token, a, b in zip(ids, theirs, ours, strict=True) if a != b}
        assert more == {"\n"} and sum(theirs) - sum(ours) == sum(m["role"] == "assistant" for m in messages)
