"""Conversations as rows: which tokens are learned, for every kind of chat template."""

import pytest
import torch
from chats import CHATML, NO_STOP, NO_SYSTEM, THINK, THINKING_PROMPT, chat_tokenizer, said
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, ByT5Tokenizer

from hfbsz.data import IGNORED
from hfbsz.data.chat.chat import Chat
from hfbsz.data.chat.conversations import conversation
from hfbsz.data.chat.template import TEMPLATE, ChatTemplate

TWICE = said("hi", "yo", "and", "ok")
WITH_CALLS = (
    "{% if tools %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' }}ARGUMENTS{{ '</call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CALL = {"id": "c", "type": "function", "function": {"name": "w", "arguments": '{"i": 0}'}}
CALLING = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "0 C"},
    {"role": "assistant", "content": "It is 0 C"},
]
TOOLS = [{"type": "function", "function": {"name": "w"}}]


def chat_of(template, answers="all", length=1000, **special):
    return Chat(chat_tokenizer(template, **special), answers, length)


def shown(chat, messages, tools=None):
    """The rows of a conversation as text, with the learned parts in brackets."""
    rows = []
    for row in chat.encode(conversation(messages), tools):
        assert len(row.ids) == len(row.labels) and row.labels[0] == IGNORED
        assert all(label in (IGNORED, token) for token, label in zip(row.ids, row.labels, strict=True))
        parts, start = [], 0
        for end in range(1, len(row.ids) + 1):
            if end == len(row.ids) or (row.labels[end] >= 0) != (row.labels[start] >= 0):
                text = chat.tokenizer.decode(row.ids[start:end])
                parts.append(f"[{text}]" if row.labels[start] >= 0 else text)
                start = end
        rows.append("".join(parts))
    return rows


def test_the_answers_are_learned_with_what_ends_them_and_nothing_else():
    chat = chat_of(TEMPLATE)
    assert shown(chat, TWICE) == ["User: hi\nAssistant:[ yo<|im_end|>\n]User: and\nAssistant:[ ok<|im_end|>\n]"]
    assert chat.notes() == [] and chat.end_token_learned == "<|im_end|>"
    (row,) = chat.encode(conversation(TWICE))
    assert row.text_bytes == len(" yo<|im_end|>\n ok<|im_end|>\n") and not row.was_cut


def test_an_opening_by_the_assistant_is_context():
    (text,) = shown(chat_of(TEMPLATE), TWICE[1:])
    assert text.startswith("Assistant: yo<|im_end|>\nUser: and\nAssistant:[ ok")
    assert chat_of(TEMPLATE).encode(conversation(TWICE[1:2])) == []


def test_the_last_answer_alone():
    assert shown(chat_of(CHATML, "last"), TWICE)[0].endswith("yo<|im_end|>\n" + END_OF_TWICE)


END_OF_TWICE = "<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n[ok<|im_end|>\n]"


def test_case_05_an_answer_that_is_not_to_be_learned():
    messages = [TWICE[0], {**TWICE[1], "weight": 0}, TWICE[2], {**TWICE[3], "weight": 1}]
    assert shown(chat_of(CHATML), messages)[0].endswith("yo<|im_end|>\n" + END_OF_TWICE)
    asked = chat_of(CHATML)
    assert shown(asked, [{**TWICE[0], "train": True}, TWICE[1]])[0].count("[") == 1
    assert [note.split(":")[0] for note in asked.notes()] == [
        "messages that are not the assistant's are flagged as learned in 1 conversation"
    ]


def test_case_06_tool_calls_and_their_results():
    (text,) = shown(chat_of(TEMPLATE), CALLING, TOOLS)
    assert text == (
        'Tools: [{"type": "function", "function": {"name": "w"}}]\nUser: weather?\n'
        'Assistant:[ Call: {"name": "w", "arguments": {"i": 0}}<|im_end|>\n]Tool: 0 C\n'
        "Assistant:[ It is 0 C<|im_end|>\n]"
    )
    looking = [CALLING[0], {**CALLING[1], "content": "Let me look."}]
    (text,) = shown(chat_of(TEMPLATE), looking)
    assert text.endswith('[ Let me look.\nCall: {"name": "w", "arguments": {"i": 0}}<|im_end|>\n]')


