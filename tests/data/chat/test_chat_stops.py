"""A model tuned on the rows of conversations stops where its answers end."""

import pytest
import torch
from chats import CHATML, NO_STOP, chat_tokenizer, said
from small_models import small_config
from transformers import AutoModelForCausalLM

from hfbsz.data.chat.chat import Chat
from hfbsz.data.chat.conversations import conversation
from hfbsz.data.chat.template import TEMPLATE

NEW = 24
SAID = [said("how are you?", "I am fine", "thank you", "you too"), said("the weather", "it is 0 C today")]


def tuned(chat):
    """A model after a few hundred steps on the rows of the conversations: the labels are the next inputs already."""
    rows = [row for messages in SAID for row in chat.encode(conversation(messages))]
    torch.manual_seed(1)
    config = small_config("llama", vocab_size=len(chat.tokenizer), bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(120):
        for row in rows:
            logits = model(torch.tensor([row.ids[:-1]])).logits[0]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def answers_of(chat):
    """Token ids of the tuned model's answer to each question; generation ends at `end_ids`."""
    tokenizer, model = chat.tokenizer, tuned(chat)
    answers = []
    for messages in (SAID[0][:1], SAID[0][:3], SAID[1][:1]):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        ends = sorted(chat.end_ids) or None
        ids = model.generate(prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=ends, pad_token_id=0)
        answers.append(ids[0, prompt.shape[1] :].tolist())
    return answers


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>"), (CHATML, "<|endoftext|>"), (TEMPLATE, "<|im_end|>")],
    ids=["its own end", "another end than its own", "the default template"],
)
def test_a_tuned_model_stops_where_answers_end(template, end):
    chat = Chat(chat_tokenizer(template, end=end), "all", 200)
    answers = answers_of(chat)
    assert all(len(ids) < NEW and ids[-1] in chat.end_ids for ids in answers)
    texts = [chat.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    assert [text.removesuffix("<|im_end|>") for text in texts] == ["I am fine", "you too", "it is 0 C today"]


def test_case_09_a_model_stops_nowhere_where_the_notes_say_so():
    chat = Chat(chat_tokenizer(NO_STOP), "all", 200)
    assert all(len(ids) == NEW for ids in answers_of(chat))
    assert chat.notes()[0].startswith("no learned token ends generation") and not chat.end_ids
