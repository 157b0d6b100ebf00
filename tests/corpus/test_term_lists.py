"""term_lists.py: the package's lists, and files of the user."""

import gzip

import pytest

from biomedlm_jax.corpus.comparison import WORD
from biomedlm_jax.corpus.term_lists import NAMES, builtin_lists, published_splits, read_terms


def test_the_lists_have_40_terms_each_and_the_table_its_ten():
    lists = builtin_lists()
    assert tuple(lists) == NAMES
    assert [len(terms) for terms in lists.values()] == [40] * 4
    every = [term for terms in lists.values() for term in terms]
    assert len({*every}) == 160
    assert all(WORD.search(term) for term in every)
    published = published_splits()
    assert len(published.splits) == 10
    for term, pieces in published.splits.items():
        assert pieces is None or "".join(pieces) == term


def test_a_file_has_one_term_a_line(tmp_path):
    path = tmp_path / "terms.txt.gz"
    lines = "\ufeff# vaccines\nBCG\r\n\n  Haemophilus influenzae b \nBCG\n\u03b2-carotene"
    path.write_bytes(gzip.compress(lines.encode()))
    assert read_terms(path) == ["BCG", "Haemophilus influenzae b", "\u03b2-carotene"]
    bad = tmp_path / "bad.txt"
    for content, message in (
        (b"asthma\ncaf\xe9\n", r"bad\.txt:2: expected UTF-8, got"),
        (b"# none\n\n", r"bad\.txt has no term; expected one a line"),
    ):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_terms(bad)
