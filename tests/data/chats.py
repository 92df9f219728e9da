"""Tokenizers with the chat templates and special tokens of model families."""

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hfbsz.data.tokenizer.tokenizer import train_tokenizer

TEXT = "how are you today? I am fine. the weather is 0 C, thank you. " * 40 + '<think>\n\n</think> {"name": "w"}\n' * 20
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<bos>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINK = (  # as Qwen3: only the answers after the last question keep their reasoning
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING_PROMPT = CHATML.replace(
    "'<|im_start|>assistant\\n' }}{% endif", "'<|im_start|>assistant\\n<think>\\n' }}{% endif"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
NO_STOP = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def chat_tokenizer(template, special=SPECIAL, end="<|im_end|>", bos="<|begin_of_text|>"):
    inner: Tokenizer = train_tokenizer([TEXT], 400).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, bos_token=bos, pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"extra_special_tokens": [word for word in special if word not in (end, bos)]})
    tokenizer.chat_template = template
    return tokenizer


def said(*contents, system=None):
    """A conversation of alternating texts, the user first."""
    start = [{"role": "system", "content": system}] if system is not None else []
    return start + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
