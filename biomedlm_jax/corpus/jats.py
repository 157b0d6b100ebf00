"""JATS: the articles of PubMed Central's open-access subset, from single files or bulk packages.

The rules, by JATS's names of the elements:

* The title is article-title, with each subtitle after ": ".
* The abstract is the one without abstract-type; of several, the one in the article's language, else
  the first. Without such a one it is the first of the type executive-summary, summary, short or
  precis. Graphical, teaser, toc, editor's and other abstracts, trans-abstract and the title of the
  abstract itself ("Abstract") are left out.
* The body has each heading and each p, list item, definition, quotation, boxed text, verse line and
  displayed formula as its own paragraph. A heading under which nothing is left is omitted, and so
  is the label of a section or a list item ("2.1").
* Left out, inside paragraphs too: tables, figures and other floats with their captions, footnotes,
  supplementary material, reference lists, and all of back: acknowledgements, appendices, glossary,
  notes. What a publisher sets in the body, such as competing interests, is body.
* A citation stays as it is printed, "[12]" or "Smith (2010)". Set in superscript it is left out,
  and so are all marks of footnotes: in plain text, "cells" and a raised 12 would be "cells12".
* A number in sup after a digit is an exponent, 10^9; other sub and sup are plain text. A formula is
  its MathML in one line, else its text, else its TeX without the preamble.
* sub-article and response are other texts (reports of reviewers, letters, translations): each is a
  Rejection `sub-article`. An article without title, abstract and body is a Rejection `empty`.
* The licence is that of license_ref and of the address of license, else that of a link or the words
  in it, else license-type; of several the strictest. One that is not known by name is its address.
* year is the earliest of pub-date, but for the days of deposit in PMC and of preprints.
* The language is xml:lang of the article, by default "en", as JATS defines it.
* version is that of an article-id `pmcid-ver`, "PMC13900.2".
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from biomedlm_jax.corpus.archives import is_archive, read_members
from biomedlm_jax.corpus.articles import Article, Rejection
from biomedlm_jax.corpus.licenses import name_licenses, strictest
from biomedlm_jax.corpus.markup import MAX_RECORD_BYTES, parse_records, read_records
from biomedlm_jax.corpus.xml_text import (
    Element,
    append_formula,
    append_superscript,
    collapse,
    local_name,
)

RECORDS = ("article",)
ROOTS = ("article", "articles", "pmc-articleset", "OAI-PMH")
SUFFIXES = (".nxml", ".xml")
OTHER_ABSTRACTS = ("executive-summary", "summary", "short", "precis")
# Days that are not those of the publication.
NO_PUBLICATION = {"pmc-release", "nihms-submitted", "preprint", "retraction", "corrected"}

_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_FLOATS_AND_NOTES = """
    ack alt-text attrib chem-struct-wrap chem-struct-wrapper copyright-statement fig
    fig-group float floats-group floats-wrap fn fn-group glossary graphic index-term inline-graphic
    inline-supplementary-material label long-desc media notes object-id permissions processing-meta
    question-preamble ref-list related-article related-object response sec-meta sig-block
    sub-article supplementary-material table table-wrap table-wrap-group tex-math
"""
_BLOCKS = """
    abstract array body boxed-text code def-list disp-formula-group disp-quote list list-item p
    preformat speaker speech statement subtitle title verse-group verse-line
