"""medline.py: NLM's elements become the fields that the stated rules give."""

import gzip
import random
import tracemalloc

import pytest
from nlm import PUBMED_HEAD, pubmed_article, pubmed_set

from biomedlm_jax.corpus.articles import Article, Deletion, Rejection
from biomedlm_jax.corpus.medline import read_medline
from biomedlm_jax.errors import InputError


@pytest.fixture
def read(tmp_path):
    def read(*records: str, **options):
        path = tmp_path / "pubmed25n0001.xml"
        path.write_bytes(pubmed_set(*records, **options))
        return list(read_medline(path))

    return read


@pytest.fixture
def one(read):
    def one(pmid=1, **parts) -> Article:
        (article,) = read(pubmed_article(pmid, **parts))
        assert isinstance(article, Article)
        return article

    return one


def test_every_field_of_an_article(tmp_path):
    ids = '<ArticleId IdType="doi">10.1/x</ArticleId><ArticleId IdType="pmc">PMC55</ArticleId>'
    references = (
        "<ReferenceList><Title>References</Title><Reference><Citation>A. B. C.</Citation>"
        '<ArticleIdList><ArticleId IdType="pubmed">9</ArticleId><ArticleId IdType="doi">10.9/z'
        '</ArticleId><ArticleId IdType="pmc">PMC9</ArticleId></ArticleIdList></Reference>'
        "<ReferenceList><Reference><ArticleIdList><ArticleId IdType='pmc'>PMC8</ArticleId>"
        "</ArticleIdList></Reference></ReferenceList></ReferenceList>"
    )
    path = tmp_path / "pubmed25n0001.xml.gz"
    record = pubmed_article(31, version=2, ids=ids, references=references)
    path.write_bytes(gzip.compress(pubmed_set(record)))
    assert list(read_medline(path)) == [
        Article(
            f"{path}:1",
            "medline",
            title="A title.",
            abstract="An abstract.",
            pmid="31",
            pmcid="PMC55",
            doi="10.1/x",
            year=2019,
            version=2,
            languages=("eng",),
            types=("Journal Article",),
            journal="Journal of tests",
        )
    ]


def test_the_ids_of_references_are_not_those_of_the_article(one):
    references = (
        '<ReferenceList><Reference><ArticleIdList><ArticleId IdType="doi">10.9/z</ArticleId>'
        '<ArticleId IdType="pmc">PMC9</ArticleId></ArticleIdList></Reference></ReferenceList>'
    )
    article = one(references=references)
    assert (article.pmcid, article.doi) == ("", "")
    location = '<ELocationID EIdType="doi" ValidYN="{}">10.1/e</ELocationID>'
    assert one(references=references, more=location.format("Y")).doi == "10.1/e"
    assert one(more=location.format("N")).doi == ""
    ids = '<ArticleId IdType="doi">10.1/own</ArticleId>'
    assert one(more=location.format("Y"), ids=ids).doi == "10.1/own"


def test_markup_becomes_plain_text(one):
    article = one(
        title="<i>In vitro</i> effect of CO<sub>2</sub> on <b>p53<sup>-/-</sup></b> cells &amp; "
        "10<sup>9</sup> CFU of Ca<sup>2+</sup>, 10<sup>&#x2212;3</sup>.",
        abstract="<AbstractText>Here\n   <u>is</u> <mml:math xmlns:mml='http://www.w3.org/1998/"
        "Math/MathML'><mml:msup><mml:mi>x</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:math>; "
        "<DispFormula>y = 1</DispFormula></AbstractText>",
    )
    assert article.title == (
        "In vitro effect of CO2 on p53-/- cells & 10^9 CFU of Ca2+, 10^\u22123."
    )
    assert article.abstract == "Here is x^2; y = 1"


def test_a_structured_abstract_has_its_labels(one):
    abstract = (
        '<AbstractText Label="BACKGROUND AND AIM" NlmCategory="BACKGROUND">Why.</AbstractText>'
        '<AbstractText NlmCategory="METHODS">How.</AbstractText>'
        '<AbstractText Label="UNLABELLED" NlmCategory="UNASSIGNED">What.</AbstractText>'
        '<AbstractText Label="RESULTS:"/>'
        '<AbstractText Label="CONCLUSIONS:">So.</AbstractText>'
        "<CopyrightInformation>Copyright 2019.</CopyrightInformation>"
    )
    expected = ["BACKGROUND AND AIM: Why.", "METHODS: How.", "What.", "CONCLUSIONS: So."]
    assert one(abstract=abstract).abstract == "\n\n".join(expected)


