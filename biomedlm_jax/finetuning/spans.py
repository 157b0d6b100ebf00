"""Tags of tokens and the entities that they mark, in the schemes IOB1, IOB2 and BIOES.

A tag is O, or a prefix and a type: B-Disease. IOB2 begins every entity with B, IOB1 only one right
after another of its type; BIOES ends with E, and S is an entity of one token.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

PREFIXES = {"iob2": "BI", "iob1": "BI", "bioes": "BIES"}
SCHEMES = tuple(PREFIXES)
OUTSIDE = "O"
TAG = re.compile(r"([BIES])-(\S(?:.*\S)?)", re.DOTALL)


class Entity(NamedTuple):
    """A type and the first and last token of an entity, from 0."""

    type: str
    first: int
    last: int


def split_tag(tag: str) -> tuple[str, str]:
    """Return prefix and type: ("O", "") for O, and ("", "") for what is no tag."""
    match = TAG.fullmatch(tag)
    return (match[1], match[2]) if match else (tag if tag == OUTSIDE else "", "")


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence's tags, in order, as seqeval's default mode does.

    An entity begins at B or S, at any tag after O, E or S, and where the type changes. Tags that
    break their scheme (I after O) therefore still mark entities. `tags` are checked before.
    """
    marked, first, before, kind_before = [], 0, OUTSIDE, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = split_tag(tag)
        new = prefix in "BS" or before in "OES" or kind != kind_before
        if before != OUTSIDE and (new or prefix == OUTSIDE):
            marked.append(Entity(kind_before, first, place - 1))
        if prefix != OUTSIDE and new:
            first = place
        before, kind_before = prefix, kind
    return marked


def scheme_fault(tags: Sequence[str], scheme: str) -> tuple[int, str] | None:
    """Return the first place where tags break a scheme, with the reason; None if they keep it.

    An entity that BIOES does not end is a fault of its last token.
    """
    before, kind_before = OUTSIDE, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = split_tag(tag)
        if prefix == "" or prefix not in PREFIXES[scheme] + OUTSIDE:
            allowed = ", ".join(f"{one}-TYPE" for one in PREFIXES[scheme])
            return place, f"got the tag {tag!r}; expected {OUTSIDE} or {allowed}"
        follows = before in ("B", "I") and kind == kind_before
        after = tags[place - 1] if place else "the start of the sentence"
        if scheme == "iob2" and prefix == "I" and not follows:
            return place, f"got {tag} after {after}; iob2 begins an entity with B"
        if scheme == "iob1" and prefix == "B" and not follows:
            return place, f"got {tag} after {after}; iob1 uses B only after an entity of its type"
        if scheme == "bioes":
            if prefix in "IE" and not follows:
                return place, f"got {tag} after {after}; bioes begins an entity with B or S"
            if before in ("B", "I") and prefix not in "IE":
                return place - 1, f"got {after} as the last tag of an entity; bioes ends it with E"
        before, kind_before = prefix, kind
    return None


def iob2_tags(marked: Sequence[Entity], length: int) -> list[str]:
    """Return the IOB2 tags of a sentence of `length` tokens with these entities."""
    tags = [OUTSIDE] * length
    for kind, first, last in marked:
        tags[first : last + 1] = [f"B-{kind}"] + [f"I-{kind}"] * (last - first)
    return tags
