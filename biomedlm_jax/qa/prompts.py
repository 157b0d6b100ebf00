"""Questions -> prompts of token ids: BioMedLM's rows for fine-tuning, and lm-eval's prompts."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import prefix_ids
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import RELEASED
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION
from biomedlm_jax.qa.adapters import LETTERS
from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.tasks import Task

# In the order of their ids, from the size of the pre-trained vocabulary up.
ADDED_TOKENS = {
    CHOICE: ("[PAD]", "[CLS]", "[SEP]"),
    CLASSIFICATION: ("[PAD]", "<|CONTEXT|>", "<|QUESTION1|>", "<|QUESTION2|>", "<|ANSWER|>"),
}
Wrap = Callable[[str], str]  # a user's text -> the chat up to where the assistant's answer begins
LEAST_LENGTH = 8  # tokens of a row: the added tokens, part of the question, part of an option


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a user's text; one that spells a special token is plain text."""
    before, tokenizer.encode_special_tokens = tokenizer.encode_special_tokens, True
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = before


def special_texts(tokenizer: Tokenizer) -> list[str]:
    """Return the texts of the special tokens."""
    return [one.content for one in tokenizer.get_added_tokens_decoder().values() if one.special]


def spells_special(tokenizer: Tokenizer, questions: Iterable[Question]) -> list[str]:
    """Return the ids of the questions whose texts spell a special token, such as [SEP]."""
    specials = special_texts(tokenizer)
    return [
        one.id
        for one in questions
        if any(
            name in text for text in (one.question, one.context, *one.options) for name in specials
        )
    ]


class Prompts(NamedTuple):
    """The prompts of some questions, and which questions lost text to fit the length."""

    prompts: list[Prompt]
    truncated: list[bool]

    @property
    def alike(self) -> list[bool]:
        """Which questions have options of the same tokens: equal texts, or cut to be equal."""
        texts: list[list[tuple]] = [[] for _ in self.truncated]
        for prompt in self.prompts:
            prefix = tuple(prompt.prefix)
            texts[prompt.question] += [(prefix, *branch) for branch in prompt.branches]
        return [len({*of_question}) < len(of_question) for of_question in texts]