@pytest.mark.parametrize("arguments", ["{{ c.function.arguments | tojson }}", "{{ c.function.arguments }}"])
def test_case_06_arguments_as_templates_want_them(arguments):
    chat = chat_of(WITH_CALLS.replace("ARGUMENTS", arguments))
    (text,) = shown(chat, CALLING, TOOLS)
    assert '[<call>w {"i": 0}</call><|im_end|>\n]<|im_start|>tool\n0 C' in text and text.startswith("<|im_start|>tools")
    assert chat.notes() == []


def test_case_06_a_template_that_joins_texts_and_asks_for_null():
    deepseek = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['content'] is none %}"
        "{% for c in m['tool_calls'] %}{{ c['function']['name'] + ':' + c['function']['arguments'] }}{% endfor %}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    assert '[w:{"i": 0}<|im_end|>\n]' in shown(chat_of(deepseek), CALLING)[0]


def test_case_06_what_a_template_leaves_out_is_refused_by_name():
    with pytest.raises(ValueError, match="does not render tool calls"):
        chat_of(CHATML).encode(conversation(CALLING))
    for role in ("tool", "system"):
        without = "{% for m in messages if m.role != '" + role + "' %}" + CHATML.removeprefix("{% for m in messages %}")
        messages = [{"role": "system", "content": "s"}, TWICE[0], {"role": "tool", "content": "i"}, TWICE[1]]
        with pytest.raises(ValueError, match=f"leaves out the {role} message"):
            chat_of(without).encode(conversation(messages))
    ignoring = chat_of(CHATML)
    ignoring.encode(conversation(TWICE), TOOLS)
    assert ignoring.notes() == ["the chat template ignores the tools of 1 conversation"]


def test_case_08_text_is_learned_byte_for_byte():
    assert "[    return 0\n\n<|im_end|>\n]" in shown(chat_of(CHATML), said("f", "    return 0\n\n"))[0]


def test_case_09_answers_without_an_end_are_reported():
    chat = chat_of(NO_STOP)
    assert shown(chat, TWICE) == ["<|user|>\nhi<|assistant|>\n[yo]<|user|>\nand<|assistant|>\n[ok]"]
    assert chat.notes()[0].startswith("no learned token ends generation: answers end like 'yo'")
    assert chat.end_token_learned is None and chat.end_ids == set()
    # the words of an end are no end where the tokenizer has no such token
    worded = chat_of(CHATML.replace("|", "*"))
    worded.encode(conversation(TWICE))
    assert worded.notes()[0].startswith("no learned token ends generation: answers end like")


def test_case_09_an_end_that_is_not_the_tokenizers_own():
    chat = chat_of(CHATML, end="<|endoftext|>", special=["<|im_start|>", "<|im_end|>"])
    shown(chat, TWICE)
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.end_ids == {end} and chat.end_token_learned == "<|im_end|>"
    assert chat.notes()[0].startswith(f"answers end with <|im_end|> ({end})")
    known = Chat(chat.tokenizer, "all", 1000, ends=[end])
    known.encode(conversation(TWICE))
    assert known.notes() == []


def test_case_09_ends_of_some_answers_alone():
    template = "{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}"
    chat = chat_of(template + "{% if add_generation_prompt %}assistant:{% else %}{{ eos_token }}{% endif %}")
    assert shown(chat, TWICE) == [
        "user:hi\nassistant:[yo\n<|im_end|>]",
        "user:hi\nassistant:yo\nuser:and\nassistant:[ok\n<|im_end|>]",
    ]


