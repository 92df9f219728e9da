"""Conversations in the forms of real data sets, and the tokens that are learned."""

import json
import time
from datetime import date

import pytest
from chats import CHATML, NO_STOP, THINK, chat_tokenizer, said

from hfbsz.data.chat.chat import Chat
from hfbsz.data.chat.conversations import conversation, from_pair, has_answer
from hfbsz.data.chat.template import TEMPLATE
from hfbsz.data.chat.tool_calls import parse_tools

QUESTION, ANSWER = said("hi", "yo")
CALLS = (  # DeepSeek's joins the texts of calls, Qwen's shows mappings as JSON: this stands for both
    "{% if tools %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + (c.function.arguments | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def call(name="w", **arguments):
    return {"id": name, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def learned_of(messages, template=CHATML, tools=None, answers="all"):
    """What is learned of messages, as text, one for each row."""
    chat = Chat(chat_tokenizer(template), answers, 1000)
    rows = chat.encode(messages, tools)
    return [chat.tokenizer.decode([label for label in row.labels if label >= 0]) for row in rows]


@pytest.mark.parametrize(
    ("messages", "tools", "learned"),
    [
        (
            [QUESTION, {"role": "assistant", "content": "Let me look.", "tool_calls": [call(i=0)]}],
            '[{"type": "function", "function": {"name": "w"}}]',
            'Let me look.<call>w {"i": 0}</call><|im_end|>\n',
        ),
        ([QUESTION, {"role": "assistant", "content": None, "tool_calls": [call()]}], None,
         "<call>w {}</call><|im_end|>\n"),
        (
            [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call()]},
             {"role": "tool", "tool_call_id": "w", "content": "0 C"}, ANSWER],
            None,
            "<call>w {}</call><|im_end|>\nyo<|im_end|>\n",
        ),
        (
            [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
             {"from": "function_call", "value": "{}"},
             {"from": "observation", "value": "42"}, {"from": "gpt", "value": "a"}],
            None,
            "{}<|im_end|>\na<|im_end|>\n",
        ),
        (
            [QUESTION, {"role": "assistant", "tool_calls": [call("a", x=1), call("b", y="é")]},
             {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, ANSWER],
            None,
            '<call>a {"x": 1}</call><call>b {"y": "é"}</call><|im_end|>\nyo<|im_end|>\n',
        ),
    ],
)  # fmt: skip
def test_case_06_calls_are_learned_as_the_template_renders_them(messages, tools, learned):
    assert learned_of(conversation(messages), CALLS, parse_tools(tools)) == [learned]


def test_case_06_nulls_of_arrow_are_no_arguments():
    """Arrow gives every mapping of a column the keys of all; JSON text keeps the nulls that it has."""
    union = {"function": {"name": "w", "arguments": {"i": 0, "q": None, "deep": [{"a": None, "b": 1}]}}}
    assert learned_of(conversation([QUESTION, {"role": "assistant", "tool_calls": [union]}]), CALLS) == [
        '<call>w {"i": 0, "deep": [{"b": 1}]}</call><|im_end|>\n'
    ]
    text = json.dumps([{"name": "w", "arguments": {"q": None}}])
    assert '{"q": null}' in learned_of(conversation([QUESTION, {"role": "assistant", "tool_calls": text}]), CALLS)[0]
    properties = {"a": {"type": "string", "enum": None}, "b": None}
    (tool,) = parse_tools([{"name": "w", "parameters": {"properties": properties}}])
    assert tool["function"]["parameters"] == {"properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ([QUESTION], [ANSWER]),
        (said("a", "b", "hi"), [ANSWER]),  # earlier answers are context
        ("hi", [ANSWER]),
        ([QUESTION], "yo"),
        (json.dumps([QUESTION]), json.dumps([ANSWER])),
        (str([QUESTION]), str([ANSWER])),  # as pandas writes lists into CSV files
        ([{"role": "system", "content": "s"}, QUESTION], ANSWER),
    ],
)
def test_case_07_prompt_and_completion_of_trl(prompt, completion):
    assert learned_of(from_pair(prompt, completion)) == ["yo<|im_end|>\n"]


def test_case_07_texts_that_look_like_lists_stay_texts():
    for text in ("[1, 2]", '[{"role": 3}]', "[a](b)", "[]"):
        assert learned_of(from_pair("hi", text)) == [f"{text}<|im_end|>\n"]


@pytest.mark.parametrize("template", [TEMPLATE, CHATML, THINK])
def test_case_08_blanks_around_an_answer_are_learned(template):
    (learned,) = learned_of(from_pair("f", "\t  return 0 \n\n"), template)
    assert learned.endswith("\t  return 0 \n\n<|im_end|>\n")


def test_case_23_halves_of_surrogate_pairs_everywhere():
    half = "yo \ud83d"
    messages = [{"role": "system", "content": half}, {**QUESTION, "content": [{"type": "text", "text": half}]},
                {"role": "assistant", "content": half, "tool_calls": [call(x=half)]}]  # fmt: skip
    tools = parse_tools([{"name": "w", "description": half}])
    assert learned_of(conversation(messages), CALLS, tools) == ['yo ?<call>w {"x": "yo ?"}</call><|im_end|>\n']
    text = '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo \\ud83d"}]'
    assert learned_of(conversation(text)) == learned_of(from_pair("hi", half)) == ["yo ?<|im_end|>\n"]
    assert learned_of(conversation(text.replace("\\ud83d", "\\ud83d\\ude00"))) == ["yo 😀<|im_end|>\n"]


