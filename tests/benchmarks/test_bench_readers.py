import gzip

import pytest
from nlm import jats_article, pubmed_article, pubmed_set

from biomedlm_jax.benchmarks.bench_readers import BARE, RECORDS, measure
from biomedlm_jax.benchmarks.rounds import OURS
from biomedlm_jax.errors import InputError


def test_every_side_is_measured(tmp_path):
    medline = pubmed_set(pubmed_article(1), pubmed_article(2))
    (tmp_path / "a.xml.gz").write_bytes(gzip.compress(medline))
    (tmp_path / "b.nxml").write_bytes(jats_article())
    result = measure(tmp_path, rounds=1)
    assert (result["articles"], result["xml_bytes"]) == (3, len(medline) + len(jats_article()))
    assert list(result["tables"]["readers"]) == [OURS, BARE, RECORDS]
    assert result["work"].endswith("3 articles in 2 files")
    with pytest.raises(InputError, match=r"no file to read in .*; expected \.xml"):
        measure(tmp_path / "none")
