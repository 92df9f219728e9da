"""Forms of conversations, and which messages are answers to learn."""

import json

import pytest

from hfbsz.data.chat.conversations import conversation, from_pair, has_answer, transcript
from hfbsz.data.chat.tool_calls import parse_tools

SAID = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "see you")]
PLAIN = [{"role": role, "content": content} for role, content in SAID]
SHARED = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": content} for role, content in SAID]
CALL = {"name": "w", "arguments": {"i": 0}}
CALLED = [{"type": "function", "function": CALL}]


def texts(messages):
    return [(message["role"], message["content"]) for message in messages]


def learned(messages):
    return [message["content"] for message in messages if message["learned"]]


@pytest.mark.parametrize(
    "form",
    [
        PLAIN,
        tuple(PLAIN),
        SHARED,
        [{"role": role, "value": content} for role, content in SAID],
        [{"role": role, "text": content} for role, content in SAID],
        [content for _, content in SAID],
        [["hi", "hello"], ["bye", "see you"]],
        [[{"text": content, "sender": role}] for role, content in SAID],
        [{"text": content, "sender": f"id-{role}"} for role, content in SAID],
        [{"text": content, "speaker": role} for role, content in SAID],
        [{"role": "system", "content": " "}, *PLAIN],
        [None, *PLAIN],
    ],
)
def test_every_form_is_the_same_conversation(form):
    assert texts(conversation(form)) == SAID
    assert learned(conversation(form)) == ["hello", "see you"]


@pytest.mark.parametrize(
    "form",
    [
        [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in SAID],
        [{"role": role, "content": [{"text": content[:1]}, content[1:], None]} for role, content in SAID],
        [{"role": role, "content": {"type": "input_text", "text": content}} for role, content in SAID],
        json.dumps(PLAIN),
        json.dumps(SHARED),
        json.dumps([content for _, content in SAID]),
        [json.dumps(message) for message in PLAIN],
        str(PLAIN),  # as pandas writes a list into a CSV file
        {"role": [role for role, _ in SAID], "content": [content for _, content in SAID]},
        {"from": [m["from"] for m in SHARED], "value": [m["value"] for m in SHARED], "weight": None},
        json.dumps({"role": [role for role, _ in SAID], "content": [content for _, content in SAID]}),
        [{"role": role.capitalize(), "content": content} for role, content in SAID],
        [{"from": {"user": "HUMAN", "assistant": "ChatGPT "}[role], "value": content} for role, content in SAID],
    ],
)
def test_case_38_forms_and_names_of_roles(form):
    assert texts(conversation(form)) == SAID
    assert learned(conversation(form)) == ["hello", "see you"]


@pytest.mark.parametrize(
    "nothing", [None, float("nan"), [], "", "null", "[]", [None, None], {"role": [], "content": []}]
)
def test_case_38_a_null_conversation_has_nothing_to_learn(nothing):
    assert conversation(nothing) == [] and not has_answer(conversation(nothing))


def test_case_38_a_developer_is_a_role():
    assert texts(conversation([{"role": "developer", "content": "short"}, *PLAIN]))[0] == ("developer", "short")


def test_case_05_an_answer_with_weight_0_is_context():
    for flag in ({"weight": 0}, {"weight": 0.0}, {"train": False}, {"train": 0}, {"learned": False}, {"loss": False}):
        messages = conversation([PLAIN[0], {**PLAIN[1], **flag}, PLAIN[2], {**PLAIN[3], "weight": 1}])
        assert learned(messages) == ["see you"], flag
    columns = {"from": [m["from"] for m in SHARED], "value": [m["value"] for m in SHARED], "train": [0, 0, 0, 1]}
    assert learned(conversation(columns)) == ["see you"]
    assert learned(conversation([PLAIN[0], {**PLAIN[1], "weight": None, "loss": 0.35}])) == ["hello"]
    assert not has_answer(conversation([PLAIN[0], {**PLAIN[1], "weight": 0}]))
    for share in (0.5, -1, "0", [1]):
        with pytest.raises(ValueError, match="weight of a message must be 0 or 1"):
            conversation([PLAIN[0], {**PLAIN[1], "weight": share}])