def test_two_marks_at_the_end_of_a_conversation_are_one_row():
    phi = CHATML.replace("{% if add", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add")
    chat = chat_of(phi, end="<|endoftext|>", special=["<|im_start|>", "<|im_end|>"])
    (text,) = shown(chat, TWICE)
    assert "[yo<|im_end|>\n]" in text and text.endswith("[ok<|im_end|>\n<|endoftext|>]")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (NO_SYSTEM, "System role not supported"),
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ messages[0].content.nothing() }}", "has no attribute 'nothing'"),
        ("{{ 'a' + 1 }}", "can only concatenate str"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_case_24_a_template_that_refuses_says_why_in_one_line(template, words):
    with pytest.raises(ValueError, match=words) as refused:
        chat_of(template).encode(conversation(said("hi", "yo", system="be kind")))
    assert str(refused.value).startswith("the tokenizer's chat template refuses") and "\n" not in str(refused.value)


def test_case_37_each_answer_as_in_its_own_turn():
    chat = chat_of(THINK)
    assert shown(chat, TWICE) == [
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[<think>\n\n</think>\n\nyo<|im_end|>\n]",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>user\nand<|im_end|>\n"
        "<|im_start|>assistant\n[<think>\n\n</think>\n\nok<|im_end|>\n]",
    ]
    assert "1 conversation became 2 rows" in chat.notes()[0]
    assert shown(chat_of(THINK, "last"), TWICE) == shown(chat, TWICE)[1:]
    assert shown(chat, [*TWICE, {"role": "user", "content": "more"}]) == shown(chat, TWICE)


def test_case_37_answers_to_one_question_share_a_row():
    messages = [*TWICE, {"role": "assistant", "content": "go on"}]
    rows = shown(chat_of(THINK), messages)
    assert [row.count("[") for row in rows] == [1, 2]
    assert rows[1].endswith("ok<|im_end|>\n]<|im_start|>assistant\n[<think>\n\n</think>\n\ngo on<|im_end|>\n]")


def test_case_37_thoughts_in_the_data():
    chat = chat_of(THINK.replace("m['content']", "m['content'].split('</think>')[-1]"))
    shown(chat, said("hi", "<think>hm</think>yo"))
    assert any("1 learned answers are not rendered word for word" in note for note in chat.notes())


def test_case_37_a_generation_prompt_that_answers_do_not_begin_with():
    chat = chat_of(THINKING_PROMPT)
    (text,) = shown(chat, TWICE)
    assert text.endswith(END_OF_TWICE) and text.count("[") == 2
    assert any("generation prompt ends with" in note and "<think>" in note for note in chat.notes())
    thoughtful = chat_of(THINKING_PROMPT)
    assert "<think>\n[hm</think>" in shown(thoughtful, said("hi", "<think>\nhm</think>yo"))[0]
    assert thoughtful.notes() == []


def test_case_37_a_template_without_a_beginning_of_answers_is_refused():
    rewriting = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="renders the turns before an answer differently"):
        chat_of(rewriting).encode(conversation(TWICE))


def test_case_38_developers():
    messages = [{"role": "developer", "content": "short"}, *TWICE]
    assert shown(chat_of(CHATML), messages)[0].startswith("<|im_start|>system\nshort")
    knowing = CHATML + "{# developer #}"
    assert shown(chat_of(knowing), messages)[0].startswith("<|im_start|>developer\nshort")


def test_a_template_of_content_in_parts():
    parts = CHATML.replace("m['content']", "m['content'][0]['text']")
    assert shown(chat_of(parts), TWICE) == shown(chat_of(CHATML), TWICE)


def test_the_templates_own_blocks_are_what_is_learned():
    blocks = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ '\\n' + m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ '\\n' + m.content + '<|im_end|>' }}"
        "{% endif %}{% endfor %}"
    )
    assert shown(chat_of(blocks), TWICE)[0].count("assistant[\n") == 2
    assert shown(chat_of(blocks, "last"), TWICE)[0].count("[") == 1
    silent = [TWICE[0], {**TWICE[1], "weight": 0}, TWICE[2], {"role": "assistant", "content": ""}, *TWICE[2:]]
    (text,) = shown(chat_of(blocks), silent)
    assert text.count("[") == 1 and text.endswith("[\nok<|im_end|>]")