@pytest.mark.parametrize(
    ("answers", "learned"),
    [("all", ["<think>\n\n</think>\n\nyo<|im_end|>\n", "<think>\n\n</think>\n\nok<|im_end|>\n"]),
     ("last", ["<think>\n\n</think>\n\nok<|im_end|>\n"])],
)  # fmt: skip
def test_case_37_all_answers_or_the_last(answers, learned):
    assert learned_of(conversation(said("hi", "yo", "and", "ok")), THINK, answers=answers) == learned
    skipped = [*said("hi", "yo", "and"), {"role": "assistant", "content": "ok", "weight": 0}]
    assert learned_of(conversation(skipped), THINK, answers=answers) == ["<think>\n\n</think>\n\nyo<|im_end|>\n"]


@pytest.mark.parametrize(
    "form",
    [
        [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in (QUESTION, ANSWER)],
        json.dumps([QUESTION, ANSWER]),
        {"role": ["user", "assistant"], "content": ["hi", "yo"]},
        [{"role": "User", "content": "hi"}, {"role": "Assistant", "content": "yo"}],
        [{"role": "developer", "content": "short"}, QUESTION, ANSWER],
        json.dumps(json.dumps([QUESTION, ANSWER])),
        json.dumps({"messages": [QUESTION, ANSWER]}),
        {"conversations": {"from": ["human", "gpt"], "value": ["hi", "yo"]}},
        [QUESTION, {"from": "gpt", "value": "yo", "id": 7, "metadata": {"a": [1]}}],
        [{"role": "user", "content": {"type": "input_text", "text": "hi"}}, {"role": "assistant", "content": ["yo"]}],
        [QUESTION, {**ANSWER, "tool_calls": [], "refusal": None}],
    ],
)
def test_case_38_every_form_is_learned_alike(form):
    assert learned_of(conversation(form)) == ["yo<|im_end|>\n"]


@pytest.mark.parametrize("nothing", [None, [], "", {"role": [], "content": []}, [[], []], [ANSWER], [QUESTION]])
def test_case_38_nothing_to_learn_gives_no_row(nothing):
    assert not has_answer(conversation(nothing)) and learned_of(conversation(nothing)) == []


def test_case_05_flags_by_the_names_that_they_have():
    for key in ("weight", "train", "training", "trainable", "train_on_turn", "loss_mask"):
        assert learned_of(conversation([QUESTION, {**ANSWER, key: 0}, *said("and", "ok")])) == ["ok<|im_end|>\n"]
    for key in ("mask", "masked"):
        with pytest.raises(ValueError, match=f"{key} of a message may mean .* train"):
            conversation([QUESTION, {**ANSWER, key: True}])


def test_a_part_without_a_type_holds_nothing_but_text():
    with pytest.raises(ValueError, match="has no type, but image beside its text"):
        conversation([{"role": "user", "content": [{"text": "see", "image": "a.png"}]}, ANSWER])
    assert learned_of(conversation([{"role": "user", "content": [{"text": "see", "image": None}]}, ANSWER]))


def test_a_system_message_between_turns_and_two_answers_in_a_row():
    messages = [QUESTION, ANSWER, {"role": "system", "content": "be kind"}, ANSWER, {**ANSWER, "content": "more"}]
    assert learned_of(conversation(messages)) == ["yo<|im_end|>\nyo<|im_end|>\nmore<|im_end|>\n"]
    assert learned_of(conversation(messages), NO_STOP) == ["yoyomore"]


def test_short_conversations_take_milliseconds():
    """Seven thousand of ten turns, as chitchat-dataset has them, took three minutes once: 25 ms each."""
    chat = Chat(chat_tokenizer(CHATML), "all", 1000)
    texts = [f"how are you {number}? I am fine, thank you" for number in range(500)]
    started = time.process_time()
    rows = [row for text in texts for row in chat.encode(conversation([text] * 10))]
    assert len(rows) == 500 and time.process_time() - started < 500 * 0.008


@pytest.mark.parametrize(
    "calls",
    [
        {"name": ["f", "g"], "arguments": [{}, {"x": 1}]},
        {"id": ["1", "2"], "function": {"name": ["f", "g"], "arguments": ["{}", '{"x": 1}']}},
        {"id": ["1", "2"], "function": [{"name": "f"}, {"name": "g", "arguments": {"x": 1}}]},
    ],
)
def test_case_06_calls_as_columns_of_lists(calls):
    answer = conversation([QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}])[1]
    functions = [call["function"] for call in answer["tool_calls"]]
    assert functions == [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": 1}}]


def test_case_06_columns_of_calls_that_do_not_fit():
    with pytest.raises(ValueError, match="these have 1 of name, 2 of arguments"):
        conversation([QUESTION, {"role": "assistant", "tool_calls": {"name": ["f"], "arguments": ["{}", "{}"]}}])


@pytest.mark.parametrize(
    "refused",
    [{"content": None, "refusal": "I cannot."}, {"content": [{"type": "refusal", "refusal": "I cannot."}]}],
)
def test_case_38_a_refusal_is_the_assistants_text(refused):
    assert learned_of(conversation([QUESTION, {"role": "assistant", **refused}])) == ["I cannot.<|im_end|>\n"]


def test_a_template_that_writes_the_current_date_gives_the_same_rows_every_day():
    dated = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}" + CHATML
    chat = Chat(chat_tokenizer(dated), "all", 1000, day=date(2024, 7, 26))
    (row,) = chat.encode(conversation([QUESTION, ANSWER]))
    assert chat.tokenizer.decode(row.ids).startswith("Today: 26 Jul 2024\n<|im_start|>user")
    assert [note for note in chat.notes() if "2024-07-26" in note]