def test_a_flag_on_a_question_is_kept_for_a_note():
    messages = conversation([{**PLAIN[0], "weight": 1}, PLAIN[1]])
    assert [message["learned"] for message in messages] == [True, True] and has_answer(messages)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "w", "arguments": '{"i": 0}'}}]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": '{"i": 0}'}},
        {"role": "assistant", "content": None, "tool_calls": [{"function": "w", "parameters": {"i": 0}}]},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "tool_calls", "value": json.dumps([CALL])},
        {"role": "tool_call", "content": CALL},
    ],
)
def test_case_06_tool_calls_in_every_form(turn):
    messages = conversation([PLAIN[0], turn, {"role": "tool", "content": "0 C"}])
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": CALLED, "learned": True}
    assert texts(messages)[2] == ("tool", "0 C") and has_answer(messages)


def test_case_06_results_and_calls_that_are_text():
    roles = ["tool", "function", "ipython", "Observation", "tool_response"]
    assert {texts(conversation([{"role": name, "content": "42"}]))[0] for name in roles} == {("tool", "42")}
    turns = [{"from": "system", "value": "s"}, SHARED[0], {"from": "function_call", "value": "{}"}]
    messages = conversation([*turns, {"from": "observation", "value": "42"}, SHARED[1]])
    assert texts(messages)[2:] == [("assistant", "{}"), ("tool", "42"), ("assistant", "hello")]
    assert learned(messages) == ["{}", "hello"]
    result = conversation([{"role": "tool", "tool_call_id": "c", "name": "w", "content": ""}])
    assert result == [{"role": "tool", "content": "", "tool_call_id": "c", "name": "w", "learned": False}]


def test_case_06_conversations_that_differ_in_calls_alone_are_two():
    first, second = (
        conversation([PLAIN[0], {"role": "assistant", "tool_calls": [{"name": "w", "arguments": {"i": i}}]}])
        for i in range(2)
    )
    assert transcript(first) != transcript(second)


