"""The report of long answers: ROUGE with intervals, lengths, repetition, unsupported numbers."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa import statistics

KINDS = ("rouge1", "rouge2", "rougeL")
# Digits, with spaces (plain, no-break, thin) or apostrophes between groups of three; .05 is 0.05.
SPACES = " \u00a0\u2009\u202f'\u2019"
NUMBER = re.compile(rf"\d{{1,3}}(?:[{SPACES}]\d{{3}})+(?![\d.,]*\d)|\d+(?:[.,]\d+)*|(?<!\w)\.\d+")
UNITS = {  # name as it is compared -> other spellings
    "%": ("percent", "per cent"),
    **dict.fromkeys(("kg", "ng", "pg", "dl", "nm", "mm", "km", "ms", "mmhg", "kcal", "kda"), ()),
    **dict.fromkeys(("mmol", "µmol", "nmol", "mol", "meq", "hz", "kbp", "bp", "°c", "°f"), ()),
    "mg": ("milligram", "milligrams"),
    "µg": ("mcg", "microgram", "micrograms"),
    "g": ("gram", "grams"),
    "ml": ("milliliter", "milliliters", "millilitre", "millilitres"),
    "µl": ("microliter", "microliters", "microlitre", "microlitres"),
    "l": ("liter", "liters", "litre", "litres"),
    "cm": ("centimeter", "centimeters", "centimetre", "centimetres"),
    "µm": (),
    "m": ("meter", "meters", "metre", "metres"),
    "iu": ("units", "unit"),
    "second": ("seconds", "s", "sec"),
    "minute": ("minutes", "min", "mins"),
    "hour": ("hours", "h", "hr", "hrs"),
    "day": ("days", "d"),
    "week": ("weeks", "wk", "wks"),
    "month": ("months",),
    "year": ("years", "yr", "yrs"),
}
UNIT = {spelling: unit for unit, others in UNITS.items() for spelling in (unit, *others)}
_AFTER = "|".join(sorted(map(re.escape, UNIT), key=len, reverse=True))
_UNIT = rf"[\s\-]?({_AFTER})(?:/({_AFTER}))?(?!\w)"  # mg, mg/kg
AFTER_NUMBER = re.compile(_UNIT, re.IGNORECASE)
RANGE = re.compile(rf"\s?(?:[-\u2013/]|to|and|or)\s?(?:{NUMBER.pattern}){_UNIT}", re.IGNORECASE)
SCRIPTS_WITHOUT_SPACES = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(
    rf"[{SCRIPTS_WITHOUT_SPACES}]|(?:(?![{SCRIPTS_WITHOUT_SPACES}])(?:[^\W_]|[\u0300-\u036f]))+"
)


def text_report(
    sources: Sequence[str],
    references: Sequence[str],
    answers: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
) -> dict:
    """Return means over all answers, and 95 % bootstrap intervals of ROUGE's F-measures (0 to 100).

    `rouge*` are the published package's, which drops every character but a-z and 0-9 (IFN-γ equals
    IFN-β); `unicode_rouge*` keep the letters and digits of every script. `repetition` is the share
    of an answer's word 4-grams that it had before; `unsupported_numbers` the share of numbers in
    the answers that are in neither source nor reference, or there with another unit (`quantities`).
    Intervals resample groups, whose answers are dependent. Raises InputError for lists of different
    lengths, or empty.
    """
    if not len(sources) == len(references) == len(answers) > 0:
        counts = f"{len(sources)} sources, {len(references)} references, {len(answers)} answers"
        raise InputError(f"got {counts}; expected as many of each, and at least one")
    _, group_N = np.unique(groups or range(len(answers)), return_inverse=True)
    figures: dict = {"examples": len(answers), "groups": int(group_N.max()) + 1}
    in_unicode = rouge(references, answers, every_script=True)
    scores = rouge(references, answers)
    scores |= {f"unicode_{kind}": values for kind, values in in_unicode.items()}
    for kind, values in scores.items():
        rounded = [round(value, 2) for value in statistics.mean(np.array(values), group_N=group_N)]
        figures[kind] = dict(zip(("mean", "low", "high"), rounded, strict=True))
    total = unsupported = 0
    for source, reference, answer in zip(sources, references, answers, strict=True):
        one, of_answer = unsupported_numbers(answer, f"{source}\n{reference}")
        unsupported, total = unsupported + one, total + of_answer
    return figures | {
        "rouge_drops": "rouge* compare a-z and 0-9 only; unicode_rouge* compare every script",
        "non_ascii_answers": sum(not answer.isascii() for answer in answers),
        "words": round(float(np.mean([len(a.split()) for a in answers])), 1),
        "reference_words": round(float(np.mean([len(r.split()) for r in references])), 1),
        "empty": sum(not a.strip() for a in answers),
        "repetition": round(float(np.mean([repetition(a) for a in answers])), 4),
        "numbers": total,
        "unsupported_numbers": round(unsupported / total, 4) if total else None,
    }


def rouge(
    references: Sequence[str], answers: Sequence[str], *, every_script: bool = False
) -> dict[str, list[float]]:
    """Return F-measures times 100 of each answer, by kind, with Porter's stemmer.

    The package's own words are runs of a-z and 0-9; `every_script` takes those of `unicode_words`.
    """
    from rouge_score.rouge_scorer import RougeScorer  # slow to import

    tokenizer = _UnicodeTokenizer() if every_script else None
    scorer = RougeScorer(list(KINDS), use_stemmer=True, tokenizer=tokenizer)
    scores = [scorer.score(r, a) for r, a in zip(references, answers, strict=True)]
    return {kind: [100 * score[kind].fmeasure for score in scores] for kind in KINDS}


class _UnicodeTokenizer:
    """What RougeScorer calls."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text)


