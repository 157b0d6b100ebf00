"""XML of NLM: the records of a file one at a time, in bounded memory.

A file is cut at the tags of its records, and each record is parsed alone and strictly. A record
that is not well-formed is therefore lost alone and counted; the `recover` mode of a parser would
repair it without a message. A document type declaration is never parsed, so that no entity of a
file is expanded and nothing is fetched. Named characters (`&alpha;`) are those of HTML 5, which
has the names of NLM's document types; any other entity is an error of its record.
"""

import codecs
import html.entities
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from lxml import etree  # ty: ignore[missing-module-member]

from biomedlm_jax.corpus.articles import Rejection
from biomedlm_jax.corpus.xml_text import Element
from biomedlm_jax.errors import one_line
from biomedlm_jax.streams import BrokenStreamError, read_blocks

# Bytes of a record; its tree can take thirty times as much. An article has seldom more than 1 MB.
MAX_RECORD_BYTES = 1 << 24

_TAIL = 256  # bytes at the end of a buffer that may be the start of a tag
_KEPT = 1 << 12  # bytes kept of what stands between records
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)["']""")
_ROOT = re.compile(rb"<([A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)")
_ENTITY = re.compile(rb"&([A-Za-z]\w*);")
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_CLOSED_BY = {b"<!--": b"-->", b"<![CDATA[": b"]]>", b"<?": b"?>"}
_BAD_BYTES = 81  # libxml2's number of "invalid bytes in character encoding"
_UNDECLARED = 26  # and of an undeclared entity


def read_records(
    path: str | Path,
    names: Collection[str],
    *,
    roots: Collection[str],
    alone: bool = True,
    limit: int = MAX_RECORD_BYTES,
) -> Iterator[tuple[str, Element] | Rejection]:
    """Yield (place, element) for each element of the `names` in an XML file, or a Rejection.

    A file may be compressed. It is read as far as it can be: what is lost is one Rejection each,
    `broken` (not well-formed), `encoding`, `long` or `truncated`, at the end also for a compressed
    stream that is damaged; `format` for a file without such an element under none of the `roots`.

    Args:
      names: local names of the elements that are records; they do not contain each other.
      roots: local names of the elements that a file of this format begins with.
      alone: only records, comments and white space may stand under the root.
      limit: the largest record in bytes.

    Raises InputError if the file cannot be opened.
    """
    yield from parse_records(
        read_blocks(path), f"{path}", names, roots=roots, alone=alone, limit=limit
    )


def parse_records(
    blocks: Iterable[bytes],
    where: str,
    names: Collection[str],
    *,
    roots: Collection[str],
    alone: bool = True,
    limit: int = MAX_RECORD_BYTES,
) -> Iterator[tuple[str, Element] | Rejection]:
    """Do as `read_records` for the bytes of a file named `where`."""
    splitter = _Splitter(blocks, where, tuple(names), frozenset(roots), alone, limit)
    try:
        yield from splitter.records()
    except BrokenStreamError as error:
        yield splitter.reject("truncated", str(error))
    except UnicodeDecodeError as error:
        yield splitter.reject("encoding", f"got no UTF-16 ({error.reason})")


