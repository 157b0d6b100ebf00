import pytest

from biomedlm_jax.corpus.corpus_settings import CorpusSettings
from biomedlm_jax.corpus.sources import Source, TextRecords
from biomedlm_jax.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": {"other": 2}}, "epochs of other, which is no source; they are abstracts, art"),
        ({"epochs": {"articles": 0}}, "epochs articles=0; expected a number above 0"),
        ({"epochs": {"articles": float("nan")}}, "articles=nan"),
        ({"mixture": {"articles": 1}}, "got a mixture and no share of abstracts"),
        (
            {"mixture": {"articles": 1, "abstracts": 1}, "epochs": {"articles": 1}},
            "got a mixture and epochs, too",
        ),
        ({"mixture_epochs": 0}, "mixture_epochs=0"),
        ({"shard_bytes": 0}, "shard_bytes=0"),
        ({"on_damage": "stop"}, "on_damage=stop; expected raise or skip"),
        ({"near": 2}, "near=2; expected a similarity from 0 to 1"),
        ({"file_list": "a.csv"}, "no source of the kind pmc"),
        ({"records": TextRecords(subsets=("a",))}, "no source of the kind text"),
    ],
)
def test_bad_settings_are_refused(options, message):
    kind = "text" if "records" not in options else "pmc"
    sources = [Source(name, kind, (name,)) for name in ("abstracts", "articles")]
    CorpusSettings().check(sources)
    with pytest.raises(InputError, match=message):
        CorpusSettings(**options).check(sources)