"""
_LEFT_OUT, _PARAGRAPHS = frozenset(_FLOATS_AND_NOTES.split()), frozenset(_BLOCKS.split())
_NOTES = frozenset(("fn", "table-fn", "author-notes", "corresp", "aff"))
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d")
_PMCID = re.compile(r"(?:PMC)?(\d+)(?:\.(\d+))?")
_TEX = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)


def read_jats(path: str | Path) -> Iterator[Article | Rejection]:
    """Yield the articles of a JATS file (.xml, .nxml), or of a tar archive of such files.

    Both may be compressed. A file may have several articles under one element. Memory is bounded,
    whatever the size: an archive is read member by member. A member that leads out of its archive,
    a link, and what cannot be read is a Rejection, and the rest is read.

    Raises InputError if the file cannot be opened.
    """
    if not is_archive(path):
        yield from _articles(read_records(path, RECORDS, roots=ROOTS, alone=False))
        return
    for item in read_members(path, SUFFIXES, limit=MAX_RECORD_BYTES):
        if isinstance(item, Rejection):
            yield item
        else:
            name, data = item
            where = f"{path}:{name}"
            yield from _articles(parse_records([data], where, RECORDS, roots=ROOTS, alone=False))


def _articles(
    records: Iterator[tuple[str, Element] | Rejection],
) -> Iterator[Article | Rejection]:
    for item in records:
        if isinstance(item, Rejection):
            yield item
            continue
        place, element = item
        try:
            yield _article(place, element)
            for child in element:
                name = local_name(child.tag)
                if name in ("sub-article", "response"):
                    kind = child.get("article-type") or child.get("response-type") or "unknown"
                    yield Rejection(place, "sub-article", f"{name} of the type {kind}")
        except RecursionError:
            yield Rejection(place, "broken", "the markup is nested too deeply")


def _article(place: str, article: Element) -> Article | Rejection:
    language = (article.get(_LANG) or "en").lower()
    meta: _Meta | None = None
    body: list[str] = []
    for child in article:
        name = local_name(child.tag)
        if name == "front":
            if meta is not None:  # the tags between two articles were lost
                return Rejection(place, "broken", "the article has two of front")
            meta = _Meta(language)
            for part in child:
                if local_name(part.tag) == "article-meta":
                    meta.read(part)
                elif local_name(part.tag) == "journal-meta":
                    meta.journal = _journal(part)
        elif name == "body":
            body += paragraphs(child)
    meta = meta or _Meta(language)
    abstract = meta.abstract()
    if not (meta.title or abstract or body):
        return Rejection(place, "empty", "the article has no title, no abstract and no body")
    kind = article.get("article-type", "")
    return Article(
        place,
        "pmc",
        title=meta.title,
        abstract=abstract,
        body="\n\n".join(body),
        pmid=meta.ids.get("pmid", ""),
        pmcid=meta.ids.get("pmc", ""),
        doi=meta.ids.get("doi", ""),
        license=meta.license,
        year=meta.year,
        version=meta.version,
        languages=(language,),
        types=(kind,) if kind else (),
        journal=meta.journal,
    )


class _Meta:
    """What article-meta has."""

    def __init__(self, language: str):
        self.title = self.license = self.journal = ""
        self.language, self.version = language, 1
        self.year: int | None = None
        self.ids: dict[str, str] = {}
        self.abstracts: list[Element] = []

    def read(self, meta: Element) -> None:
        licenses = []
        for child in meta:
            name = local_name(child.tag)
            if name == "article-id":
                self.identify(child)
            elif name == "title-group":
                titles = {"article-title": [], "subtitle": []}
                for part in child:
                    if (kind := local_name(part.tag)) in titles:
                        titles[kind].append(" ".join(paragraphs(part)))
                self.title = ": ".join(filter(None, titles["article-title"] + titles["subtitle"]))
            elif name == "pub-date":
                self.date(child)
            elif name == "abstract":
                self.abstracts.append(child)
            elif name == "permissions":
                licenses += child
            elif name == "license":  # before JATS 1.0, beside copyright-statement
                licenses.append(child)
        self.license = _license([part for part in licenses if local_name(part.tag) == "license"])

    def identify(self, element: Element) -> None:
        kind, text = element.get("pub-id-type", ""), collapse(element.text or "")
        if kind == "pmid" and text.isascii() and text.isdigit():
            self.ids["pmid"] = text
        elif kind == "doi":
            self.ids["doi"] = text
        elif kind in ("pmc", "pmcid", "pmcid-ver") and (match := _PMCID.fullmatch(text)):
            self.ids["pmc"] = f"PMC{match[1]}"
            self.version = int(match[2]) if match[2] and len(match[2]) < 10 else self.version

    def date(self, element: Element) -> None:
        kinds = {element.get("pub-type"), element.get("date-type")}
        if kinds & NO_PUBLICATION:
            return
        for child in element:
            if local_name(child.tag) == "year" and (match := _YEAR.search(child.text or "")):
                self.year = min(self.year or 9999, int(match[0]))

    def abstract(self) -> str:
        """Return the text of the article's abstract."""
        plain = [element for element in self.abstracts if not element.get("abstract-type")]
        own = [one for one in plain if (one.get(_LANG) or "").lower() == self.language]
        others = [
            one
            for kind in OTHER_ABSTRACTS
            for one in self.abstracts
            if one.get("abstract-type") == kind
        ]
        for element in [*own, *plain, *others]:
            title = next((child for child in element if local_name(child.tag) == "title"), None)
            if title is not None:
                element.remove(title)
            if texts := paragraphs(element):
                return "\n\n".join(texts)
        return ""


def _journal(meta: Element) -> str:
    for element in meta.iter("{*}journal-title"):
        return " ".join(paragraphs(element))
    return ""