class _Splitter:
    """The records of a stream of bytes; `buffer[position:]` is what is not read yet."""

    def __init__(
        self,
        blocks: Iterable[bytes],
        where: str,
        names: tuple[str, ...],
        roots: frozenset[str],
        alone: bool,
        limit: int,
    ):
        self.blocks, self.where, self.roots, self.alone = iter(blocks), where, roots, alone
        self.names, self.limit = names, limit
        self.buffer, self.position, self.number = b"", 0, 0
        self.inside = self.truncated = False
        choice = "|".join(map(re.escape, names)).encode()
        tag = rb"(?:[A-Za-z_][\w.-]*:)?(?:" + choice + rb")"
        self.token = re.compile(rb"<!--|<!\[CDATA\[|<\?|<!DOCTYPE|<(" + tag + rb")(?=[\s/>])")
        self.start = re.compile(rb"<" + tag + rb"(?=[\s/>])")
        self.end = re.compile(rb"</" + tag + rb"\s*>")
        self.parser = make_parser()

    def reject(self, reason: str, detail: str) -> Rejection:
        """Return a Rejection at the record that is being read, or would be next."""
        number = self.number + (not self.inside)
        return Rejection(f"{self.where}:{number}", reason, one_line(detail)[:300])

    def fill(self) -> bool:
        """Drop what was read and append the next block; False at the end."""
        block = next(self.blocks, b"")
        self.buffer = self.buffer[self.position :] + block if block else self.buffer
        self.position = 0 if block else self.position
        return bool(block)

    def records(self) -> Iterator[tuple[str, Element] | Rejection]:
        while len(self.buffer) < _TAIL and self.fill():
            pass
        if not self.buffer:
            yield self.reject("truncated", "the file has no bytes")
            return
        for mark, encoding in _MARKS.items():
            if self.buffer.startswith(mark):
                self.blocks = _transcoded(self.buffer, self.blocks, encoding)
                self.buffer = b""
        if error := self.set_encoding():
            yield self.reject("encoding", error)
            return
        root, gap, empty = "", b"", False
        while match := self.next_token():
            gap += self.buffer[self.position : match.start()]
            self.position = match.start()
            if match[1]:
                if not self.number:  # the root may be a record
                    root = _root(gap + match[0])
                    gap, _ = _without_start(gap, root)
                if problem := self.between(gap):
                    self.number += 1
                    yield Rejection(f"{self.where}:{self.number}", "broken", problem)
                gap, self.inside = b"", True
                yield from self.record(match)
                self.inside = False
            elif not self.skip(match):
                yield self.reject("truncated", f"the file ends inside {match[0].decode()}")
                return
            gap = gap[:_KEPT]
        gap += self.buffer[self.position :]
        if not self.number:
            root = _root(gap)
            if root not in self.roots:
                got = f"got the root element {root!r}" if root else "got no XML"
                roots = " or ".join(sorted(self.roots))
                yield self.reject("wrong_format", f"{got}; expected {roots}")
                return
            gap, empty = _without_start(gap, root)
        end = re.compile(rb"</(?:[\w.-]+:)?" + re.escape(root.encode()) + rb"\s*>")
        closed = empty or root in self.names or end.search(gap + self.buffer[-_TAIL:])
        if problem := self.between(end.sub(b"", gap)):
            yield self.reject("broken", problem)
        elif not closed and not self.truncated:
            yield self.reject("truncated", f"the file ends without </{root}>")

    def set_encoding(self) -> str:
        """Set the encoding that the file declares; return what is wrong with it."""
        declared = _DECLARED.match(self.buffer.removeprefix(codecs.BOM_UTF8))
        name = declared[1].decode().lower() if declared else "utf-8"
        # A text in UTF-16 or UTF-32 cannot be declared in single bytes: it is UTF-8, or an error.
        if name in ("utf-8", "us-ascii", "ascii") or name.startswith(("utf-16", "utf-32", "ucs")):
            return ""
        try:
            self.parser = make_parser(name)
        except LookupError:
            return f"the file declares the unknown encoding {name!r}"
        return ""

    def next_token(self) -> re.Match[bytes] | None:
        """Return the next start of a record, comment, or declaration; None at the end."""
        while (match := self.token.search(self.buffer, self.position)) is None:
            kept = self.buffer[self.position :]
            # Of text that is no record, only the ends are kept.
            if len(kept) > _KEPT + _TAIL:
                self.buffer, self.position = kept[:_KEPT] + kept[-_TAIL:], 0
            if not self.fill():
                return None
        return match

    def skip(self, match: re.Match[bytes]) -> bool:
        """Pass over a comment, CDATA section, instruction or document type; False at the end."""
        begin = match.end() - match.start()
        closed = _CLOSED_BY.get(match[0])
        while True:
            if closed:
                end = self.buffer.find(closed, self.position + begin)
                end += len(closed) if end >= 0 else 0
            else:
                end = _doctype_end(self.buffer, self.position + begin)
            if end >= 0:
                self.position = end
                return True
            if closed and len(self.buffer) - self.position > self.limit:
                # Of a long comment, keep the opening mark and what may be the start of its end.
                opening = self.buffer[self.position : self.position + begin]
                self.buffer = opening + self.buffer[-len(closed) :]
                self.position = 0
            if len(self.buffer) - self.position > self.limit or not self.fill():
                return False

    def record(self, match: re.Match[bytes]) -> Iterator[tuple[str, Element] | Rejection]:
        """Yield the record that starts at `position`, and pass over it."""
        closing = b"</" + match[1] + b">"
        searched = match.end() - match.start()
        self.number += 1
        place = f"{self.where}:{self.number}"
        while (end := self.buffer.find(closing, self.position + searched)) < 0:
            size = len(self.buffer) - self.position
            if size > self.limit:
                self.position += len(match[0])
                yield self.unclosed(place, "long", f"more than {self.limit:,} bytes")
                return
            searched = max(searched, size - len(closing))
            if not self.fill():
                self.position += len(match[0])
                yield self.unclosed(place, "truncated", f"the file ends before {closing.decode()}")
                return
        end += len(closing)
        data = self.buffer[self.position : end]
        if len(data) > self.limit:
            self.position = end
            yield Rejection(place, "long", f"{len(data):,} bytes; at most {self.limit:,} are read")
            return
        try:
            element = parse_xml(data, self.parser)
        except etree.XMLSyntaxError as error:
            # A record whose end was lost reaches to the end of the next.
            nested = self.start.search(data, len(match[0]))
            self.position = self.position + nested.start() if nested else end
            reason = "encoding" if error.code == _BAD_BYTES else "broken"
            yield Rejection(place, reason, one_line(str(error.msg))[:300])
            return
        self.position = end
        yield place, element

    def unclosed(self, place: str, reason: str, detail: str) -> Rejection:
        """Pass over a record without an end to the next start, in bounded memory."""
        while (match := self.start.search(self.buffer, self.position)) is None:
            ended = self.end.search(self.buffer, self.position)
            self.position = ended.end() if ended else max(self.position, len(self.buffer) - _TAIL)
            if ended or not self.fill():
                break
        if match:
            self.position = match.start()
            reason = "broken" if reason == "truncated" else reason
        elif reason == "truncated":
            self.position, self.truncated = len(self.buffer), True
        return Rejection(place, reason, detail)

    def between(self, gap: bytes) -> str:
        """Return what is wrong with the text before, between, or after records."""
        text = b" ".join(gap.split())
        if self.end.search(text) or (self.alone and text):
            return f"got {text[:80].decode(errors='replace')!r} beside the records"
        return ""


