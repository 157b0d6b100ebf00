"""Examples -> prompts of token ids: the formats that BioMedLM was tuned with, and its harness's.

Prompts share a question's tokens among its options; packing.py lays them out.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer

from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.qa.tasks import Example, Task

PAPER, RELEASED = FORMATS = ("paper", "released")
SEPARATOR = "[SEP]"
CONTEXT, QUESTION, ANSWER = "<|CONTEXT|>", "<|QUESTION1|>", "<|ANSWER|>"
# In the order of their ids, from the size of the pre-trained vocabulary up.
ADDED_TOKENS = {
    "choice": ("[PAD]", "[CLS]", SEPARATOR),
    "classification": ("[PAD]", CONTEXT, QUESTION, "<|QUESTION2|>", ANSWER),
}
LEAST_LENGTH = 8  # tokens of a row: the marks, and something of the question and of an option
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Prompts(NamedTuple):
    """The prompts of some examples, and which examples lost text to fit the length."""

    prompts: list[Prompt]
    truncated: list[bool]


def add_tokens(tokenizer: Tokenizer, kind: str) -> Tokenizer:
    """A copy of `tokenizer` with the special tokens of a head of this kind after its own.

    Raises ValueError if one of them is an entry already.
    """
    names = ADDED_TOKENS[kind]
    known = [name for name in names if tokenizer.token_to_id(name) is not None]
    if known:
        raise ValueError(
            f"the tokenizer has {', '.join(known)} already; fine-tune from a pre-trained model, "
            "not from one whose vocabulary has grown, or go on with the same kind of task"
        )
    grown = Tokenizer.from_str(tokenizer.to_str())
    grown.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return grown


def check_tokens(tokenizer: Tokenizer, kind: str) -> None:
    """Raise ValueError unless the tokenizer has the special tokens of a head of this kind."""
    missing = [name for name in ADDED_TOKENS[kind] if tokenizer.token_to_id(name) is None]
    if missing:
        raise ValueError(
            f"the tokenizer lacks {', '.join(missing)}, which a {kind} head needs; use the "
            "tokenizer in the fine-tuned directory"
        )


def choice_prompts(
    tokenizer: Tokenizer, examples: Sequence[Example], *, row_format: str, max_length: int
) -> Prompts:
    """`question[SEP]` and a branch ` option[SEP]` for each option, for a MultipleChoice head.

    A text longer than `max_length` is cut. Under "paper" the start of the question goes, as its end
    asks, then the ends of options that leave it less than half of the room; `[SEP]` stays. Under
    "released" whichever of the two parts is longer loses its end, option by option, `[SEP]`
    included, as the original code's tokenizer did. Raises ValueError for less than
    `LEAST_LENGTH` tokens.
    """
    _check_length(max_length)
    separator = [tokenizer.token_to_id(SEPARATOR)]
    prompts, truncated = [], []
    for number, example in enumerate(examples):
        asked = f"{example.context} {example.question}" if example.context else example.question
        question = _ids(tokenizer, asked) + separator
        options = [_ids(tokenizer, " " + option) + separator for option in example.options]
        longest = max(map(len, options))
        fits = len(question) + longest <= max_length
        truncated.append(not fits)
        if fits:
            prompts.append(Prompt(question, options, number))
        elif row_format == RELEASED:
            for i, option in enumerate(options):
                a, b = longest_first(len(question), len(option), max_length)
                prompts.append(Prompt(question[:a], [option[:b]], number, i))
        else:
            kept = min(len(question), max(max_length - longest, max_length // 2))
            room = max_length - kept - 1
            options = [option[:-1][:room] + separator for option in options]
            prompts.append(Prompt(_end(question, kept), options, number))
    return Prompts(prompts, truncated)


def classification_prompts(
    tokenizer: Tokenizer, examples: Sequence[Example], *, row_format: str, max_length: int
) -> Prompts:
    """One text for each example, for a SequenceClassifier head, read at its last token.

    "paper" is `<|CONTEXT|> context <|QUESTION1|> question <|ANSWER|>`, and a text that is too long
    loses the start of its context, then of its question. "released" is the context, its lines
    joined, and then the question, and the longer of the two loses its end. Raises ValueError for
    less than `LEAST_LENGTH` tokens.
    """
    _check_length(max_length)
    prompts, truncated = [], []
    marks = [[tokenizer.token_to_id(name)] for name in (CONTEXT, QUESTION, ANSWER)]
    for number, example in enumerate(examples):
        question = _ids(tokenizer, example.question)
        if row_format == RELEASED:
            context = _ids(tokenizer, example.context.replace("\n", " "))
            a, b = longest_first(len(context), len(question), max_length)
            truncated.append(a + b < len(context) + len(question))
            prompts.append(Prompt(context[:a] + question[:b], [[]], number))
            continue
        context = _ids(tokenizer, example.context)
        room = max_length - len(marks)
        truncated.append(len(question) + len(context) > room)
        question = _end(question, room)
        context = _end(context, room - len(question))
        text = marks[0] + context + marks[1] + question + marks[2]
        prompts.append(Prompt(text, [[]], number))
    return Prompts(prompts, truncated)


def letter_prompts(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    task: Task,
    *,
    shots: Sequence[Example] = (),
    max_length: int,
) -> Prompts:
    """The prompt of lm-evaluation-harness for the task; a branch ` A`, ` B`... for each option.

    A classification's branches are its classes. `shots` are answered before the question.
    """
    template = _template(task)
    answers = _classes if task.kind == "classification" else _letters
    told = [template(shot) + answers(shot)[shot.label] for shot in shots]
    return _continuations(
        tokenizer,
        examples,
        ["\n\n".join([*told, template(example)]) for example in examples],
        [answers(example) for example in examples],
        head=_description(task),
        max_length=max_length,
    )


def option_prompts(tokenizer: Tokenizer, examples: Sequence[Example], *, max_length: int):
    """`Question: ...` and `Answer:`, and a branch with the text of each option."""
    texts = [_asked(example) for example in examples]
    answers = [_classes(example) for example in examples]
    return _continuations(tokenizer, examples, texts, answers, max_length=max_length)


def unconditional_prompts(tokenizer: Tokenizer, examples: Sequence[Example], *, max_length: int):
    """The same branches after `Answer:` alone."""
    texts = ["Answer:"] * len(examples)
    answers = [_classes(example) for example in examples]
    return _continuations(tokenizer, examples, texts, answers, max_length=max_length)


def continuation_prompts(
    prefix: list[int], branches: Sequence[list[int]], *, question: int, max_length: int
) -> tuple[list[Prompt], bool]:
    """Branches scored token by token after `prefix`, which loses its start where one is too long.

    As the harness cuts: each branch keeps the last `max_length` tokens before its last one, so
    branches of a prefix that is too long do not share it. Returns the prompts and whether any was
    cut. Raises ValueError for an empty prefix or branch, or one of more than `max_length` tokens.
    """
    if not prefix or not all(branches):
        raise ValueError("a prefix and its branches need at least one token each")
    longest = max(map(len, branches))
    if longest > max_length:
        raise ValueError(
            f"an answer has {longest} tokens, and the model has {max_length} positions; "
            "leave that question out"
        )
    if len(prefix) + longest - 1 <= max_length:
        return [Prompt(prefix, list(branches), question)], False
    cut = [
        Prompt(_end(prefix, max_length + 1 - len(branch)), [branch], question, i)
        for i, branch in enumerate(branches)
    ]
    return cut, True


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """The lengths of a pair of texts cut to `room` tokens as Hugging Face's tokenizers cut.

    The longer text is cut to the shorter one's length, then both to half of the room; of an odd
    room the longer text has the larger half, or the second of two equals.
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = max(short, room - short)
    if short + long > room:
        short = room // 2
        long = room - short
    return (long, short) if first > second else (short, long)


