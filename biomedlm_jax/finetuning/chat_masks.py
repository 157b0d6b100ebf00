"""Conversations -> token ids and which of them are in the loss: the assistant's, proven.

An answer's tokens are those between two renderings of the template: of the messages before it with
the header of an answer, and of the messages up to it. Both must begin the whole text, and their ids
the ids of the whole text; otherwise decoding would begin from other ids than training. The last
token of an answer is the template's stop token. {% generation %} blocks are taken as they stand.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from biomedlm_jax.corpus.chat_template import ChatTemplate, Message
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.finetuning.conversations import ASSISTANT, SYSTEM, USER, Conversation, turn_starts
from biomedlm_jax.generation.chat import encode_chat, stop_token
from biomedlm_jax.qa.packing import TOKENS, Prompt, size

PROBE = ({"role": USER, "content": "Is it so?"}, {"role": ASSISTANT, "content": "It is."})


class Masked(NamedTuple):
    """Token ids of a conversation and whether each is in the loss."""

    ids: list[int]
    trained: list[bool]

    def prompt(self, number: int) -> tuple[Prompt, list[bool]]:
        """Return the ids up to the last in the loss as a prompt of one branch, and its mask."""
        first = self.trained.index(True)
        last = len(self.trained) - self.trained[::-1].index(True)
        return Prompt(self.ids[:first], [self.ids[first:last]], number), self.trained[first:last]


class Fitted(NamedTuple):
    """A conversation that fits a row, and how it was made to."""

    conversation: Conversation
    masked: Masked
    shortened: str  # "": whole


@dataclasses.dataclass(frozen=True)
class Masker:
    """Encodes conversations with one template and tokenizer.

    `hidden` are pairs of markers, begin and end: what an answer has between them is not in the
    loss, the markers are. Raises InputError for a template whose masks cannot be proven.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    stop_id: int
    hidden: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        ends: Sequence[int],
        hidden: tuple[str, ...] = (),
    ) -> "Masker":
        """Prove the template on conversations of one and of two turns."""
        if len(hidden) % 2 or not all(hidden):
            raise InputError(
                f"got data.masked_spans={hidden}; expected pairs of begin and end markers"
            )
        masker = cls(template, tokenizer, stop_token(template, tokenizer, ends), hidden)
        for messages in (PROBE, PROBE * 2):
            trained = tuple(one["role"] == ASSISTANT for one in messages)
            try:
                masker.mask(Conversation(messages, trained, "", ""))
            except InputError as error:
                turns = f"a conversation of {counted(len(messages) // 2, 'turn')}"
                fix = "fix: set another --config.data.template"
                raise InputError(f"cannot prove the masks of {turns}: {error}; {fix}") from None
        return masker

    def mask(self, conversation: Conversation) -> Masked:
        """Return the ids of a conversation and its mask; raises InputError if it has no proof."""
        text, blocks = self.template.render_marked(conversation.messages)
        ids = self._encode(text)
        answers = [i for i, one in enumerate(conversation.messages) if one["role"] == ASSISTANT]
        marked = self.template.marks_answers
        if marked and len(blocks) != len(answers):
            got = f"{len(blocks)} generation blocks for {len(answers)} answers"
            raise InputError(f"the chat template of {self.template.where} has {got}")
        mask = [False] * len(ids)
        for number, i in enumerate(answers):
            if not conversation.trained[i]:
                continue
            first, end = blocks[number] if marked else self._span(conversation.messages, i, text)
            begin = len(self._prefix(ids, text, first, whole=True))
            shown = self._prefix(ids, text, end, whole=marked)
            stop = self._stop(shown, begin)
            last = len(shown) if marked else stop + 1
            mask[begin:last] = [True] * (last - begin)
            for one in range(0, len(self.hidden), 2):
                self._hide(mask, ids, text, (first, end), self.hidden[one : one + 2])
        if not any(mask) or mask[0]:
            raise InputError("the loss would have no token, or the first one of the text")
        return Masked(ids, mask)

    def fit(self, conversation: Conversation, positions: int) -> Fitted | None:
        """Return a conversation cut at its left to `positions`; None if an answer has no room.

        The oldest turns go first, whole; then the system message; then the start of what the user
        wrote last. An answer is never cut.
        """
        masked = self.mask(conversation)
        if _size(masked) <= positions:
            return Fitted(conversation, masked, "")
        before = 1 if conversation.messages[0]["role"] == SYSTEM else 0
        end = conversation.answered
        starts = [i for i in turn_starts(conversation.messages) if before < i < end]
        shorter = [
            (_part(conversation, [*range(before)], i), "of their oldest turns") for i in starts
        ]
        last = starts[-1] if starts else before
        if before and conversation.messages[last]["role"] == USER:
            shorter.append((_part(conversation, [], last), "of turns and system message"))
        for one, reason in shorter:
            masked = self.mask(one)
            if _size(masked) <= positions:
                return Fitted(one, masked, reason)
        alone = shorter[-1][0] if shorter else conversation
        return self._cut(alone, positions)

    def _cut(self, conversation: Conversation, positions: int) -> Fitted | None:
        """Cut the start of the user's text, by characters, as little as needed."""
        end = conversation.answered
        users = [i for i in range(end) if conversation.messages[i]["role"] == USER]
        if not users:  # an answer to a system message
            return None
        at = users[-1]
        message = conversation.messages[at]
        name = "input" if message.get("input") else "content"
        whole, low, high, best = message[name], 1, len(message[name]) - 1, None
        while low <= high:  # fewest characters that must go; ids grow with the text, nearly
            middle = (low + high) // 2
            cut = {**message, name: whole[middle:]}
            if name == "input":
                cut["content"] = f"{message.get('instruction', '')}\n\n{whole[middle:]}".lstrip()
            messages = (*conversation.messages[:at], cut, *conversation.messages[at + 1 : end + 1])
            one = conversation._replace(messages=messages, trained=conversation.trained[: end + 1])
            masked = self.mask(one)
            if _size(masked) <= positions:
                best, high = Fitted(one, masked, "of the start of the user's text"), middle - 1
            else:
                low = middle + 1
        return best

    def _encode(self, text: str) -> list[int]:
        return encode_chat(self.tokenizer, text)

    def _span(self, messages: Sequence[Message], i: int, text: str) -> tuple[int, int]:
        """Return first and end characters of the answer `i`, by differencing."""
        header = self.template.render(messages[:i], True)
        turn = text if i + 1 == len(messages) else self.template.render(messages[: i + 1], False)
        for what, part in (("the header of an answer", header), ("a turn", turn)):
            if not text.startswith(part):
                got = f"renders {what} otherwise when messages follow"
                raise InputError(f"the chat template of {self.template.where} {got}")
        if len(turn) <= len(header):
            raise InputError(f"the chat template of {self.template.where} leaves out an answer")
        return len(header), len(turn)

    def _prefix(self, ids: list[int], text: str, end: int, *, whole: bool) -> list[int]:
        """Return the ids of the text's first characters, which must be the first of `ids`.

        Not `whole`: what they share with `ids`, as white space behind a stop token may merge.
        """
        prefix = self._encode(text[:end])
        shared = _shared(prefix, ids)
        if whole and shared < len(prefix):
            around = text[max(0, end - 20) : end + 20]
            got = f"gives other ids to {around!r} when the text ends inside of it"
            raise InputError(f"the tokenizer {got}, so the answer has no first or last token")
        return prefix[:shared]

    def _stop(self, shown: list[int], begin: int) -> int:
        """Return the place of the stop token that ends an answer, with white space behind it."""
        place = len(shown) - 1
        while place >= begin and shown[place] != self.stop_id:
            if self.tokenizer.decode([shown[place]], skip_special_tokens=False).strip():
                break
            place -= 1
        if place < begin or shown[place] != self.stop_id:
            name = self.tokenizer.id_to_token(self.stop_id)
            got = f"the answer does not end in the stop token {name}"
            raise InputError(f"{got}, so the model would not learn to stop")
        return place

    def _hide(
        self, mask: list[bool], ids: list[int], text: str, span: tuple[int, int], markers: Any
    ) -> None:
        """Take what is between two markers of an answer out of the loss."""
        begin, end = markers
        at = text.find(begin, *span)
        while at >= 0:
            first = at + len(begin)
            last = text.find(end, first, span[1])
            if last < 0:
                raise InputError(f"an answer has {begin} without {end} behind it")
            low, high = (len(self._prefix(ids, text, one, whole=False)) for one in (first, last))
            mask[low:high] = [False] * (high - low)
            at = text.find(begin, last + len(end), span[1])


def _size(masked: Masked) -> int:
    return size(masked.prompt(0)[0], TOKENS)


def _part(conversation: Conversation, kept: list[int], first: int) -> Conversation:
    """Return the messages `kept` and those from `first` to the last that is in the loss."""
    chosen = [*kept, *range(first, conversation.answered + 1)]
    messages = tuple(conversation.messages[i] for i in chosen)
    return conversation._replace(
        messages=messages, trained=tuple(conversation.trained[i] for i in chosen)
    )


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
