import gzip

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.conll import read_sentences
from biomedlm_jax.finetuning.spans import Entity


def sentences(tmp_path, text, name="a.tsv", **options):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    read = list(read_sentences(path, **options))
    for one in read:  # offsets are proven
        for token, start in zip(one.tokens, one.starts, strict=True):
            assert one.text[start : start + len(token)] == token
    return read


def test_tokens_are_joined_by_one_space(tmp_path):
    text = "BRCA1\tB-Gene\nmutations\tO\nin\tO\nbreast\tB-Disease\ncancer\tI-Disease\n.\tO\n"
    (one,) = sentences(tmp_path, text)
    assert one.text == "BRCA1 mutations in breast cancer ."
    assert one.entities == [Entity("Gene", 0, 0), Entity("Disease", 3, 4)]
    assert [one.text[slice(*one.span(e))] for e in one.entities] == ["BRCA1", "breast cancer"]
    assert (one.line, one.document, one.offset) == (1, 0, None)


def test_documents_blank_lines_and_columns(tmp_path):
    text = (
        "\ufeff-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\r\n \t\n\n"
        "-DOCSTART- -X- O O\nGerman JJ I-NP I-MISC\nUK NNP I-NP B-MISC\n###MEDLINE:1\n\nx a b O"
    )
    read = sentences(tmp_path, text, scheme="iob1")
    assert [(one.line, one.document, one.text) for one in read] == [
        (3, 1, "EU rejects"),
        (8, 2, "German UK"),
        (12, 3, "x"),
    ]
    assert read[1].entities == [Entity("MISC", 0, 0), Entity("MISC", 1, 1)]
    named = "O 1 x\nB-Y 2 y\n"
    (one,) = sentences(tmp_path, named, columns=["tag", "place", "token"])
    assert (one.text, one.entities) == ("x y", [Entity("Y", 1, 1)])


def test_only_spaces_and_tabs_separate_columns(tmp_path):
    (one,) = sentences(tmp_path, "5\u00a0mg B-Dose\nof  O\n")
    assert one.tokens == ["5\u00a0mg", "of"]
    (one,) = sentences(tmp_path, "in vitro\tO\nx\u2028y\tO\n")
    assert one.tokens == ["in vitro", "x\u2028y"]


def test_offsets_in_the_file(tmp_path):
    text = "IL\t10\t12\tB-Gene\n-\t12\t13\tI-Gene\n2\t13\t14\tI-Gene\nµ\U0001d6fc\t16\t18\tO\n"
    columns = ["token", "start", "end", "tag"]
    (one,) = sentences(tmp_path, text, columns=columns)
    assert (one.text, one.offset) == ("IL-2  µ\U0001d6fc", 10)
    assert one.text[slice(*one.span(one.entities[0]))] == "IL-2"
    for bad, message in (
        ("µ\t10\t12\tO\n", "a.tsv:1: got start 10 and end 12 of 'µ', which has 1 characters"),
        ("a\t0\t1\tO\nb\t0\t1\tO\n", "a.tsv:2: got start 0, where the token before ends at 1"),
        ("a\t0\t1\tO\nb\t5000\t5001\tO\n", "a.tsv:2: got start 5000"),
        ("a\t-1\t0\tO\n", "a.tsv:1: got the offset '-1'"),
    ):
        with pytest.raises(InputError, match=message):
            sentences(tmp_path, bad, columns=columns)


def test_tags_without_a_type(tmp_path):
    (one,) = sentences(tmp_path, "a B\nb I\nc O\n", entity_type="Disease")
    assert one.entities == [Entity("Disease", 0, 1)]
    with pytest.raises(InputError, match=r"a.tsv:1: got the tag B without a type; fix: pass"):
        sentences(tmp_path, "a B\n")
    with pytest.raises(InputError, match="got the tag 'B-X' and --entity_type=Y; expected B, I or"):
        sentences(tmp_path, "a B-X\n", entity_type="Y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", "a.tsv:2: expected 2 columns, got 1: 'b'"),
        ("a\n", "a.tsv:1: expected 2 columns, got 1"),
        ("a O\nb x O\n", "a.tsv:2: expected 2 columns, got 3"),
        ("a O\n\n\tO\n", "a.tsv:3: got an empty token"),
        ("a\0 O\n", "a.tsv:1: got a NUL character"),
        ("a O\n\nb O\nc I-X\n", "a.tsv:4: got I-X after O; iob2 begins .*; fix: name the file's"),
        ("a O\nb\tLABEL\n", "a.tsv:2: got the tag 'LABEL'"),
        (b"a O\n\xff O\n", r"a.tsv:2: expected UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as raised:
        sentences(tmp_path, text)
    assert len(str(raised.value).splitlines()) == 1


def test_bad_columns_and_compressed_files(tmp_path):
    for columns in (["token"], ["token", "tag", "tag"], ["token", "tag", "end"]):
        with pytest.raises(InputError, match="got the column"):
            sentences(tmp_path, "a O\n", columns=columns)
    packed = gzip.compress(b"a O\n\nb O\n")
    assert [s.text for s in sentences(tmp_path, packed, name="a.conll.gz")] == ["a", "b"]
    assert sentences(tmp_path, "\n\n-DOCSTART- O\n\n") == []