def _check_length(max_length: int) -> None:
    if max_length < LEAST_LENGTH:
        raise ValueError(f"got max_length={max_length}; a row needs at least {LEAST_LENGTH} tokens")


def _continuations(
    tokenizer, examples, texts, answers, *, head: str = "", max_length: int
) -> Prompts:
    prompts, truncated = [], []
    for number, (text, branches) in enumerate(zip(texts, answers, strict=True)):
        prefix = _ids(tokenizer, head + text)
        # Encoded with the text before it and split off: as the harness does, and as a token that
        # crosses the border would have it.
        branches = [_ids(tokenizer, head + text + b)[len(prefix) :] for b in branches]
        if not all(branches):
            raise ValueError(f"example {examples[number].id!r} has an option without a token")
        longest = max(map(len, branches))
        if longest > max_length:
            raise ValueError(
                f"example {examples[number].id!r} has an option of {longest} tokens, and the model "
                f"has {max_length} positions; leave that question out"
            )
        made, cut = continuation_prompts(prefix, branches, question=number, max_length=max_length)
        prompts += made
        truncated.append(cut)
    return Prompts(prompts, truncated)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _end(ids: list[int], length: int) -> list[int]:
    return ids[max(0, len(ids) - max(0, length)) :]


def _letters(example: Example) -> list[str]:
    if len(example.options) > len(LETTERS):
        raise ValueError(
            f"example {example.id!r} has {len(example.options)} options, and there are "
            f"{len(LETTERS)} letters; score it with mode=option"
        )
    return [f" {LETTERS[i]}" for i in range(len(example.options))]


def _classes(example: Example) -> list[str]:
    return [f" {option}" for option in example.options]


def _lettered(example: Example) -> str:
    options = zip(_letters(example), example.options, strict=True)
    return "".join(f"{letter[1:]}. {option}\n" for letter, option in options)


def _template(task: Task) -> Callable[[Example], str]:
    family = task.name.partition(":")[0]
    if task.kind == "classification":
        return lambda e: f"Abstract: {e.context}\nQuestion: {e.question}\nAnswer:"
    if family == "medmcqa":
        return lambda e: f"{_abstract(e)}Question: {e.question}\nChoices:\n{_lettered(e)}Answer:"
    if family == "mmlu":
        return lambda e: f"{_abstract(e)}{e.question.strip()}\n{_lettered(e)}Answer:"
    return lambda e: f"{_abstract(e)}Question: {e.question}\n{_lettered(e)}Answer:"


def _asked(example: Example) -> str:
    return f"{_abstract(example)}Question: {example.question}\nAnswer:"


def _abstract(example: Example) -> str:
    return f"Abstract: {example.context}\n" if example.context else ""


def _description(task: Task) -> str:
    if not task.subject:
        return ""
    subject = task.subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"