def _license(licenses: list[Element]) -> str:
    addresses, links, texts, types = [], [], [], []
    for element in licenses:
        addresses += _addresses(element)
        types.append(element.get("license-type", ""))
        for child in element.iter():
            if local_name(child.tag) == "license_ref":
                addresses.append(collapse(child.text or ""))
            elif child is not element:
                links += _addresses(child)
        texts.append(" ".join("".join(element.itertext()).split()))
    for sources in (addresses, links, texts, types):
        if names := [name for source in sources for name in name_licenses(source)]:
            return strictest(names)
    return next(filter(None, addresses), "")


def _addresses(element: Element) -> list[str]:
    return [text for name, text in element.items() if local_name(name) == "href"]


def paragraphs(element: Element) -> list[str]:
    """Return the text of an element as paragraphs, by the rules of the module."""
    text = _Text()
    text.walk(element)
    text.flush()
    return text.paragraphs


def _joined(element: Element) -> str:
    """Return the text of an element within a paragraph, with its white space."""
    text = _Text()
    text.walk(element)
    return " ".join([*text.paragraphs, "".join(text.parts)])


class _Text:
    """Paragraphs so far, and the `parts` of the next."""

    def __init__(self):
        self.paragraphs: list[str] = []
        self.parts: list[str] = []

    def flush(self) -> None:
        if self.parts:
            if text := collapse("".join(self.parts)):
                self.paragraphs.append(text)
            self.parts = []

    def walk(self, element: Element) -> None:
        """Add the text inside an element, and flush where a paragraph starts and ends."""
        parts = self.parts
        if element.text:
            parts.append(element.text)
        for child in element:
            kind = _KINDS[child.tag]
            if kind is None:
                if len(child):
                    self.walk(child)
                    parts = self.parts
                elif child.text:
                    parts.append(child.text)
            elif kind is _paragraph:
                self.flush()
                self.walk(child)
                self.flush()
                parts = self.parts
            elif kind is not _left_out:
                kind(self, child)
                parts = self.parts
            if child.tail:
                parts.append(child.tail)

    def section(self, element: Element) -> None:
        self.flush()
        before = len(self.paragraphs)
        title = next((child for child in element if local_name(child.tag) == "title"), None)
        self.walk(element)
        self.flush()
        alone = len(self.paragraphs) == before + 1
        if alone and title is not None and paragraphs(title):
            self.paragraphs.pop()

    def superscript(self, element: Element) -> None:
        for child in element.iter("{*}xref"):
            if child.get("ref-type") == "bibr" or child.get("ref-type") in _NOTES:
                return
        append_superscript(_joined(element), self.parts)

    def reference(self, element: Element) -> None:
        kind = element.get("ref-type")
        if kind in _NOTES:
            return
        first = next(iter(element), None)
        raised = first is not None and local_name(first.tag) == "sup" and not element.text
        if not (kind == "bibr" and raised):
            self.walk(element)

    def formula(self, element: Element) -> None:
        """Add a formula by the first that it has of MathML, text and TeX."""
        for math in element.iter("{*}math"):
            append_formula(math, self.parts)
            return
        text = _joined(element)
        if not text.strip():
            for tex in element.iter("{*}tex-math"):
                match = _TEX.search(tex.text or "")
                text = match[1] if match else tex.text or ""
                break
        self.parts.append(text)

    def displayed(self, element: Element) -> None:
        self.flush()
        self.formula(element)
        self.flush()

    def definition(self, element: Element) -> None:
        """Add a term and its definition as one paragraph, "term: definition"."""
        self.flush()
        texts = [" ".join(paragraphs(child)) for child in element]
        self.parts.append(": ".join(filter(None, texts)))
        self.flush()

    def math(self, element: Element) -> None:
        append_formula(element, self.parts)

    def space(self, element: Element) -> None:
        self.parts.append(" ")


def _left_out(text: _Text, element: Element) -> None:
    """Mark what is left out."""


def _paragraph(text: _Text, element: Element) -> None:
    """Mark what is a paragraph of its own."""


_SPECIAL = {
    "sec": _Text.section,
    "sup": _Text.superscript,
    "xref": _Text.reference,
    "math": _Text.math,
    "inline-formula": _Text.formula,
    "disp-formula": _Text.displayed,
    "def-item": _Text.definition,
    "break": _Text.space,
}


class _Kinds(dict[str, Callable[[_Text, Element], None] | None]):
    """What is done with the elements of a tag: one look-up for each element."""

    def __missing__(self, tag: str) -> Callable[[_Text, Element], None] | None:
        name = local_name(tag)
        kind = _SPECIAL.get(name)
        if name in _LEFT_OUT:
            kind = _left_out
        elif name in _PARAGRAPHS:
            kind = _paragraph
        if len(self) < 10_000:  # a file can have any number of them
            self[tag] = kind
        return kind


_KINDS = _Kinds()
