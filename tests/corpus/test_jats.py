"""jats.py: the stated rules, on made articles; and real ones beside texts that others extracted."""

import gzip
import io
import json
import re
import tarfile

import pytest
from nlm import jats_article

from biomedlm_jax.corpus.articles import Article, Rejection
from biomedlm_jax.corpus.jats import read_jats
from biomedlm_jax.errors import InputError


@pytest.fixture
def read(tmp_path):
    def read(data: bytes):
        path = tmp_path / "a.nxml"
        path.write_bytes(data)
        return list(read_jats(path))

    return read


@pytest.fixture
def one(read):
    def one(pmcid="7", **parts) -> Article:
        (article,) = read(jats_article(pmcid, **parts))
        assert isinstance(article, Article)
        return article

    return one


@pytest.fixture
def body(one):
    return lambda text: one(body=text).body.split("\n\n")


@pytest.mark.parametrize("pmcid", ["7", "PMC7"])
def test_every_field_of_an_article(tmp_path, pmcid):
    path = tmp_path / "a.xml.gz"
    path.write_bytes(gzip.compress(jats_article(pmcid)))
    (article,) = read_jats(path)
    assert article == Article(
        f"{path}:1",
        "pmc",
        title="A title",
        abstract="An abstract.",
        body="A body.",
        pmid="12",
        pmcid="PMC7",
        doi=f"10.1000/{pmcid}",
        license="CC BY",
        year=2010,
        languages=("en",),
        types=("research-article",),
        journal="Journal of tests",
    )


def test_attributes_that_are_missing_or_other(one):
    assert one(attributes="").languages == ("en",)
    assert one(attributes="").types == ()
    assert one(attributes='xml:lang="FR" article-type="letter"').languages == ("fr",)
    version = '<article-id pub-id-type="pmcid-ver">PMC7.3</article-id>'
    assert (one(meta=version).version, one(meta=version).pmcid) == (3, "PMC7")


def test_titles(one):
    title = "The <italic>Loozit</italic><sup>® </sup>Study<xref ref-type='fn' rid='a'>*</xref>"
    title += "<fn id='a'><p>Funded.</p></fn>"
    assert one(title=title).title == "The Loozit® Study"
    title = "One</article-title><subtitle>two</subtitle><alt-title>No</alt-title><article-title>"
    assert one(title=title).title == "One: two"


ABSTRACT = "<abstract{}><title>Abstract</title><sec><title>Aim</title><p>{}</p></sec></abstract>"


@pytest.mark.parametrize(
    ("abstract", "text"),
    [
        (ABSTRACT.format("", "Own."), "Aim\n\nOwn."),
        (
            ABSTRACT.format(" abstract-type='graphical'", "No.") + ABSTRACT.format("", "Own."),
            "Aim\n\nOwn.",
        ),
        (
            ABSTRACT.format(" xml:lang='fr'", "Non.") + ABSTRACT.format(" xml:lang='en'", "Own."),
            "Aim\n\nOwn.",
        ),
        (ABSTRACT.format(" xml:lang='fr'", "Un.") + ABSTRACT.format("", "2"), "Aim\n\nUn."),
        (
            ABSTRACT.format(" abstract-type='teaser'", "No.")
            + ABSTRACT.format(" abstract-type='short'", "Short.")
            + ABSTRACT.format(" abstract-type='summary'", "Summary."),
            "Aim\n\nSummary.",
        ),
        (ABSTRACT.format(" abstract-type='toc'", "No."), ""),
        ("<trans-abstract xml:lang='fr'><p>Non.</p></trans-abstract>", ""),
        ("", ""),
    ],
)
def test_abstracts(one, abstract, text):
    assert one(abstract=abstract).abstract == text


