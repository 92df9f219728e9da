"""Conversations as rows of token ids and labels, and statistics of the tokens that end answers."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np

from hfbsz.data import IGNORED
from hfbsz.data.chat.answers import Answers, Rendered
from hfbsz.data.chat.conversations import Message
from hfbsz.data.chat.tokens import Encoder
from hfbsz.data.tokenizer.special_tokens import hide, special_pattern


@dataclass(frozen=True)
class Encoded:
    """A row of token ids with one label for each: the id itself, or IGNORED where it is not learned. A preference pair
    is one row: its chosen conversation, followed by the rejected one."""

    ids: list[int]
    labels: list[int]
    text_bytes: float  # bytes of the text that the labels stand for
    was_cut: bool
    chosen: int | None = None  # of a pair: the ids of the chosen conversation; the others are of the rejected one

    @property
    def has_targets(self) -> bool:
        """Whether a label is learned; of a pair, in both of its conversations."""
        parts = [self.labels] if self.chosen is None else [self.labels[: self.chosen], self.labels[self.chosen :]]
        return all(any(label != IGNORED for label in part) for part in parts)


class Chat:
    """Converts conversations to rows by the chat template of one tokenizer, and collects statistics for notes.

    A row holds at most `length` + 1 tokens, because n inputs have n targets. `ends` are the token ids at which
    generation with the model ends; empty: the tokenizer's end-of-sequence token. `day` is the date that the template
    uses as today's.
    """

    def __init__(
        self,
        tokenizer: Any,
        answers: Literal["all", "last"],
        length: int,
        ends: Collection[int] = (),
        day: date | None = None,
    ) -> None:
        self.tokenizer, self.answers, self.length, self.day = tokenizer, answers, length, day
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.ends = frozenset(ends) or frozenset(eos)
        self._end_tokens = self.ends | set(eos) | _turn_tokens(tokenizer)
        self._special = special_pattern(tokenizer)
        self._answers, self._encode = Answers(tokenizer, day), Encoder(tokenizer)
        self._ended: Counter[int] = Counter()  # learned answers, by the token that ends them
        self._ended_last: Counter[int] = Counter()  # those that end with it at generation too
        self._unended: Counter[str] = Counter()  # learned answers without an end token, by their last characters
        self._named: Counter[str] = Counter()  # conversations, by the special token that their text names
        self._flagged = 0  # conversations that flag other messages than the assistant's as learned

    def encode(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[Encoded]:
        """The rows of a conversation: one, or several if the template renders earlier turns differently later on.

        Raises ValueError if the template rejects the conversation (with its own message) or leaves out a part of it.
        """
        hidden = hide([list(messages), tools], self._special)
        messages, tools = hidden.value
        try:
            rows = self._answers.rows(messages, tools, self.answers == "last")
        except ValueError as problem:
            message = "".join(hidden.names.get(character, character) for character in str(problem))
            raise ValueError(message) from None
        self._flagged += any(message["role"] != "assistant" and message["learned"] for message in messages)
        self._named.update(hidden.names.values())
        return [self._row(row, hidden.names) for row in rows]

    def _row(self, row: Rendered, names: Any) -> Encoded:
        tokens = self._encode(row.text, row.answers, names)
        learned = tokens.within(row.answers)
        learned[:1] = False
        learned[self.length + 1 :] = False
        labels = np.where(learned, tokens.ids, IGNORED)[: self.length + 1]
        for span in row.answers:
            index = tokens.last_of(span)
            if index is None or index > self.length:
                continue
            if (end := int(tokens.ids[index])) in self._end_tokens:
                self._ended[end] += 1
                self._ended_last[end] += row.as_last or not row.text[span[1] :].strip()
            else:
                self._unended[row.text[slice(*span)].rstrip()[-12:]] += 1
        was_cut = len(tokens.ids) > self.length + 1
        ids = tokens.ids[: self.length + 1].tolist()
        return Encoded(ids, labels.tolist(), float(tokens.bytes_of(learned)), was_cut)

    @property
    def end_ids(self) -> set[int]:
        """Token ids that end learned answers: generation with the tuned model must end at each of them."""
        return set(+self._ended_last or self._ended)

    @property
    def end_token_learned(self) -> str | None:
        """The token that ends most learned answers; None if none does."""
        common = (+self._ended_last or self._ended).most_common(1)
        return self._name(common[0][0]) if common else None

    def _name(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def notes(self) -> list[str]:
        """One line for each thing that is unusual about the rows so far."""
        return [*self._end_notes(), *self._template_notes()]

    def _end_notes(self) -> list[str]:
        unended, ended = self._unended.total(), self._ended.total()
        if not unended and not ended:
            return []
        example = f"like {self._unended.most_common(1)[0][0]!r}" if unended else ""
        if not ended:
            return [
                f"no learned token ends generation: answers end {example} and no end token, so the tuned model does "
                "not stop by itself: use a tokenizer whose chat template ends answers with a token"
            ]
        notes = []
        if unended:
            notes.append(
                f"{unended:,} of {unended + ended:,} learned answers end with no token that ends generation, {example}"
            )
        if others := self.end_ids - self.ends:
            names = ", ".join(f"{self._name(token)} ({token})" for token in sorted(others))
            notes.append(f"answers end with {names}: the saved generation_config.json ends generation there too")
        return notes

    def _template_notes(self) -> list[str]:
        counts, notes = self._answers.counts, []
        if counts["rewritten"]:
            notes.append(
                f"the chat template renders earlier turns differently after later ones: {_some(counts['rewritten'])} "
                f"became {counts['rows']:,} rows, each answer as in its own turn (data.answers=last: only the last)"
            )
        if counts["dated"] and self.day is not None:
            notes.append(
                f"the chat template writes the current date: all rows have {self.day}, so that they are the same on "
                "every day (data.date)"
            )
        if counts["prompt"]:
            notes.append(
                f"the chat template's generation prompt ends with {self._answers.prompt_end!r}, which answers "
                "do not begin with: at generation the model gets another prompt than in training"
            )
        if counts["changed"]:
            notes.append(
                f"{counts['changed']:,} learned answers are not rendered word for word: the chat template leaves out "
                "or changes a part of them (often reasoning, in <think>)"
            )
        if counts["tools"]:
            notes.append(f"the chat template ignores the tools of {_some(counts['tools'])}")
        if self._flagged:
            notes.append(
                f"messages that are not the assistant's are flagged as learned in {_some(self._flagged)}: they are "
                "treated as context"
            )
        for name, count in self._named.most_common():
            notes.append(f"messages contain the special token {name} in {_some(count)}: it is encoded as text")
        return notes


def _some(count: int) -> str:
    return f"{count:,} conversation" + "s" * (count != 1)


def _turn_tokens(tokenizer: Any) -> set[int]:
    """Ids of added tokens that can end a turn: all but blank ones and tags that close a part of a turn."""
    return {
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or not token.content.startswith(("</", "<｜/")))
    }