def make_parser(encoding: str | None = None) -> etree.XMLParser:
    """Return a parser that expands, loads and fetches nothing."""
    return etree.XMLParser(
        encoding=encoding,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


def parse_xml(data: bytes, parser: etree.XMLParser) -> Element:
    """Return the tree of one element, with named characters. Raises XMLSyntaxError."""
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        if error.code != _UNDECLARED:
            raise
        return etree.fromstring(_ENTITY.sub(_character, data), parser)


def _character(match: re.Match[bytes]) -> bytes:
    name = match[1].decode()
    text = html.entities.html5.get(f"{name};")
    if text is None or name in ("amp", "lt", "gt", "quot", "apos"):
        return match[0]
    return "".join(f"&#{ord(character)};" for character in text).encode()


def _root(head: bytes) -> str:
    match = _ROOT.search(head)
    return match[2].decode() if match else ""


def _without_start(head: bytes, root: str) -> tuple[bytes, bool]:
    """Return what stands after the start tag of the root, and whether the tag is also its end."""
    head = head.removeprefix(codecs.BOM_UTF8)
    name = rb"(?:[\w.-]+:)?" + re.escape(root.encode())
    match = re.match(rb"\s*<" + name + rb"(?:\s[^<>]*?)?(/?)>", head)
    return (head[match.end() :], bool(match[1])) if match else (head, False)


def _doctype_end(buffer: bytes, position: int) -> int:
    """Return the end of a document type declaration, -1 if it is not in the buffer."""
    subset, end = buffer.find(b"[", position), buffer.find(b">", position)
    if end < 0 or subset < 0 or end < subset:
        return end + 1 if end >= 0 else -1
    match = re.compile(rb"\]\s*>").search(buffer, subset)
    return match.end() if match else -1


def _transcoded(first: bytes, blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decode = codecs.getincrementaldecoder(encoding)().decode
    yield decode(first).encode()
    for block in blocks:
        yield decode(block).encode()
    yield decode(b"", True).encode()
