"""What the readers of published formats yield: an Article, a Deletion, or a Rejection."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Article:
    """One version of one article, its parts as plain text.

    Paragraphs are separated by a blank line. Unknown texts are empty.
    """

    place: str  # "file:record", for messages
    source: str  # the name of the format or of the subset: medline, pmc, PubMed Central
    title: str = ""
    abstract: str = ""
    body: str = ""
    pmid: str = ""  # digits
    pmcid: str = ""  # PMC and digits
    doi: str = ""
    license: str = ""  # as published: CC BY, CC0, ... or the address of its text
    year: int | None = None
    version: int = 1  # of the record; the greatest is the newest
    languages: tuple[str, ...] = ()  # as published: ISO 639-2 of MEDLINE, ISO 639-1 of PMC
    types: tuple[str, ...] = ()  # publication types, article types
    journal: str = ""

    @property
    def text(self) -> str:
        """Title, abstract and body, separated by a blank line."""
        return "\n\n".join(part for part in (self.title, self.abstract, self.body) if part)


@dataclass(frozen=True)
class Deletion:
    """A citation that its publisher took back (MEDLINE's DeleteCitation)."""

    place: str
    pmid: str


@dataclass(frozen=True)
class Rejection:
    """A record that cannot be read."""

    place: str
    reason: str  # a word that is counted: broken, truncated, empty, ...
    detail: str = ""  # one line
