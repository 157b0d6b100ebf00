"""Facts of an invented biomedical world: diseases, genes, drugs and trials, tied into families.

**Nothing here is medical knowledge.** Anatomy, symptoms and modes of inheritance are ordinary
words; every disease, gene, protein, drug and trial is made up, and shows it: word names begin with
a cluster (`zv`, `vl`, `dv`, `kv`, `zl`, `zr`, `tv`, `dz`) that English words and drug names hardly
ever begin with, and gene symbols have a `Q` between two consonants, as in `ZQR4`. Only the endings
(-itis, -mab, -in) are those of real names.

A family is one disease with the gene that causes it, the drug that treats it and the trial of that
drug. No name is shared between families, so a text about one family can be checked by its names.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import NamedTuple, TypeVar

T = TypeVar("T")

# All singular and without an article, so that every sentence can take any of them.
SYMPTOMS = {
    "kidney": ("proteinuria", "flank pain", "ankle swelling"),
    "liver": ("jaundice", "itching", "dark urine"),
    "heart": ("chest tightness", "fainting", "exertional dyspnea"),
    "lung": ("dry cough", "wheezing", "hemoptysis"),
    "skin": ("blistering", "scaling", "photosensitivity"),
    "brain": ("ataxia", "memory loss", "tremor"),
    "stomach": ("early satiety", "vomiting", "epigastric pain"),
    "thyroid": ("weight gain", "neck swelling", "cold intolerance"),
    "bone marrow": ("easy bruising", "pallor", "recurrent fever"),
    "retina": ("night blindness", "blurred vision", "tunnel vision"),
    "pancreas": ("steatorrhea", "weight loss", "back pain"),
    "inner ear": ("vertigo", "tinnitus", "hearing loss"),
}
INHERITANCE = (
    "autosomal dominant",
    "autosomal recessive",
    "X-linked dominant",
    "X-linked recessive",
)
ADVERSE_EFFECTS = (
    "nausea",
    "headache",
    "neutropenia",
    "hypotension",
    "constipation",
    "rash",
    "hyponatremia",
    "dry mouth",
    "insomnia",
    "fatigue",
    "hair loss",
    "diarrhea",
)
# The values that families share, by relation; all other values are names of one family.
SHARED_VALUES = {
    "organ": tuple(SYMPTOMS),
    "symptom": tuple(symptom for symptoms in SYMPTOMS.values() for symptom in symptoms),
    "inheritance": INHERITANCE,
    "adverse_effect": ADVERSE_EFFECTS,
}
DRUG_CLASSES = {  # the ending of a drug's name tells its class, as among real drugs
    "mab": "monoclonal antibody",
    "tinib": "small-molecule inhibitor",
    "rsen": "antisense oligonucleotide",
    "cept": "fusion protein",
    "tide": "peptide antagonist",
}
DISEASE_ENDINGS = ("itis", "osis", "opathy", "en disease", "an syndrome")
PROTEIN_ENDINGS = ("in", "ase", "on", "enin")

_ONSETS = ("zv", "vl", "dv", "kv", "zl", "zr", "tv", "dz")
_VOWELS = "aeiou"
_MIDDLES = (*"bdfgklmnprstx", "nd", "rm", "lt", "st", "br")
_ENDS = "bdglmnrtxz"
# First letters that are spelled with a consonant sound, so that "a" is right before every symbol;
# not D or K, because of HLA-DQB1, DQX1 and KQT-like channels.
_SYMBOL = ("BGTVZ", "Q", "BDFGKLMNPRTVXZ", "123456789")

# Every word name takes a stem that no other name begins with; four of them go into a family.
MAX_DISEASES = len(_ONSETS) * len(_VOWELS) * len(_MIDDLES) // 4


@dataclass(frozen=True)
class Disease:
    """A disease and what is known of it."""

    name: str
    organ: str
    symptom: str
    inheritance: str
    gene: str
    treatment: str  # the first-line drug


@dataclass(frozen=True)
class Gene:
    """A gene and the protein it encodes."""

    name: str
    protein: str


@dataclass(frozen=True)
class Drug:
    """A drug; its target is the protein of the gene that causes the disease."""

    name: str
    drug_class: str
    target: str
    adverse_effect: str


@dataclass(frozen=True)
class Trial:
    """A placebo-controlled trial; the rates are percentages of patients with a response."""

    name: str
    disease: str
    drug: str
    participants: str
    weeks: str
    drug_response: str
    placebo_response: str


class Fact(NamedTuple):
    """`relation` of `subject` is `value`; a fact's identity is (subject, relation)."""

    subject: str
    relation: str
    value: str
    family: int