def choice_prompts(
    tokenizer: Tokenizer, questions: Sequence[Question], *, row_format: str, max_length: int
) -> Prompts:
    """Return `question[SEP]` with a branch ` option[SEP]` for each option: for MultipleChoice.

    Beyond `max_length` tokens, "keep_end" cuts the start of the question, whose end has the
    request, then the ends of options that leave it less than half of the row. "released" cuts the
    end of the longer part, option by option, `[SEP]` included, as the published code's tokenizer
    does. Raises InputError for less than `LEAST_LENGTH` tokens, or a tokenizer without the added
    tokens.
    """
    _, _, *separator = _added_ids(tokenizer, CHOICE, max_length)
    prompts, truncated = [], []
    for number, question in enumerate(questions):
        before = f"{question.context} " if question.context else ""
        prefix = encode_plain(tokenizer, before + question.question) + separator
        options = [encode_plain(tokenizer, f" {option}") + separator for option in question.options]
        longest = max(map(len, options))
        fits = len(prefix) + longest <= max_length
        truncated.append(not fits)
        if fits:
            prompts.append(Prompt(prefix, options, number))
        elif row_format == RELEASED:
            for i, option in enumerate(options):
                a, b = longest_first(len(prefix), len(option), max_length)
                prompts.append(Prompt(prefix[:a], [option[:b]], number, i))
        else:
            kept = min(len(prefix), max(max_length - longest, max_length // 2))
            room = max_length - kept - 1
            options = [option[:-1][:room] + separator for option in options]
            prompts.append(Prompt(_end(prefix, kept), options, number))
    return Prompts(prompts, truncated)


def classification_prompts(
    tokenizer: Tokenizer, questions: Sequence[Question], *, row_format: str, max_length: int
) -> Prompts:
    """Return one text for each question, read at its last token: for SequenceClassifier.

    "keep_end" is `<|CONTEXT|> context <|QUESTION1|> question <|ANSWER|>`, cut at the start of the
    context, then of the question. "released", the published code's, is the context, its lines
    joined, and the question, cut at the end of the longer.
    """
    _, first, second, _, last = _added_ids(tokenizer, CLASSIFICATION, max_length)
    prompts, truncated = [], []
    for number, one in enumerate(questions):
        released = row_format == RELEASED
        context = encode_plain(
            tokenizer, one.context.replace("\n", " ") if released else one.context
        )
        question = encode_plain(tokenizer, one.question)
        room = max_length if released else max_length - 3
        truncated.append(len(context) + len(question) > room)
        if released:
            a, b = longest_first(len(context), len(question), room)
            text = context[:a] + question[:b]
        else:
            question = _end(question, room)
            context = _end(context, room - len(question))
            text = [first, *context, second, *question, last]
        prompts.append(Prompt(text, [[]], number))
    return Prompts(prompts, truncated)


HEAD_PROMPTS = {CHOICE: choice_prompts, CLASSIFICATION: classification_prompts}


def letter_prompts(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    task: Task,
    *,
    shots: Sequence[Question] = (),
    max_length: int,
    wrap: Wrap | None = None,
) -> Prompts:
    """Return lm-evaluation-harness's prompt of the task, with letters (or classes) as branches.

    Of MMLU, a question has the shots of its own subject. A shot that equals a question is left out
    of its prompt. With `wrap` the prompt, shots included, is one user's turn, and a branch begins
    the assistant's answer.
    """
    answers = _options if task.kind == CLASSIFICATION else _letters
    mmlu = task.name.startswith("mmlu")
    before = [
        (
            shot.content,
            shot.subject or task.subject,
            _letter_text(shot, task) + answers(shot)[shot.label or 0],
        )
        for shot in shots
    ]
    texts = []
    for one in questions:
        subject = one.subject or task.subject
        about = f" about {subject.replace('_', ' ')}" if subject else ""
        description = f"The following are multiple choice questions (with answers){about}."
        here = one.content
        shown = [
            text
            for content, of_subject, text in before
            if content != here and (of_subject == subject or not mmlu)
        ]
        texts.append("\n\n".join([*[description] * mmlu, *shown, _letter_text(one, task)]))
    return _continued(tokenizer, questions, texts, map(answers, questions), max_length, wrap)


def option_prompts(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    max_length: int,
    unconditional: bool = False,
    wrap: Wrap | None = None,
) -> Prompts:
    """Return `Question: ...` and `Answer:` (or that alone), with the option texts as branches.

    With `wrap` they are a user's turn and the assistant's answers.
    """
    texts = [f"{_abstract(one)}Question: {one.question}\nAnswer:" for one in questions]
    if unconditional:
        texts = ["Answer:"] * len(texts)
    return _continued(tokenizer, questions, texts, map(_options, questions), max_length, wrap)


def continuation_prompts(
    texts: Iterable[tuple[str, list[int], list[list[int]]]], *, max_length: int
) -> Prompts:
    """Return prompts that score branches token by token, from (name, prefix, branches) entries.

    As in lm-evaluation-harness, each branch keeps the last `max_length` tokens before its last one:
    branches of a prefix that is cut do not share it. Raises InputError with the name for an empty
    prefix or branch, or a branch of more than `max_length` tokens.
    """
    prompts, truncated = [], []
    for number, (name, prefix, branches) in enumerate(texts):
        if not prefix or not all(branches):
            raise InputError(f"{name} has a prefix or an option of no token; expected at least one")
        longest = max(map(len, branches))
        if longest > max_length:
            got = f"{name} has an option of {longest} tokens"
            raise InputError(f"{got}, and the model has {max_length} positions; leave it out")
        truncated.append(len(prefix) + longest - 1 > max_length)
        if truncated[-1]:
            prompts += [
                Prompt(_end(prefix, max_length + 1 - len(branch)), [branch], number, option)
                for option, branch in enumerate(branches)
            ]
        else:
            prompts.append(Prompt(prefix, branches, number))
    return Prompts(prompts, truncated)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return the lengths of two texts cut to `room` tokens, longest first, as by Hugging Face."""
    if first + second <= room:
        return first, second
    # Of an odd room the longer text has the larger half, or the second of two equals.
    short = min(first, second, room // 2)
    return (room - short, short) if first > second else (short, room - short)


def _continued(
    tokenizer: Tokenizer, questions, texts, answers, max_length: int, wrap: Wrap | None
) -> Prompts:
    entries, before, specials = [], prefix_ids(tokenizer), special_texts(tokenizer)
    for question, text, options in zip(questions, texts, answers, strict=True):
        if wrap:
            # The template spells special tokens, and a user's text may not.
            text, *options = (_broken(one, specials) for one in (text, *options))
            prefix, branches = _in_chat(tokenizer, wrap(text), options)
        else:
            ids = encode_plain(tokenizer, text)
            # lm-eval encodes an option together with the text before it, and splits the tokens.
            branches = [encode_plain(tokenizer, text + option)[len(ids) :] for option in options]
            prefix = before + ids
        entries.append((f"question {question.id!r}", prefix, branches))
    return continuation_prompts(entries, max_length=max_length)


def _in_chat(
    tokenizer: Tokenizer, text: str, options: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the ids of a rendered chat and of the answers that continue it, without a space.

    A token across the boundary, as of a header that ends in a space, belongs to the answers.
    """
    texts = [text, *(text + option.removeprefix(" ") for option in options)]
    ids, *whole = (tokenizer.encode(one, add_special_tokens=False).ids for one in texts)
    shared = min(len(ids), *(len(one) - 1 for one in whole))
    for one in whole:
        pairs = zip(ids[:shared], one, strict=False)
        shared = next((at for at, (a, b) in enumerate(pairs) if a != b), shared)
    return ids[:shared], [one[shared:] for one in whole]


def _broken(text: str, specials: Iterable[str]) -> str:
    """Return the text with a space after the first character of each special token it spells."""
    for name in specials:
        text = text.replace(name, f"{name[0]} {name[1:]}")
    return text


def _added_ids(tokenizer: Tokenizer, kind: str, max_length: int) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    if missing := [name for name in ADDED_TOKENS[kind] if name not in vocabulary]:
        got = f"the tokenizer lacks {', '.join(missing)}, which a {kind} head needs"
        raise InputError(f"{got}; use the one in the fine-tuned directory")
    if max_length < LEAST_LENGTH:
        raise InputError(f"got max_length={max_length}; expected at least {LEAST_LENGTH} tokens")
    return [vocabulary[name] for name in ADDED_TOKENS[kind]]


def _end(ids: list[int], length: int) -> list[int]:
    return ids[max(0, len(ids) - max(0, length)) :]


def _letters(question: Question) -> list[str]:
    if len(question.options) > len(LETTERS):
        got = f"question {question.id!r} has {len(question.options)} options"
        raise InputError(f"{got}, and there are {len(LETTERS)} letters; score it with mode=option")
    return [f" {letter}" for letter in LETTERS[: len(question.options)]]


def _options(question: Question) -> list[str]:
    return [f" {option}" for option in question.options]


def _letter_text(question: Question, task: Task) -> str:
    if task.kind == CLASSIFICATION:
        return f"Abstract: {question.context}\nQuestion: {question.question}\nAnswer:"
    pairs = zip(_letters(question), question.options, strict=True)
    options = "".join(f"{letter.strip()}. {option}\n" for letter, option in pairs)
    mmlu = task.name.startswith("mmlu")
    text = question.question.strip() if mmlu else f"Question: {question.question}"
    choices = "Choices:\n" if task.name == "medmcqa" else ""
    return f"{_abstract(question)}{text}\n{choices}{options}Answer:"


def _abstract(question: Question) -> str:
    return f"Abstract: {question.context}\n" if question.context else ""