def test_titles_in_other_languages(one):
    vernacular = "<VernacularTitle>Ein Titel.</VernacularTitle>"
    for title in ("", "[Not Available].", "Not Available"):
        assert one(title=title, more=vernacular).title == "Ein Titel."
    article = one(title="[A title].", more=vernacular, language="ger")
    assert (article.title, article.languages) == ("[A title].", ("ger",))
    several = one(more="<Language>fre</Language>")
    assert several.languages == ("eng", "fre")


def test_other_abstracts_are_used_only_without_an_abstract(one):
    def other(text, kind="Publisher", language=""):
        attributes = f' Language="{language}"' if language else ""
        text = f"<AbstractText>{text}</AbstractText>"
        return f'<OtherAbstract Type="{kind}"{attributes}>{text}</OtherAbstract>'

    others = other("Un résumé.", language="fre") + other("Simple.", "plain-language-summary")
    assert one(citation=others + other("Other.")).abstract == "An abstract."
    assert one(abstract="", citation=others).abstract == ""
    assert one(abstract="", citation=others + other("Other.")).abstract == "Other."
    empty = "<AbstractText/>"
    assert one(abstract=empty, citation=others + other("Other.")).abstract == "Other."


@pytest.mark.parametrize(
    ("date", "year"),
    [
        ("<Year>2003</Year><Season>Spring</Season>", 2003),
        ("<MedlineDate>1998 Dec-1999 Jan</MedlineDate>", 1998),
        ("<MedlineDate>Spring 1876</MedlineDate>", 1876),
        ("<MedlineDate>No date</MedlineDate>", 2018),
        ("", 2018),
    ],
)
def test_years(one, date, year):
    article_date = "<ArticleDate DateType='Electronic'><Year>2018</Year></ArticleDate>"
    assert one(date=date, more=article_date).year == year
    assert one(date="<MedlineDate>12345</MedlineDate>").year is None


def test_revisions_and_deletions_come_in_their_order(read):
    first, *others = read(
        pubmed_article(5, title="One."),
        pubmed_article(5, title="Two.", version=2),
        pubmed_article(5, title="Three."),
        deleted=(8, 9),
    )
    assert (first.version, first.title) == (1, "One.")
    assert [(item.version, item.title) for item in others[:2]] == [(2, "Two."), (1, "Three.")]
    place = first.place[:-1]
    assert others[2:] == [Deletion(f"{place}4", "8"), Deletion(f"{place}4", "9")]


BOOK = """<PubmedBookArticle><BookDocument><PMID Version="1">77</PMID>
<ArticleIdList><ArticleId IdType="bookaccession">NBK1</ArticleId></ArticleIdList>
<Book><Publisher><PublisherName>P</PublisherName></Publisher>
<BookTitle book="gene">GeneReviews<sup>®</sup></BookTitle>
<PubDate><Year>1993</Year></PubDate></Book>
<ArticleTitle book="gene" part="x">A syndrome</ArticleTitle><Language>eng</Language>
<PublicationType UI="D016454">Review</PublicationType>
<Abstract><AbstractText Label="CLINICAL CHARACTERISTICS">Text.</AbstractText></Abstract>
<Sections><Section><SectionTitle>Diagnosis</SectionTitle></Section></Sections>
<ContributionDate><Year>2001</Year></ContributionDate>
</BookDocument><PubmedBookData><PublicationStatus>ppublish</PublicationStatus></PubmedBookData>
</PubmedBookArticle>"""


def test_book_articles(read):
    chapter, book = read(BOOK, BOOK.replace("<ArticleTitle", "<X").replace("ArticleTitle>", "X>"))
    assert chapter == Article(
        chapter.place,
        "medline",
        title="A syndrome",
        abstract="CLINICAL CHARACTERISTICS: Text.",
        pmid="77",
        year=1993,
        languages=("eng",),
        types=("Review",),
        journal="GeneReviews®",
    )
    assert (book.title, book.journal) == ("GeneReviews®", "GeneReviews®")


