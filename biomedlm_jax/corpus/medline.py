"""MEDLINE: the articles of PubMed's baseline and update files, `pubmedNNnNNNN.xml.gz`.

The rules, by NLM's names of the elements:

* ArticleTitle is the title, as published: NLM sets a translated title in brackets. VernacularTitle
  is the title where ArticleTitle is empty or "[Not Available]."
* Abstract has one paragraph for each AbstractText, "LABEL: text" with its Label, else with its
  NlmCategory; UNLABELLED and UNASSIGNED are no labels. CopyrightInformation is left out.
* OtherAbstract is the abstract only where Abstract has no text: the first in English, which is no
  summary in plain language. Abstracts in other languages are left out.
* Markup: text inside b, i, u, sub and sup stays; a number in sup after a digit is an exponent,
  10^9. Formulas (MathML, DispFormula) are one line.
* pmcid and doi are those of the article's own ArticleIdList, not of its references; without them,
  ELocationID has the doi.
* year is that of PubDate, with the first year of a MedlineDate ("1998 Dec-1999 Jan"); without one,
  that of ArticleDate.
* version is the attribute of PMID. The files have no licences.
* PubmedBookArticle: the title is ArticleTitle, for a whole book BookTitle; `journal` is BookTitle.
* DeleteCitation is one Deletion for each PMID.

A record without title and abstract is a Rejection `empty`, one without a PMID `broken`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from biomedlm_jax.corpus.articles import Article, Deletion, Rejection
from biomedlm_jax.corpus.markup import read_records
from biomedlm_jax.corpus.xml_text import (
    Element,
    append_formula,
    append_superscript,
    append_text,
    collapse,
    inline_text,
)

ROOTS = ("PubmedArticleSet", "PubmedBookArticleSet")
RECORDS = ("PubmedArticle", "PubmedBookArticle", "DeleteCitation")
NO_LABELS = ("", "UNLABELLED", "UNLABELED", "UNASSIGNED")
_YEAR = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)")
_NOT_AVAILABLE = re.compile(r"\[?not available\]?\.?", re.IGNORECASE)
_PMCID = re.compile(r"(?:PMC)?(\d+)(?:\.\d+)?")


def read_medline(path: str | Path) -> Iterator[Article | Deletion | Rejection]:
    """Yield what a file of PubMed has, in its order: articles, deletions, and lost records.

    The file may be compressed. Memory is bounded, whatever its size. Several versions of a PMID are
    yielded as they come.

    Raises InputError if the file cannot be opened.
    """
    for item in read_records(path, RECORDS, roots=ROOTS):
        if isinstance(item, Rejection):
            yield item
            continue
        place, record = item
        try:
            if record.tag == "PubmedArticle":
                yield _article(place, record)
            elif record.tag == "PubmedBookArticle":
                yield _book_article(place, record)
            else:
                for pmid in map(_digits, record.iterchildren("PMID")):
                    fault = Rejection(place, "broken", "DeleteCitation has a PMID without digits")
                    yield Deletion(place, pmid) if pmid else fault
        except RecursionError:
            yield Rejection(place, "broken", "the markup is nested too deeply")


def _article(place: str, record: Element) -> Article | Rejection:
    citation = data = None
    for child in record:
        if child.tag == "MedlineCitation":
            if citation is not None:  # the tags between two records were lost
                return Rejection(place, "broken", "PubmedArticle has two of MedlineCitation")
            citation = child
        elif child.tag == "PubmedData":
            data = child
    if citation is None:
        return Rejection(place, "broken", "PubmedArticle has no MedlineCitation")
    pmid, version, ids, others, parts = "", 1, {}, [], _Parts()
    for child in citation.iterchildren("PMID", "Article", "OtherAbstract"):
        if child.tag == "PMID":
            pmid, version = _digits(child), _number(child.get("Version"), 1)
        elif child.tag == "Article":
            parts.read(child)
        else:
            others.append(child)
    if data is not None:
        for child in data.iterchildren("ArticleIdList"):
            ids = _ids(child)
    return _make(place, pmid, version, ids, others, parts)


def _book_article(place: str, record: Element) -> Article | Rejection:
    document = next(record.iterchildren("BookDocument"), None)
    if document is None:
        return Rejection(place, "broken", "PubmedBookArticle has no BookDocument")
    pmid, version, ids, parts = "", 1, {}, _Parts()
    for child in document.iterchildren("PMID", "ArticleIdList", "Book"):
        if child.tag == "PMID":
            pmid, version = _digits(child), _number(child.get("Version"), 1)
        elif child.tag == "ArticleIdList":
            ids = _ids(child)
        else:
            parts.read(child)
    parts.title = ""
    parts.read(document)
    parts.title = parts.title or parts.journal
    return _make(place, pmid, version, ids, [], parts)


class _Parts:
    """The parts of an Article, or of a BookDocument and its Book."""

    def __init__(self):
        self.title = self.vernacular = self.abstract = self.journal = self.doi = ""
        self.year: int | None = None
        self.languages: list[str] = []
        self.types: list[str] = []

    def read(self, article: Element) -> None:
        for child in article:
            tag = child.tag
            if tag == "ArticleTitle":
                self.title = inline_text(child, SPECIAL)
            elif tag == "Abstract":
                self.abstract = _abstract(child)
            elif tag == "Journal":
                for part in child.iter("Title", "PubDate"):
                    if part.tag == "Title":
                        self.journal = inline_text(part, SPECIAL)
                    else:
                        self.year = _year(part)
            elif tag == "Language":
                self.languages.append(collapse(child.text or ""))
            elif tag == "PublicationTypeList":
                self.types += [collapse(kind.text or "") for kind in child]
            elif tag == "VernacularTitle":
                self.vernacular = inline_text(child, SPECIAL)
            elif tag == "ELocationID":
                if child.get("EIdType") == "doi" and child.get("ValidYN") != "N":
                    self.doi = self.doi or collapse(child.text or "")
            elif tag in ("ArticleDate", "PubDate"):
                self.year = self.year or _year(child)
            elif tag == "BookTitle":
                self.journal = inline_text(child, SPECIAL)
            elif tag == "PublicationType":
                self.types.append(collapse(child.text or ""))


def _make(
    place: str,
    pmid: str,
    version: int,
    ids: dict[str, str],
    others: list[Element],
    parts: _Parts,
) -> Article | Rejection:
    if not pmid:
        return Rejection(place, "broken", "the record has no PMID")
    title, abstract = parts.title, parts.abstract
    if parts.vernacular and (not title or _NOT_AVAILABLE.fullmatch(title)):
        title = parts.vernacular
    if not abstract:
        for other in others:
            english = other.get("Language", "eng").lower() == "eng"
            if english and other.get("Type") != "plain-language-summary":
                abstract = _abstract(other)
            if abstract:
                break
    if not (title or abstract):
        return Rejection(place, "empty", f"PMID {pmid} has no title and no abstract")
    return Article(
        place,
        "medline",
        title=title,
        abstract=abstract,
        pmid=pmid,
        pmcid=ids.get("pmc", ""),
        doi=ids.get("doi", "") or parts.doi,
        year=parts.year,
        version=version,
        languages=tuple(parts.languages),
        types=tuple(parts.types),
        journal=parts.journal,
    )


def _abstract(abstract: Element) -> str:
    paragraphs = []
    for part in abstract.iterchildren("AbstractText"):
        text = inline_text(part, SPECIAL)
        if not text:
            continue
        label = collapse(part.get("Label", ""))
        if not label:
            label = part.get("NlmCategory", "")
        if label.upper() not in NO_LABELS:
            text = f"{label.removesuffix(':')}: {text}"
        paragraphs.append(text)
    return "\n\n".join(paragraphs)


def _ids(parent: Element) -> dict[str, str]:
    """Return the pmc and doi of an ArticleIdList."""
    ids: dict[str, str] = {}
    for child in parent.iterchildren("ArticleId"):
        kind, text = child.get("IdType"), collapse(child.text or "")
        if kind == "doi":
            ids.setdefault("doi", text)
        elif kind == "pmc" and (match := _PMCID.fullmatch(text)):
            ids.setdefault("pmc", f"PMC{match[1]}")
    return ids


def _year(date: Element) -> int | None:
    for child in date.iterchildren("Year", "MedlineDate"):
        if match := _YEAR.search(child.text or ""):
            return int(match[0])
    return None


def _digits(element: Element) -> str:
    text = (element.text or "").strip()
    return text if text.isascii() and text.isdigit() else ""


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else default


def _superscript(element: Element, parts: list[str]) -> None:
    inside: list[str] = []
    append_text(element, inside, SPECIAL)
    append_superscript("".join(inside), parts)


SPECIAL = {"sup": _superscript, "math": append_formula}