def test_headings_and_paragraphs(body):
    text = """
      <sec><label>1.</label><title>Methods</title>
        <p>First
           paragraph.</p>
        <sec><title><italic>Inner</italic> part</title><p>Second.</p></sec>
        <sec><title>Only a table</title><table-wrap><label>T1</label><caption><p>No.</p></caption>
          <table><tr><td>1</td></tr></table></table-wrap></sec>
      </sec>
      <sec><title>Supplementary</title><supplementary-material><p>S1</p></supplementary-material>
      </sec>
      <p>Last.</p>"""
    assert body(text) == ["Methods", "First paragraph.", "Inner part", "Second.", "Last."]


def test_blocks_inside_a_paragraph_are_paragraphs(body):
    text = """<p>Before:<list list-type="order"><list-item><label>1.</label><p>one</p>
      <list><list-item><p>inner</p></list-item></list></list-item><list-item><p>two</p></list-item>
      </list>after <bold>the</bold><named-content><disp-quote><p>Quoted.</p></disp-quote>
      </named-content>list.</p>
      <boxed-text><caption><title>Box</title></caption><p>Boxed.</p></boxed-text>
      <verse-group><verse-line>a</verse-line><verse-line>b</verse-line></verse-group>
      <def-list><def-item><term>CI</term><def><p>confidence interval</p></def></def-item></def-list>
    """
    assert body(text) == [
        "Before:",
        "one",
        "inner",
        "two",
        "after the",
        "Quoted.",
        "list.",
        "Box",
        "Boxed.",
        "a",
        "b",
        "CI: confidence interval",
    ]


def test_floats_and_notes_leave_the_paragraph_whole(body):
    text = """<p>One <fig><label>F</label><caption><p>No.</p></caption></fig>sentence<fn><p>No.</p>
      </fn> with <inline-graphic/>a gap<table-wrap><table><tr><td>1</td></tr></table></table-wrap>.
      </p><fig-group><fig><caption><p>No.</p></caption></fig></fig-group>
      <ref-list><ref><mixed-citation>No.</mixed-citation></ref></ref-list>"""
    assert body(text) == ["One sentence with a gap."]


def test_back_matter_and_floats_are_left_out(one):
    rest = """<back><ack><p>Thanks.</p></ack><app-group><app><p>Appendix.</p></app></app-group>
      <ref-list><ref><mixed-citation>Ref.</mixed-citation></ref></ref-list></back>
      <floats-group><fig><caption><p>Figure.</p></caption></fig></floats-group>"""
    assert one(rest=rest).body == "A body."


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ('known [<xref ref-type="bibr">1</xref>,<xref ref-type="bibr">2</xref>].', "known [1,2]."),
        ('<xref ref-type="bibr">Doe (2010)</xref> says', "Doe (2010) says"),
        (
            'cells<sup><xref ref-type="bibr">12</xref>,<xref ref-type="bibr">3</xref></sup>.',
            "cells.",
        ),
        ('cells<xref ref-type="bibr"><sup>12</sup></xref>.', "cells."),
        ('mean<xref ref-type="table-fn"><sup>a</sup></xref> 5', "mean 5"),
        ('mean<xref ref-type="fn">*</xref> 5', "mean 5"),
        ('see <xref ref-type="fig">Fig. <bold>2</bold></xref>', "see Fig. 2"),
        ("H<sub>2</sub>O, 10<sup>9 </sup>cells, m<sup>2</sup>", "H2O, 10^9 cells, m2"),
        ("p53<sup>-/-</sup>, <sup>125</sup>I, 10<sup>\u22123</sup>", "p53-/-, 125I, 10^\u22123"),
        ("a<break/>b", "a b"),
        ("x\u2009=\u20092\xa0mg", "x\u2009=\u20092\xa0mg"),
    ],
)
def test_inline_markup(body, text, plain):
    assert body(f"<p>{text}</p>") == [plain]


MATH = "<mml:math><mml:mi>x</mml:mi><mml:mo>=</mml:mo><mml:mn>2</mml:mn></mml:math>"
TEX = r"""<tex-math>\documentclass[12pt]{minimal} \usepackage{amsmath} \begin{document}$$x=2$$
\end{document}</tex-math>"""