def test_tools_are_functions_with_names():
    tool = {"name": "w", "parameters": {}}
    wrapped = [{"type": "function", "function": tool}]
    for form in ([tool], tool, wrapped, json.dumps([tool]), json.dumps(wrapped), [json.dumps(tool)], str([tool])):
        assert parse_tools(form) == wrapped
    assert [parse_tools(nothing) for nothing in (None, [], "", "null", float("nan"))] == [None] * 5
    for wrong, message in (
        ("w", "a list of tools as text must be JSON"),
        ([1], "this is a int"),
        ([{"type": "x"}], "type"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_tools(wrong)


@pytest.mark.parametrize("text", ["    return 0\n\n", "\ta\t", " \n x", "a\r\n", "  日本  "])
def test_case_08_text_is_kept_byte_for_byte(text):
    assert texts(from_pair(text, text)) == [("user", text), ("assistant", text)]
    assert texts(conversation([{"role": "user", "content": text}])) == [("user", text)]
    assert texts(conversation([text, text]))[1] == ("assistant", text)
    assert texts(conversation([{"role": "user", "content": [{"type": "text", "text": text}] * 2}])) == [
        ("user", text + text)
    ]


def test_case_23_halves_of_surrogate_pairs_are_replaced_everywhere():
    half = "you \ud83d"
    messages = conversation([PLAIN[0], {"role": "assistant", "content": half, "tool_calls": [{"name": half}]}])
    assert messages[1]["content"] == "you ?" and messages[1]["tool_calls"][0]["function"]["name"] == "you ?"
    assert texts(from_pair(half, half, half)) == [("system", "you ?"), ("user", "you ?"), ("assistant", "you ?")]
    assert parse_tools([{"name": "w", "description": half}])[0]["function"]["description"] == "you ?"


def test_messages_with_roles_stay_apart_and_speakers_in_a_row_become_one():
    assert texts(conversation([PLAIN[0], PLAIN[0], PLAIN[1], PLAIN[3]])) == [SAID[0], SAID[0], SAID[1], SAID[3]]
    spoken = [[{"text": "a ", "sender": 1}, {"text": "b", "sender": 1}], [{"text": "c", "sender": 2}]]
    assert texts(conversation(spoken)) == [("user", "a \nb"), ("assistant", "c")]


def test_what_opens_or_says_nothing_is_context():
    opened = conversation([PLAIN[1], PLAIN[3], *PLAIN])
    assert [message["learned"] for message in opened] == [False, False, False, True, False, True]
    assert not has_answer(conversation([PLAIN[0], {"role": "assistant", "content": " "}]))
    assert has_answer(conversation([PLAIN[0], {"role": "assistant", "content": "", "thinking": "hm"}]))


def test_reasoning_and_other_keys_reach_the_template():
    turn = {"role": "assistant", "content": "a", "thinking": "hm", "channel": "final", "score": None}
    assert conversation([PLAIN[0], turn])[1] == {
        "role": "assistant", "content": "a", "reasoning_content": "hm", "channel": "final", "learned": True
    }  # fmt: skip


def test_case_07_prompts_and_responses():
    assert texts(from_pair("q", 42)) == [("user", "q"), ("assistant", "42")]
    assert texts(from_pair(1.5, "a", "s")) == [("system", "s"), ("user", "1.5"), ("assistant", "a")]
    for empty in (None, "", " ", float("nan"), []):
        assert not has_answer(from_pair("q", empty)) and not has_answer(from_pair(empty, "a"))
    with pytest.raises(ValueError, match="the response is True, not text"):
        from_pair("q", True)


def test_case_07_lists_of_trl():
    pair = from_pair(PLAIN[:3], PLAIN[3:])
    assert texts(pair) == SAID and learned(pair) == ["see you"]
    several = from_pair("q", [{"role": "assistant", "content": "a"}, PLAIN[2], PLAIN[3]])
    assert learned(several) == ["a", "see you"]
    assert learned(from_pair(PLAIN[:1], "a")) == ["a"] and learned(from_pair(PLAIN[0], PLAIN[1])) == ["hello"]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("hello", "must be JSON, this is 'hello'"),
        (3, "a list of messages, this is a int"),
        ('"hi"', "must be JSON, this is"),
        ([{"role": "narrator", "content": "x"}], "'narrator' is not a role"),
        ([{"role": None, "content": "x"}], "None is not a role"),
        ([{"role": "user", "content": True}], "content must be text, this is a bool"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "part of type 'image_url'"),
        ([{"role": "user", "message": "x"}], "this one holds role, message"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "a user message holds tool calls"),
        ([PLAIN[0], {"role": "assistant", "tool_calls": [{"id": "c"}]}], "names no function, it has only id"),
        ([PLAIN[0], {"role": "assistant", "tool_calls": [{"name": "w", "arguments": "x=1"}]}], "not JSON: 'x=1'"),
        ([PLAIN[0], {"role": "assistant", "tool_calls": [{"name": "w", "arguments": [1]}]}], "a list, not a mapping"),
        ([{"text": "a", "sender": n} for n in range(3)], "3 speakers"),
        ({"role": ["user"], "content": ["a", "b"]}, "1 of role, 2 of content"),
        ([["a", "b", "c"]], "a question and an answer in each"),
        ([1, 2], "messages must hold role and content"),
    ],
)
def test_other_forms_are_refused(form, message):
    with pytest.raises(ValueError, match=message) as refused:
        conversation(form)
    assert "\n" not in str(refused.value)


def test_numbers_are_text():
    assert texts(conversation([{"role": "user", "content": 3}])) == [("user", "3")]
