import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from biomedlm_jax.finetuning.spans import (
    PREFIXES,
    SCHEMES,
    Entity,
    entities,
    iob2_tags,
    scheme_fault,
    split_tag,
)

THEIRS = {"iob1": IOB1, "iob2": IOB2, "bioes": IOBES}
TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("Gene", "Cell-Type"))]


@pytest.mark.parametrize(
    ("tags", "marked"),
    [
        ("", []),
        ("O O", []),
        ("B-X I-X O B-Y", ["X 0 1", "Y 3 3"]),
        ("B-X B-X", ["X 0 0", "X 1 1"]),
        ("I-X I-X B-X I-X", ["X 0 1", "X 2 3"]),  # IOB1
        ("B-X I-Y", ["X 0 0", "Y 1 1"]),  # the type changes inside
        ("O I-X", ["X 1 1"]),  # I after O
        ("I-X O I-X", ["X 0 0", "X 2 2"]),
        ("B-X I-X E-X S-X", ["X 0 2", "X 3 3"]),
        ("E-X I-X", ["X 0 0", "X 1 1"]),
        ("S-X I-X", ["X 0 0", "X 1 1"]),
        ("B-X S-X", ["X 0 0", "X 1 1"]),
        ("B-a-b I-a-b", ["a-b 0 1"]),
    ],
)
def test_entities_of_tags(tags, marked):
    assert [f"{one.type} {one.first} {one.last}" for one in entities(tags.split())] == marked


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_are_those_of_seqeval(tags):
    assert [tuple(one) for one in entities(tags)] == get_entities(tags)


@given(st.sampled_from(SCHEMES), st.lists(st.sampled_from(TAGS), max_size=9))
def test_a_scheme_is_kept_where_seqevals_strict_mode_reads_the_same(scheme, tags):
    """Without a fault, strict and default mode agree; strict mode misses a faulty tag, or IOB1's
    B- at the start of an entity."""
    tags = [tag for tag in tags if tag[0] in PREFIXES[scheme] + "O"]
    strict = [one.to_tuple()[1:] for one in Entities([tags], THEIRS[scheme]).entities[0]]
    strict = [(kind, first, end - 1) for kind, first, end in strict]
    covered = {place for _, first, last in strict for place in range(first, last + 1)}
    whole = covered == {place for place, tag in enumerate(tags) if tag != "O"}
    fault = scheme_fault(tags, scheme)
    if fault is None:
        assert strict == [tuple(one) for one in entities(tags)]
        assert whole
    elif scheme != "iob1":
        assert not whole or strict != [tuple(one) for one in entities(tags)]


@pytest.mark.parametrize(
    ("scheme", "tags", "place", "reason"),
    [
        ("iob2", "O I-X", 1, "got I-X after O; iob2 begins an entity with B"),
        ("iob2", "I-X", 0, "got I-X after the start of the sentence"),
        ("iob2", "B-X I-Y", 1, "got I-Y after B-X"),
        ("iob2", "B-X E-X", 1, "got the tag 'E-X'; expected O or B-TYPE, I-TYPE"),
        ("iob2", "B-X X", 1, "got the tag 'X'"),
        ("iob2", "B-", 0, "got the tag 'B-'"),
        ("iob1", "B-X", 0, "got B-X after the start of the sentence; iob1 uses B only after"),
        ("iob1", "I-Y B-X", 1, "got B-X after I-Y"),
        ("bioes", "I-X E-X", 0, "got I-X after the start of the sentence; bioes begins"),
        ("bioes", "B-X O", 0, "got B-X as the last tag of an entity; bioes ends it with E"),
        ("bioes", "O B-X I-X", 2, "got I-X as the last tag of an entity"),
        ("bioes", "B-X E-Y", 1, "got E-Y after B-X"),
        ("bioes", "S-X E-X", 1, "got E-X after S-X"),
    ],
)
def test_faults_of_a_scheme(scheme, tags, place, reason):
    where, message = scheme_fault(tags.split(), scheme)
    assert where == place
    assert reason in message


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("iob2", "B-X I-X B-X O B-Y"),
        ("iob1", "I-X I-X B-X I-X I-Y O I-X"),
        ("bioes", "B-X I-X E-X S-X S-Y O B-Y E-Y"),
    ],
)
def test_tags_that_keep_their_scheme(scheme, tags):
    assert scheme_fault(tags.split(), scheme) is None


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_iob2_tags_mark_the_same_entities(tags):
    rewritten = iob2_tags(entities(tags), len(tags))
    assert entities(rewritten) == entities(tags)
    assert scheme_fault(rewritten, "iob2") is None
    assert len(rewritten) == len(tags)


def test_split_tag():
    assert split_tag("B-a-b") == ("B", "a-b")
    assert split_tag("O") == ("O", "")
    assert split_tag("B") == split_tag("X-a") == split_tag("B- ") == ("", "")
    assert iob2_tags([Entity("X", 1, 2)], 4) == ["O", "B-X", "I-X", "O"]
