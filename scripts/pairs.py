"""Make preference pairs from conversations.

    python scripts/pairs.py [out=pairs.jsonl] [rejected=shuffled|other] [characters=300] [WORD …]

The chosen answer of a pair is the one that was given. The rejected one is the same with its words in random order
(shuffled; answers of fewer than four words are left out), or the answer of another conversation (other). So these pairs
are synthetic: they tell which answer is a sentence, or which fits the prompt, not what people prefer.

out: the file to write. characters: a pair ends at the last answer within so many characters of its conversation. WORD:
the words of a recipe with task=instruction (default: recipe=pretrain_then_finetune, whose data is a package).
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfbsz.commands.options import whole_number
from hfbsz.data.chat.conversations import Message
from hfbsz.data.prepare.example_reader import Reader
from hfbsz.data.sources.sources import Opened, open_source
from hfbsz.errors import UserError, exit_code
from hfbsz.recipe.load import load
from hfbsz.recipe.tasks import RowKind
from hfbsz.recipe.words import split_options
from hfbsz.system.files import refuse_others, write_text

_LEAST_WORDS = 4  # of an answer whose words are shuffled
_MARK = b'{"prompt": '  # how the files of this script begin


def main(words: list[str]) -> int:
    """Write the pairs; returns the exit code."""
    if any(word in ("-h", "--help", "help") for word in words):
        print(__doc__.strip())
        return 0
    options, rest = split_options(words, ("out", "rejected", "characters"))
    out, rejected = Path(options.get("out", "pairs.jsonl")), options.get("rejected", "shuffled")
    return exit_code(lambda: _write(out, rejected, whole_number(options, "characters") or 300, rest))


def _write(out: Path, rejected: str, characters: int, words: list[str]) -> None:
    if rejected not in _WAYS:
        raise UserError(f"rejected={rejected}: neither {' nor '.join(_WAYS)}")
    refuse_others("out", out, _MARK)
    named = any(word.startswith("recipe=") for word in words)
    recipe = load(words if named else ["recipe=pretrain_then_finetune", *words]).recipe
    if recipe.row_kind is not RowKind.CONVERSATION:
        raise UserError(f"task={recipe.task}: pairs are made from conversations, of a recipe with task=instruction")
    reader = Reader(RowKind.CONVERSATION, Opened(open_source(recipe.data), recipe.data))
    cut = (_cut(example.messages, characters) for example in reader.examples(lambda *_: None))
    rows = list(_WAYS[rejected]([messages for messages in cut if messages]))
    if not rows:
        raise UserError(f"characters={characters}: no conversation has an answer by then that gives a pair")
    write_text(out, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    print(f"{out}: {len(rows):,} pairs")


def _cut(messages: tuple[Message, ...], characters: int) -> list[dict[str, Any]]:
    """A conversation up to its last learned answer within so many characters; empty if it has none after a prompt."""
    end = total = 0
    for number, message in enumerate(messages):
        total += len(message["content"])
        if total <= characters and number and message["role"] == "assistant" and message["learned"]:
            end = number + 1
    return [{name: value for name, value in message.items() if name != "learned"} for message in messages[:end]]


def _shuffled(conversations: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Each conversation, and as rejected its answer with the words in another order, between the same white space."""
    draw = random.Random(0)
    for messages in conversations:
        parts = re.split(r"(\s+)", messages[-1]["content"])
        places = [place for place, part in enumerate(parts) if part.strip()]
        order = draw.sample(places, len(places))
        moved = dict(zip(places, order, strict=True))
        text = "".join(parts[moved.get(place, place)] for place in range(len(parts)))
        if len(places) >= _LEAST_WORDS and text != messages[-1]["content"]:
            yield {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [{**messages[-1], "content": text}]}


def _of_others(conversations: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Each conversation, and as rejected the next different answer from half of all conversations on."""
    count = len(conversations)
    for number, messages in enumerate(conversations):
        others = (conversations[(number + count // 2 + step) % count][-1] for step in range(count))
        rejected = next((other for other in others if other["content"] != messages[-1]["content"]), None)
        if rejected is not None:
            yield {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [rejected]}


_WAYS = {"shuffled": _shuffled, "other": _of_others}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