@pytest.mark.parametrize("template", [TEMPLATE, CHATML])
def test_special_tokens_inside_a_message_are_text(template):
    chat = chat_of(template)
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    (row,) = chat.encode(conversation(said("the <|im_end|> token", "it is <|im_end|>, and <|eot_id|>")))
    (plain,) = chat.encode(conversation(said("the token", "it is, and")))
    assert row.ids.count(end) == plain.ids.count(end) and row.labels.count(end) == 1
    text = chat.tokenizer.decode(row.ids)
    assert "the <|im_end|> token" in text and "it is <|im_end|>, and <|eot_id|><|im_end|>" in text
    learned = chat.tokenizer.decode([label for label in row.labels if label >= 0])
    assert learned.strip() == "it is <|im_end|>, and <|eot_id|><|im_end|>" and row.text_bytes == len(learned)
    assert [note for note in chat.notes() if "<|im_end|>" in note] == [
        "messages contain the special token <|im_end|> in 1 conversation: it is encoded as text"
    ]


def test_blanks_and_signs_of_several_tokens_are_learned_and_counted_once():
    for trim in (False, True):
        chat = chat_of(CHATML)
        chat.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
        (row,) = chat.encode(conversation(said("hi", "a  😀   é")))
        learned = chat.tokenizer.decode([label for label in row.labels if label >= 0])
        assert learned == "a  😀   é<|im_end|>\n" and row.text_bytes == len(learned.encode())


def test_a_row_is_cut_behind_its_last_target():
    chat = chat_of(CHATML, length=20)
    (row,) = chat.encode(conversation(said("hi", "how are you today? " * 20)))
    assert len(row.ids) == len(row.labels) == 21 and row.was_cut and row.labels[-1] >= 0
    assert chat.notes() == []  # an end that was cut off is not missing


def test_a_tokenizer_without_offsets():
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = TEMPLATE
    chat = Chat(tokenizer, "all", 1000)
    # this tokenizer's </s> takes the blanks beside it along
    assert shown(chat, said("hi", "yo é", "and", "ok")) == [
        "User: hi\nAssistant:[ yo é</s>]User: and\nAssistant:[ ok</s>]"
    ]
    (row,) = chat.encode(conversation(said("say </s>", "no")))
    assert row.ids.count(tokenizer.eos_token_id) == 1 and "say </s>\nAssistant: no</s>" in tokenizer.decode(row.ids)
    assert chat.end_ids == {tokenizer.eos_token_id}


@pytest.mark.parametrize("calls", [False, True])
def test_rendering_is_linear_in_turns(monkeypatch, calls):
    """A conversation of any length is rendered twice, once its kinds of turns are in the cache."""
    count, render = 0, ChatTemplate._render

    def counted(self, *words):
        nonlocal count
        count += 1
        return render(self, *words)

    monkeypatch.setattr(ChatTemplate, "_render", counted)
    chat = chat_of(WITH_CALLS.replace("ARGUMENTS", "{{ c.function.arguments | tojson }}"), length=10**6)
    turns = CALLING if calls else TWICE
    chat.encode(conversation(turns * 50))
    first, count = count, 0
    rows = chat.encode(conversation(turns * 20))
    assert first <= 12 and count == 2
    assert len(rows) == 1 and sum(label >= 0 for label in rows[0].labels) > 40


def test_a_tuned_model_stops_where_it_should():
    """Answers end with a token that is not the tokenizer's own end: generation ends there too, by `end_ids`."""
    chat = chat_of(CHATML, end="<|endoftext|>", special=["<|im_start|>", "<|im_end|>"])
    answers = {"how are you?": "I am fine.", "is it 0 C?": "today it is 0 C, thank you"}
    rows = [row for pair in answers.items() for row in chat.encode(conversation(said(*pair)))]
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(1)
    config = AutoConfig.for_model("llama", vocab_size=len(chat.tokenizer), num_key_value_heads=4, **shape)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = sum(model(input_ids=torch.tensor([r.ids]), labels=torch.tensor([r.labels])).loss for r in rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.end_ids == {end} and end != chat.tokenizer.eos_token_id
    for question, answer in answers.items():
        prompt = chat.tokenizer.apply_chat_template(said(question), add_generation_prompt=True, return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=60, do_sample=False, eos_token_id=sorted(chat.end_ids))
        new = output[0, prompt["input_ids"].shape[1] :]
        assert len(new) < 60 and int(new[-1]) == end and chat.tokenizer.decode(new) == f"{answer}<|im_end|>"
