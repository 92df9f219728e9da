"""Conversations as rows of token ids and labels: what is learnt, and whether it ends."""

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
    """A row: as many labels as ids, IGNORED where nothing is learnt."""

    ids: list[int]
    labels: list[int]
    text_bytes: float  # of what the labels stand for
    was_cut: bool


class Chat:
    """Makes rows of conversations by the chat template of one tokenizer, and remembers what they were like.

    A row of n inputs has n targets, so it holds `length` tokens and one more. `ends` are the ids at which generation
    with the model ends, the tokenizer's own end where they are not known; `day` is what the template takes for today.
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
        own_end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.ends = frozenset(ends) or frozenset(own_end)
        self._marks_of_end = self.ends | set(own_end) | _added(tokenizer)
        self._special = special_pattern(tokenizer)
        self._finder, self._encode = Answers(tokenizer, day), Encoder(tokenizer)
        self._ended: Counter[int] = Counter()  # learnt answers by the token that ends them
        self._ended_last: Counter[int] = Counter()  # those that are known to end so at generation too
        self._open: Counter[str] = Counter()  # those that no such token ends, by their last characters
        self._named: Counter[str] = Counter()  # conversations by the special token that they name
        self._flagged = 0

    def encode(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> list[Encoded]:
        """The rows of a conversation: one, or several where the template writes earlier turns otherwise later on.

        Raises ValueError where the template refuses, with its own words, and where it would leave something out.
        """
        hidden = hide([list(messages), tools], self._special)
        messages, tools = hidden.value
        try:
            rows = self._finder.rows(messages, tools, self.answers == "last")
        except ValueError as problem:
            raise ValueError("".join(hidden.names.get(sign, sign) for sign in str(problem))) from None
        self._flagged += any(message["role"] != "assistant" and message["learnt"] for message in messages)
        self._named.update(hidden.names.values())
        return [self._row(row, hidden.names) for row in rows]

    def _row(self, row: Rendered, names: Any) -> Encoded:
        tokens = self._encode(row.text, row.answers, names)
        learnt = tokens.within(row.answers)
        learnt[:1] = False
        learnt[self.length + 1 :] = False
        labels = np.where(learnt, tokens.ids, IGNORED)[: self.length + 1]
        for span in row.answers:
            place = tokens.last_of(span)
            if place is None or place > self.length:
                continue
            if (end := int(tokens.ids[place])) in self._marks_of_end:
                self._ended[end] += 1
                self._ended_last[end] += row.at_own_time or not row.text[span[1] :].strip()
            else:
                self._open[row.text[slice(*span)].rstrip()[-12:]] += 1
        was_cut = len(tokens.ids) > self.length + 1
        ids = tokens.ids[: self.length + 1].tolist()
        return Encoded(ids, labels.tolist(), float(tokens.bytes_of(learnt)), was_cut)

    @property
    def end_ids(self) -> set[int]:
        """The ids that end learnt answers: generation with the tuned model must end at each of them."""
        return set(+self._ended_last or self._ended)

    @property
    def end_token_learnt(self) -> str | None:
        """The token that ends most learnt answers; None where none does."""
        common = (+self._ended_last or self._ended).most_common(1)
        return self._name(common[0][0]) if common else None

    def _name(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def notes(self) -> list[str]:
        """What all rows so far together said: a line each."""
        return [*self._of_ends(), *self._of_template()]

    def _of_ends(self) -> list[str]:
        unended, ended = self._open.total(), self._ended.total()
        if not unended and not ended:
            return []
        shown = f"like {self._open.most_common(1)[0][0]!r}" if unended else ""
        if not ended:
            return [
                f"no learnt token ends generation: answers end {shown} and no end token, so the tuned model does not "
                "stop by itself: take a tokenizer whose chat template ends answers with a token"
            ]
        notes = []
        if unended:
            notes.append(
                f"{unended:,} of {unended + ended:,} learnt answers end with no token that ends generation, {shown}"
            )
        if others := self.end_ids - self.ends:
            names = ", ".join(f"{self._name(token)} ({token})" for token in sorted(others))
            notes.append(f"answers end with {names}: the saved generation_config.json ends generation there too")
        return notes

    def _of_template(self) -> list[str]:
        odd, notes = self._finder.odd, []
        if odd["rewritten"]:
            notes.append(
                f"the chat template rewrites earlier turns once later ones are there: {_some(odd['rewritten'])} became "
                f"{odd['rows']:,} rows, each answer as at its own time (data.answers=last: the last of each alone)"
            )
        if odd["dated"] and self.day is not None:
            notes.append(
                f"the chat template writes the current date into rows: {self.day} stands in all of them, so that they "
                "are the same on every day (data.date)"
            )
        if odd["prompt"]:
            notes.append(
                f"the chat template's generation prompt ends with {self._finder.prompt_end!r}, and the answers begin "
                "otherwise: at generation the model is asked otherwise than it learnt"
            )
        if odd["changed"]:
            notes.append(
                f"{odd['changed']:,} learnt answers are not rendered word for word: the chat template leaves out or "
                "changes a part of them (mostly thoughts, in <think>)"
            )
        if odd["tools"]:
            notes.append(f"the chat template ignores the tools of {_some(odd['tools'])}")
        if self._flagged:
            notes.append(
                f"messages that are not the assistant's are flagged as learnt in {_some(self._flagged)}: they are "
                "context"
            )
        for name, count in self._named.most_common():
            notes.append(f"messages name the special token {name} in {_some(count)}: it is text there")
        return notes


def _some(count: int) -> str:
    return f"{count:,} conversation" + "s" * (count != 1)


def _added(tokenizer: Any) -> set[int]:
    """Tokens that can end a turn: those beside the vocabulary of words, but for tags that close a part of a turn."""
    return {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or not token.content.startswith(("</", "<｜/")))
    }