def unicode_words(text: str) -> list[str]:
    """Return runs of letters and digits of any script, in lower case, English words by their stems.

    Compatible characters are one (the micro sign and mu); a character of a script that writes no
    spaces is a word.
    """
    words = WORD.findall(unicodedata.normalize("NFKC", text).lower())
    stem = _stemmer().stem
    return [stem(word) if len(word) > 3 and word.isascii() else word for word in words]


@functools.cache
def _stemmer():
    from nltk.stem import porter  # what rouge_score uses

    return porter.PorterStemmer()


def repetition(text: str, *, size: int = 4) -> float:
    """Return the share of a text's word n-grams that it had before, between 0 and 1."""
    words = text.lower().split()
    ngrams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def unsupported_numbers(answer: str, known_text: str) -> tuple[int, int]:
    """Return how many numbers of `answer` are not in `known_text`, and how many it has.

    A number with a unit needs the same number with that unit; one without a unit needs the number.
    """
    known = {one for reading in quantities(known_text) for quantity in reading for one in quantity}
    known |= {(number, "") for number, _ in known}
    unsupported = 0
    readings = quantities(answer)
    for reading in readings:
        unsupported += not any(known.issuperset(quantity) for quantity in reading)
    return unsupported, len(readings)


def quantities(text: str) -> list[list[list[tuple[str, str]]]]:
    """Return the readings of each number of a text, each a list of (number, unit or "").

    There are two where spaces divide it ("2 500 mg" is 2500 mg, or 2 and 500 mg), and at the start
    of a range ("5-10 mg" has 5 mg, and 5).
    """
    of_text = []
    text = unicodedata.normalize("NFC", text).replace("\u03bc", "\u00b5")
    for match in NUMBER.finditer(text):
        unit = _unit(AFTER_NUMBER.match(text, match.end()))
        *parts, last = re.split(rf"[{SPACES}]", match[0])
        readings = [[(_plain("".join([*parts, last])), unit)]]
        if parts:
            readings.append([*((_plain(part), "") for part in parts), (_plain(last), unit)])
        elif not unit and (of_range := _unit(RANGE.match(text, match.end()))):
            readings.append([(_plain(last), of_range)])
        of_text.append(readings)
    return of_text


def _unit(match: re.Match | None) -> str:
    return "/".join(UNIT[one.lower()] for one in match.groups() if one) if match else ""


def _plain(number: str) -> str:
    number = re.sub(r",(?=\d{3}(?!\d))", "", number)
    try:
        return format(Decimal(number).normalize(), "f")
    except InvalidOperation:  # 3,5 or 1.2.3
        return number