@pytest.mark.parametrize(
    ("formula", "plain"),
    [
        (MATH, "x=2"),
        (f"<alternatives>{TEX}{MATH}<graphic/></alternatives>", "x=2"),
        (f"<alternatives>{TEX}<inline-graphic/></alternatives>", "$$x=2$$"),
        ("<tex-math>x=2</tex-math>", "x=2"),
        ("<italic>x</italic>=2", "x=2"),
        ("<label>(1)</label><italic>x</italic>=2<graphic/>", "x=2"),
        ("<graphic/>", ""),
    ],
)
def test_formulas(body, formula, plain):
    inline = f"<p>so <inline-formula>{formula}</inline-formula> holds</p>"
    assert body(inline) == [" ".join(f"so {plain} holds".split())]
    displayed = body(f"<p>so<disp-formula>{formula}</disp-formula>holds</p>")
    assert displayed == ["so", *([plain] if plain else []), "holds"]


def test_sub_articles_are_counted_and_not_mixed_in(read):
    rest = """<sub-article article-type="reviewer-report"><front-stub><title-group><article-title>
      Report</article-title></title-group></front-stub><body><p>Minor.</p></body></sub-article>
      <response response-type="reply"><front-stub/><body><p>Thanks.</p></body></response>"""
    article, *others = read(jats_article(rest=rest))
    assert article.text == "A title\n\nAn abstract.\n\nA body."
    assert others == [
        Rejection(article.place, "sub-article", "sub-article of the type reviewer-report"),
        Rejection(article.place, "sub-article", "response of the type reply"),
    ]


BY, NC = (
    "http://creativecommons.org/licenses/by/4.0/",
    "https://creativecommons.org/licenses/by-nc/4.0",
)
ALI = '<ali:license_ref xmlns:ali="http://www.niso.org/schemas/ali/1.0/">{}</ali:license_ref>'
LINK = '<license-p>See <ext-link xlink:href="{}">this</ext-link>.</license-p>'
ZERO = LINK.format("http://creativecommons.org/publicdomain/zero/1.0/")


@pytest.mark.parametrize(
    ("license", "name"),
    [
        (f'<license xlink:href="{BY}"/>', "CC BY"),
        (f'<license license-type="open-access" xlink:href="{NC}"/>', "CC BY-NC"),
        (f"<license>{ALI.format(NC)}</license>", "CC BY-NC"),
        (f'<license xlink:href="{BY}">{LINK.format(NC)}</license>', "CC BY"),
        (f"<license>{LINK.format(BY)}{ZERO}</license>", "CC BY"),
        (f'<license xlink:href="{BY}"/><license xlink:href="{NC}"/>', "CC BY-NC"),
        ('<license license-type="CC BY-NC-ND 4.0"><p>Terms.</p></license>', "CC BY-NC-ND"),
        ("<license><p>Creative <i>Commons</i>\nAttribution License</p></license>", "CC BY"),
        ('<license xlink:href="http://example.org/terms"/>', "http://example.org/terms"),
        ('<license license-type="open-access"><p>Free.</p></license>', ""),
        ("<copyright-statement>© 2010</copyright-statement>", ""),
        ("", ""),
    ],
)
def test_licenses(one, license, name):
    assert one(license=license).license == name
    # Before JATS 1.0 it stands beside the copyright statement, not in permissions.
    assert one(license="", meta=license.replace("license-p>", "p>")).license == name


def test_a_name_space_changes_nothing(read):
    data = jats_article(body="<sec><title>T</title><p>x<sup>2</sup></p></sec>")
    (plain,) = read(data)
    wrapped = re.sub(rb"<!DOCTYPE[^>]*>\n", b"", data).replace(
        b"<article ", b'<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" '
    )
    head, tail = b"<OAI-PMH><ListRecords>", b"</ListRecords></OAI-PMH>"
    record = b"<record><header>x</header><metadata>" + wrapped + b"</metadata></record>"
    first, second = read(head + record * 2 + tail)
    assert first == plain
    assert second.place.endswith(":2")