@dataclass(frozen=True)
class World:
    """Diseases, genes, drugs and trials; those with the same index are a family."""

    seed: int
    diseases: tuple[Disease, ...]
    genes: tuple[Gene, ...]
    drugs: tuple[Drug, ...]
    trials: tuple[Trial, ...]

    def family(self, index: int) -> tuple[Disease, Gene, Drug, Trial]:
        """The disease of this index with its gene, drug and trial."""
        return self.diseases[index], self.genes[index], self.drugs[index], self.trials[index]

    def facts(self) -> Iterator[Fact]:
        """Every fact, family by family: one for each field of an entity but its name."""
        for index in range(len(self.diseases)):
            for entity in self.family(index):
                for field in fields(entity)[1:]:
                    yield Fact(entity.name, field.name, getattr(entity, field.name), index)


class Dice:
    """Seeded choices that are the same on every Python.

    Python promises to keep the stream of `random.Random(seed).random()`, but neither that of
    `choice` nor that of `shuffle`; so everything here is drawn from the former.
    """

    def __init__(self, *seed: object):
        self._random = random.Random(" ".join(map(str, seed))).random

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self._random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        order = sorted((self._random(), index) for index in range(len(items)))
        return [items[index] for _, index in order]

    def deal(self, items: Sequence[T], count: int) -> list[T]:
        """`count` draws in which no item comes up more than once oftener than another."""
        dealt: list[T] = []
        while len(dealt) < count:
            dealt += self.shuffled(items)
        return dealt[:count]


def make_world(seed: int = 0, *, diseases: int = 60) -> World:
    """Invent a world of `diseases` families of facts; equal arguments make equal worlds.

    Values that diseases share (organs, symptoms, inheritance, adverse effects) are dealt evenly,
    so that none of them is a good guess.

    Raises:
      ValueError: `diseases` is below 1 or above MAX_DISEASES, the number of names there are.
    """
    if not 1 <= diseases <= MAX_DISEASES:
        raise ValueError(f"got diseases={diseases}; a world has 1 to {MAX_DISEASES} of them")
    dice = Dice("world", seed)
    stems = iter(dice.shuffled(["".join(s) for s in product(_ONSETS, _VOWELS, _MIDDLES)]))
    symbols = dice.shuffled(["".join(s) for s in product(*_SYMBOL)])[:diseases]
    organs = dice.deal(tuple(SYMPTOMS), diseases)
    symptoms = {organ: iter(dice.deal(SYMPTOMS[organ], diseases)) for organ in SYMPTOMS}
    inheritance = dice.deal(INHERITANCE, diseases)
    disease_endings = dice.deal(DISEASE_ENDINGS, diseases)
    protein_endings = dice.deal(PROTEIN_ENDINGS, diseases)
    drug_endings = dice.deal(tuple(DRUG_CLASSES), diseases)
    adverse_effects = dice.deal(ADVERSE_EFFECTS, diseases)

    families = []
    for i in range(diseases):
        root = next(stems) + dice.pick(_VOWELS) + dice.pick(_ENDS)
        disease = root + disease_endings[i]
        if " " in disease:  # an eponym: "Kvadosen disease"
            disease = disease[0].upper() + disease[1:]
        protein = next(stems) + dice.pick(_VOWELS) + dice.pick(_ENDS) + protein_endings[i]
        drug = next(stems) + dice.pick(_VOWELS) + drug_endings[i]
        trial = (next(stems) + dice.pick(_VOWELS) + dice.pick(_ENDS)).upper()
        response = dice.between(55, 85)
        families.append(
            (
                Disease(
                    name=disease,
                    organ=organs[i],
                    symptom=next(symptoms[organs[i]]),
                    inheritance=inheritance[i],
                    gene=symbols[i],
                    treatment=drug,
                ),
                Gene(name=symbols[i], protein=protein),
                Drug(
                    name=drug,
                    drug_class=DRUG_CLASSES[drug_endings[i]],
                    target=protein,
                    adverse_effect=adverse_effects[i],
                ),
                Trial(
                    name=trial,
                    disease=disease,
                    drug=drug,
                    # With 200 patients and 25 points between the groups, P < 0.001 is true.
                    participants=str(2 * dice.between(100, 300)),
                    weeks=str(4 * dice.between(3, 13)),
                    drug_response=f"{response}%",
                    placebo_response=f"{response - dice.between(25, 40)}%",
                ),
            )
        )
    return World(seed, *zip(*families, strict=True))