def test_records_that_are_no_article_are_rejected(read):
    records = (
        pubmed_article(1, title="", abstract=""),
        pubmed_article("", title="No PMID."),
        pubmed_article("1a"),
        "<PubmedArticle><PubmedData/></PubmedArticle>",
        "<PubmedBookArticle/>\n",
        (pubmed_article(3) + pubmed_article(4)).replace("</PubmedArticle>\n<PubmedArticle>", ""),
        pubmed_article(2),
    )
    *items, last = read(*records)
    assert [item.reason for item in items] == ["empty"] + ["broken"] * 5
    assert items[0].detail == "PMID 1 has no title and no abstract"
    assert last.pmid == "2"
    assert read("<DeleteCitation><PMID>x</PMID></DeleteCitation>")[0].reason == "broken"


def test_a_title_without_an_abstract_is_an_article(one):
    article = one(abstract="")
    assert (article.abstract, article.text) == ("", "A title.")


def test_the_rest_of_a_broken_file_is_read(tmp_path):
    records = [pubmed_article(i) for i in range(1, 8)]
    records[1] = records[1].replace("</Abstract>", "")  # another tag ends there
    records[3] = records[3].replace("</PubmedArticle>", "")
    records[5] = records[5].replace("<PubmedArticle>", "<PubmedArt")
    data = pubmed_set(*records)
    path = tmp_path / "a.xml"
    path.write_bytes(data)
    items = list(read_medline(path))
    pmids = [item.pmid for item in items if isinstance(item, Article)]
    assert pmids == ["1", "3", "5", "7"]
    lost = [(item.place, item.reason) for item in items if isinstance(item, Rejection)]
    assert lost == [(f"{path}:{number}", "broken") for number in (2, 4, 6)]
    path.write_bytes(data[: len(data) - len(records[6]) // 2])
    assert list(read_medline(path))[-1].reason == "truncated"


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "a.xml"
    path.write_bytes(pubmed_set())
    assert list(read_medline(path)) == []
    path.write_text("<html><head/></html>")
    (item,) = read_medline(path)
    expected = "got the root element 'html'; expected PubmedArticleSet or PubmedBookArticleSet"
    assert (item.reason, item.detail) == ("wrong_format", expected)
    with pytest.raises(InputError, match="no such file"):
        list(read_medline(tmp_path / "b.xml"))


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "a.xml.gz"
    records = "".join(
        pubmed_article(i, abstract="<AbstractText>" + "word " * 200) for i in range(50)
    )
    records = records.replace("word </Abstract>", "word </AbstractText></Abstract>")

    def peak(times: int) -> int:
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(PUBMED_HEAD.encode())
            for _ in range(times):
                file.write(records.encode())
            file.write(b"</PubmedArticleSet>")
        tracemalloc.start()
        count = sum(isinstance(item, Article) for item in read_medline(path))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 50 * times
        return size

    assert peak(40) < 1.2 * peak(20) < 20_000_000


INSERTED = (b"<!--", b"-->", b"<![CDATA[", b"<PubmedArticle>", b"</PubmedArticle>", b"&x;", b"\0")


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_loses_no_record_silently(tmp_path, seed):
    rng, path = random.Random(seed), tmp_path / "a.xml"
    whole = pubmed_set(*(pubmed_article(i) for i in range(1, 6)), deleted=(8,))
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            i = rng.randrange(len(data))
            j = i + rng.choice((1, 20, 2000))
            damage = rng.randrange(4)
            if damage == 0:
                data[i] ^= 1 << rng.randrange(8)
            elif damage == 1:
                del data[i:j]
            elif damage == 2:
                data[i:j] = rng.randbytes(j - i)
            else:
                data[i:i] = rng.choice(INSERTED)
            data += b" " * (not data)
        path.write_bytes(data)
        items = list(read_medline(path))
        rejected = [item for item in items if isinstance(item, Rejection)]
        assert rejected or len(items) == 6
        assert all(item.detail.isprintable() and item.reason.isalpha() for item in rejected)
