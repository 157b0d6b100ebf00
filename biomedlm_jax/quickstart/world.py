"""Facts of an invented biomedical world: diseases in families, each with its gene and its drug.

**Nothing here is medical knowledge.** Organs, symptoms and adverse effects are ordinary words.
Every disease, gene and drug is invented and recognisable: word names begin with a cluster (`zv`,
`vl`, `dv`, ...) that English words and drug names hardly ever begin with, and gene symbols have a
`Q` between two consonants, as in `ZQR4`. Only the endings (-itis, -mab) are those of real names.

A family is one disease with the gene that causes it and the drug that treats it. Families share no
names, so the names in a text identify its families. Names always have a capital, as eponyms and
brands do: one spelling is one token, wherever it stands in a sentence.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, TypeVar

from biomedlm_jax.errors import InputError

T = TypeVar("T")

# All singular and without an article, so that every sentence can take any of them.
SYMPTOMS = {
    "kidney": ("proteinuria", "flank pain"),
    "liver": ("jaundice", "itching"),
    "heart": ("fainting", "palpitation"),
    "lung": ("wheezing", "hemoptysis"),
    "skin": ("blistering", "scaling"),
    "brain": ("ataxia", "tremor"),
    "stomach": ("vomiting", "heartburn"),
    "thyroid": ("weight gain", "hoarseness"),
    "spleen": ("bruising", "pallor"),
    "retina": ("blindness", "tunnel vision"),
    "pancreas": ("weight loss", "back pain"),
    "inner ear": ("vertigo", "hearing loss"),
}
INHERITANCE = ("dominant", "recessive", "X-linked", "mitochondrial")
ADVERSE_EFFECTS = (
    *("nausea", "headache", "neutropenia", "hypotension", "constipation", "rash"),
    *("fever", "dry mouth", "insomnia", "fatigue", "hair loss", "diarrhea"),
)
# Values that several families share, by relation. All other values are names of one family.
SHARED_VALUES = {
    "organ": tuple(SYMPTOMS),
    "symptom": tuple(symptom for symptoms in SYMPTOMS.values() for symptom in symptoms),
    "inheritance": INHERITANCE,
    "adverse_effect": ADVERSE_EFFECTS,
}
DRUG_ENDINGS = ("mab", "tinib", "rsen", "cept", "tide")
DISEASE_ENDINGS = ("itis", "osis", "opathy", "emia", "oma")

_ONSETS = ("zv", "vl", "dv", "kv", "zl", "zr", "tv", "dz")
_VOWELS = "aeiou"
_MIDDLES = (*"bdfgklmnprstx", "nd", "rm", "lt", "st", "br")
_ENDS = "bdglmnrtxz"
# The first letter sounds like a consonant, so that "a" fits before every symbol. It is not D or K:
# HLA-DQB1, DQX1 and KQT-like channels exist.
_SYMBOL = ("BGTVZ", "Q", "BDFGKLMNPRTVXZ", "123456789")

# Each name takes a stem that no other name begins with, and a family has two such names.
MAX_FAMILIES = len(_ONSETS) * len(_VOWELS) * len(_MIDDLES) // 2


@dataclass(frozen=True)
class Family:
    """A disease with its gene, its drug and their properties."""

    disease: str
    organ: str
    symptom: str
    inheritance: str
    gene: str
    drug: str  # the first-line treatment
    adverse_effect: str


class Fact(NamedTuple):
    """`relation` of `subject` is `value`; `family` is an index into the world."""

    subject: str
    relation: str
    value: str
    family: int


# Relation -> the fields of Family that are its subject and its value.
RELATIONS = {
    "organ": ("disease", "organ"),
    "symptom": ("disease", "symptom"),
    "inheritance": ("disease", "inheritance"),
    "gene": ("disease", "gene"),
    "treatment": ("disease", "drug"),
    "adverse_effect": ("drug", "adverse_effect"),
}


class SeededRandom:
    """Random choices that are the same on every Python version.

    Python guarantees the stream of `random.Random(seed).random()` only, not that of `choice` or
    `shuffle`, so everything here is computed from the former.
    """

    def __init__(self, *seed: object):
        self._random = random.Random(" ".join(map(str, seed))).random

    def integer(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def choice(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[int(self._random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in a random order."""
        order = sorted((self._random(), index) for index in range(len(items)))
        return [items[index] for _, index in order]

    def balanced(self, items: Sequence[T], count: int) -> list[T]:
        """Return `count` items, all of them equally often (to within one)."""
        chosen: list[T] = []
        while len(chosen) < count:
            chosen += self.shuffled(items)
        return chosen[:count]


def make_world(seed: int = 0, *, families: int) -> tuple[Family, ...]:
    """Invent `families` families of facts; equal arguments make equal worlds.

    Values that families share are balanced, so that none of them is a good guess.

    Raises:
      InputError: `families` is below 1 or above MAX_FAMILIES, the number of names there are.
    """
    if not 1 <= families <= MAX_FAMILIES:
        raise InputError(f"expected 1 to {MAX_FAMILIES} families, got {families}")
    rng = SeededRandom("world", seed)
    stems = iter(rng.shuffled(["".join(s) for s in product(_ONSETS, _VOWELS, _MIDDLES)]))
    symbols = rng.shuffled(["".join(s) for s in product(*_SYMBOL)])
    organs = rng.balanced(tuple(SYMPTOMS), families)
    symptoms = {organ: iter(rng.balanced(SYMPTOMS[organ], families)) for organ in SYMPTOMS}
    inheritance = rng.balanced(INHERITANCE, families)
    disease_endings = rng.balanced(DISEASE_ENDINGS, families)
    drug_endings = rng.balanced(DRUG_ENDINGS, families)
    adverse_effects = rng.balanced(ADVERSE_EFFECTS, families)
    return tuple(
        Family(
            disease=next(stems).capitalize()
            + rng.choice(_VOWELS)
            + rng.choice(_ENDS)
            + disease_endings[i],
            organ=organs[i],
            symptom=next(symptoms[organs[i]]),
            inheritance=inheritance[i],
            gene=symbols[i],
            drug=next(stems).capitalize() + rng.choice(_VOWELS) + drug_endings[i],
            adverse_effect=adverse_effects[i],
        )
        for i in range(families)
    )


def facts(world: Sequence[Family]) -> list[Fact]:
    """Return every fact, family by family."""
    return [
        Fact(getattr(family, subject), relation, getattr(family, value), index)
        for index, family in enumerate(world)
        for relation, (subject, value) in RELATIONS.items()
    ]
