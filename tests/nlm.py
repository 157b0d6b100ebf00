"""Files as the National Library of Medicine publishes them, made from the facts of its DTDs."""

PUBMED_HEAD = (
    '<?xml version="1.0" encoding="utf-8"?>\n'
    '<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n<PubmedArticleSet>\n'
)
JATS_HEAD = (
    '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD '
    'v1.3 20210610//EN" "JATS-archivearticle1-3.dtd">\n'
)
FILE_LIST_HEAD = (
    "File,Article Citation,Accession ID,Last Updated (YYYY-MM-DD HH:MM:SS),PMID,License\n"
)


def pubmed_article(
    pmid: int | str = 1,
    *,
    title: str = "A title.",
    abstract: str = "<AbstractText>An abstract.</AbstractText>",
    version: int = 1,
    date: str = "<Year>2019</Year><Month>Mar</Month>",
    ids: str = "",
    language: str = "eng",
    more: str = "",
    citation: str = "",
    references: str = "",
) -> str:
    """A PubmedArticle; `more` is put at the end of Article, `citation` of MedlineCitation."""
    abstract = f"<Abstract>{abstract}</Abstract>" if abstract else ""
    return f"""<PubmedArticle>
  <MedlineCitation Status="MEDLINE" Owner="NLM" IndexingMethod="Automated">
    <PMID Version="{version}">{pmid}</PMID>
    <DateRevised><Year>2021</Year><Month>05</Month><Day>06</Day></DateRevised>
    <Article PubModel="Print">
      <Journal>
        <ISSN IssnType="Print">0000-0000</ISSN>
        <JournalIssue CitedMedium="Print"><Volume>1</Volume><PubDate>{date}</PubDate></JournalIssue>
        <Title>Journal of tests</Title><ISOAbbreviation>J Tests</ISOAbbreviation>
      </Journal>
      <ArticleTitle>{title}</ArticleTitle>
      <Pagination><StartPage>1</StartPage><MedlinePgn>1-9</MedlinePgn></Pagination>
      <ELocationID EIdType="pii" ValidYN="Y">S1</ELocationID>
      {abstract}
      <AuthorList CompleteYN="Y"><Author><LastName>Doe</LastName><Initials>J</Initials></Author>
      </AuthorList>
      <Language>{language}</Language>
      <PublicationTypeList>
        <PublicationType UI="D016428">Journal Article</PublicationType>
      </PublicationTypeList>
      {more}
    </Article>
    <MedlineJournalInfo><MedlineTA>J Tests</MedlineTA></MedlineJournalInfo>
    {citation}
  </MedlineCitation>
  <PubmedData>
    <PublicationStatus>ppublish</PublicationStatus>
    <ArticleIdList><ArticleId IdType="pubmed">{pmid}</ArticleId>{ids}</ArticleIdList>
    {references}
  </PubmedData>
</PubmedArticle>
"""


def pubmed_set(*records: str, deleted: tuple[int, ...] = ()) -> bytes:
    """A file of PubMed."""
    pmids = "\n".join(f'<PMID Version="1">{pmid}</PMID>' for pmid in deleted)
    deletion = f"<DeleteCitation>\n{pmids}\n</DeleteCitation>\n" if deleted else ""
    return f"{PUBMED_HEAD}{''.join(records)}{deletion}</PubmedArticleSet>".encode()


def jats_article(
    pmcid: int | str = 7,
    *,
    title: str = "A title",
    abstract: str = "<abstract><p>An abstract.</p></abstract>",
    body: str = "<p>A body.</p>",
    license: str = '<license xlink:href="https://creativecommons.org/licenses/by/4.0/"/>',
    attributes: str = 'article-type="research-article" xml:lang="en"',
    meta: str = "",
    rest: str = "",
) -> bytes:
    """A file of PubMed Central; `meta` is put into article-meta, `rest` after the body."""
    body = f"<body>{body}</body>" if body else ""
    return f"""{JATS_HEAD}<article xmlns:xlink="http://www.w3.org/1999/xlink" \
xmlns:mml="http://www.w3.org/1998/Math/MathML" {attributes}>
<front><journal-meta><journal-title-group><journal-title>Journal of tests</journal-title>
</journal-title-group></journal-meta>
<article-meta><article-id pub-id-type="pmid">12</article-id>
<article-id pub-id-type="pmc">{pmcid}</article-id>
<article-id pub-id-type="doi">10.1000/{pmcid}</article-id>
<title-group><article-title>{title}</article-title></title-group>
<pub-date pub-type="pmc-release"><year>1999</year></pub-date>
<pub-date pub-type="ppub"><year>2011</year></pub-date>
<pub-date pub-type="epub"><day>27</day><month>10</month><year>2010</year></pub-date>
<permissions>{license}</permissions>{abstract}{meta}</article-meta></front>
{body}{rest}</article>
""".encode()
