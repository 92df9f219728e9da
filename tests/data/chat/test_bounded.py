"""A chat template that fails, loops or uses too much memory ends in an error of one line, within limits."""

import resource
import signal
import threading
import time

import pytest
from corpora import TEXTS

import hfbsz.data.chat.bounded as bounds
from hfbsz.data.chat.bounded import TooLong, bounded
from hfbsz.data.chat.chat import Chat
from hfbsz.data.tokenizer.tokenizer import train_tokenizer
from hfbsz.errors import UserError
from hfbsz.system.signals import Interrupt

MESSAGES = [
    {"role": "user", "content": "What is six times seven?", "learned": False},
    {"role": "assistant", "content": "Forty-two.", "learned": True},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def refusal(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises((ValueError, UserError)) as caught:
        Chat(tokenizer, "all", 128).encode(MESSAGES)
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system\nrole') }}", "refuses this conversation: no system role"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ messages.__class__.__mro__ }}", "is unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "maximum recursion depth"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ],
)
def test_case_s03_a_template_that_fails_is_one_line(tokenizer, template, message):
    line = refusal(tokenizer, template)
    assert message in line and "\n" not in line


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 'a' | center(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{% set it = namespace(x='aaaa') %}{% for i in range(60) %}{% set it.x = it.x ~ it.x %}{% endfor %}{{ it.x }}",
    ],
)
def test_a_template_that_takes_too_much_memory_is_one_line(tokenizer, template):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "uses too much memory: more than 1 GiB" in refusal(tokenizer, template)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * 2**20  # KiB
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_text_of_many_times_its_conversation_is_refused(tokenizer):
    assert "3,000,000 characters from" in refusal(tokenizer, "{{ 'abc' * 10**6 }}")


def test_a_template_that_does_not_end_is_stopped(tokenizer, monkeypatch):
    monkeypatch.setattr("hfbsz.data.chat.template.bounded", lambda: bounded(0.2))
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    started = time.process_time()
    assert "does not end: stopped after" in refusal(tokenizer, endless)
    assert time.process_time() - started < 5


def test_time_is_bounded_under_the_handlers_of_a_run_which_takes_it_for_no_signal():
    before = {number: signal.getsignal(number) for number in Interrupt.SIGNALS}
    interrupt = Interrupt()
    try:
        with pytest.raises(TooLong), bounded(0.05):
            while True:
                pass
        time.sleep(0.3)
        assert not interrupt() and signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_nothing_is_bounded():
    done = []

    def work():
        with bounded(0.01):
            done.append(sum(range(10**6)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done and bounds.SECONDS > 1