def test_packages(tmp_path):
    path = tmp_path / "oa_comm_xml.PMC000xxxxxx.baseline.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (
            ("PMC000xxxxxx/PMC1.xml", jats_article(1)),
            ("PMC000xxxxxx/PMC2.xml", jats_article(2)[:-400]),
            ("PMC000xxxxxx/PMC3.xml", b"<html/>"),
            ("../PMC4.xml", jats_article(4)),
            ("PMC5/PMC5.nxml", jats_article(5)),
            ("PMC5/figure.jpg", b"\xff\xd8"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    items = list(read_jats(path))
    results = [getattr(item, "pmcid", "") or item.reason for item in items]
    assert results == ["PMC1", "truncated", "wrong_format", "unsafe", "PMC5"]
    assert items[-1].place == f"{path}:PMC5/PMC5.nxml:1"


def test_articles_that_cannot_be_read(read, tmp_path):
    deep = "<italic>" * 1500 + "x" + "</italic>" * 1500
    for data, reason in (
        (jats_article(title="", abstract="", body=""), "empty"),
        (jats_article(body="<p>a &undefined; b</p>"), "broken"),
        (jats_article(body=f"<p>{deep}</p>"), "broken"),
        (jats_article(body="<p>\0</p>"), "broken"),
        (jats_article().replace(b"</sec>", b"").replace(b"</body>", b""), "broken"),
        (jats_article(rest="<front/>"), "broken"),
        (jats_article()[:-20], "truncated"),
        (jats_article(body="<p>é</p>").decode().encode("latin-1"), "encoding"),
        (b"", "truncated"),
        (b"<html><body/></html>", "wrong_format"),
    ):
        (item,) = read(data)
        assert isinstance(item, Rejection)
        assert item.reason == reason
    (article,) = read(jats_article(body="<p>a &beta; b</p>"))
    assert article.body == "a β b"
    with pytest.raises(InputError, match="no such file"):
        list(read_jats(tmp_path / "none.tar.gz"))


def key(text: str) -> str:
    """A paragraph up to white space and inline references."""
    return re.sub(r"[\s\[\](),;\u2013-]+", "", text)


def test_real_articles_beside_the_texts_that_others_extracted(real_data):
    """The reference has superscripts as plain text, "109" for 10^9, and headings without a text."""
    with gzip.open(real_data / "pubmed_text" / "pmc_fulltext_ccby.jsonl.gz", "rt") as file:
        references = {record["pmcid"]: record for record in map(json.loads, file)}
    files = sorted((real_data / "jats").glob("*.nxml"))
    compared = total = missing = 0
    unexplained = []
    for path in files:
        (article,) = read_jats(path)
        assert article.pmcid == path.stem
        assert (article.license, article.languages) == ("CC BY", ("en",))
        if article.pmcid not in references:
            continue
        compared += 1
        reference = references[article.pmcid]
        for field in ("pmid", "doi", "journal", "title"):
            assert getattr(article, field) == reference[field]
        assert (str(article.year), article.types[0]) == (reference["year"], reference["type"])
        ours = {key(paragraph) for paragraph in article.text.split("\n\n")}
        explained = {text.replace("^", "") for text in ours}
        headings = {"supplementarymaterial", "supportinginformation"}
        for paragraph in f"{reference['abstract']}\n{reference['body']}".split("\n"):
            if not (text := key(paragraph)):
                continue
            total += 1
            missing += text not in ours
            if text not in explained and text.lower() not in headings:
                unexplained.append(paragraph)
    assert (len(files), compared) == (24, 23)
    assert missing <= 0.05 * total
    assert (total, missing, unexplained) == (1385, 13, [])
