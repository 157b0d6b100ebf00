import pytest

from biomedlm_jax.corpus.articles import Article
from biomedlm_jax.corpus.filters import Filters, allows, language_code, license_name
from biomedlm_jax.errors import InputError

ARTICLE = Article(
    place="a.xml:1",
    source="medline",
    title="Title",
    abstract="Abstract.",
    license="CC BY 4.0",
    year=2010,
    languages=("eng",),
    types=("Journal Article", "Review"),
)


def changed(**values) -> Article:
    return Article(**{**ARTICLE.__dict__, **values})


REFUSALS = [
    ({}, {}, None),
    ({}, {"title": "", "abstract": " \n"}, "empty"),
    ({}, {"abstract": ""}, "title_only"),
    ({"titles_only": True}, {"abstract": ""}, None),
    ({}, {"abstract": "", "body": "Body."}, None),
    ({"languages": ("en",)}, {}, None),
    ({"languages": ("ENG",)}, {"languages": ("en",)}, None),
    ({"languages": ("de",)}, {"languages": ("ger",)}, None),
    ({"languages": ("ger",)}, {"languages": ("de-AT",)}, None),
    ({"languages": ("fr", "de")}, {}, "language"),
    ({"languages": ("fr",)}, {"languages": ("eng", "fre")}, None),
    ({"languages": ("en",)}, {"languages": ()}, "language_unknown"),
    ({"languages": ("en",)}, {"languages": ("und",)}, "language_unknown"),
    ({"license": "commercial"}, {}, None),
    ({"license": "commercial"}, {"license": "CC BY-NC"}, "license"),
    ({"license": "non-commercial"}, {"license": "CC BY-NC"}, None),
    ({"license": "non-commercial"}, {"license": "All rights reserved"}, "license_unknown"),
    ({"license": "any"}, {"license": ""}, None),
    ({"first_year": 2010, "last_year": 2010}, {}, None),
    ({"first_year": 2011}, {}, "year"),
    ({"last_year": 2009}, {}, "year"),
    ({"last_year": 2009}, {"year": None}, "year_unknown"),
    ({"types": ("journal article",)}, {}, None),
    ({"types": ("Letter",)}, {}, "type"),
    ({"types": ("Letter",)}, {"types": ()}, "type_unknown"),
    ({"without_types": ("review",)}, {}, "type"),
    ({"without_types": ("review",)}, {"types": ()}, None),
    ({"min_characters": 16, "max_characters": 16}, {}, None),  # with the blank line
    ({"min_characters": 17}, {}, "too_short"),
    ({"max_characters": 15}, {}, "too_long"),
]


@pytest.mark.parametrize(("filters", "values", "reason"), REFUSALS)
def test_each_refusal_has_a_reason(filters, values, reason):
    assert Filters(**filters).refusal(changed(**values)) == reason


def test_language_codes_of_both_standards():
    codes = {"eng": "en", "EN": "en", "en_GB": "en", "deu": "de", "ger": "de", "gre": "el"}
    codes |= {"chi": "zh", "fil": "fil", "mul": "", "": ""}
    assert {code: language_code(code) for code in codes} == codes


def test_uses_that_licenses_allow():
    commercial = ["CC0", "public domain", "CC BY", "CC BY-SA", "CC BY-ND"]
    others = ["CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"]
    assert [license_name(name) for name in others] == others
    assert all(allows(name, use) for name in commercial for use in ("commercial", "any"))
    assert all(allows(name, "non-commercial") for name in [*commercial, *others])
    assert not any(allows(name, "commercial") for name in [*others, ""])
    assert allows("", "any")
    assert not allows("", "non-commercial")
    # Of two licences the stricter counts: https://.../zero/1.0/ is for the data of an article.
    both = "http://creativecommons.org/licenses/by/4.0/ and CC0 for the data"
    assert license_name(both) == "CC BY"
    assert license_name("CC BY or CC BY-NC") == "CC BY-NC"
    assert license_name("NO-CC CODE") == license_name("") == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"languages": ("english",)}, "language 'english'; expected a code such as en or eng"),
        ({"languages": ("xx",)}, "language 'xx'"),
        ({"license": "free"}, "expected one of any, non-commercial, commercial"),
        (
            {"first_year": 2011, "last_year": 2010},
            "first_year=2011, which is above",
        ),
        (
            {"min_characters": 5, "max_characters": 4},
            "min_characters=5, which is above",
        ),
    ],
)
def test_impossible_filters_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Filters(**values)
