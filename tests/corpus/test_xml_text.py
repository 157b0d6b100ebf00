"""xml_text.py: text in one line, and formulas."""

import pytest

from biomedlm_jax.corpus.markup import make_parser, parse_xml
from biomedlm_jax.corpus.xml_text import append_formula, append_superscript, collapse, inline_text


def element(text: str):
    return parse_xml(text.encode(), make_parser())


def test_text_in_one_line():
    assert collapse(" a \n\t b\r\nc  d\xa0 ") == "a b c d\xa0"
    assert inline_text(element("<a>x\n <b>y</b> z <!-- c -->w</a>"), {}) == "x y z w"
    upper = {"b": lambda part, parts: parts.append(part.text.upper())}
    assert inline_text(element("<a>x<n:b xmlns:n='u'>y</n:b>z</a>"), upper) == "xYz"


@pytest.mark.parametrize(
    ("math", "text"),
    [
        ("<mi>x</mi><mo>=</mo>\n <mn>2</mn>", "x=2"),
        ("<msup><mi>x</mi><mn>2</mn></msup>", "x^2"),
        ("<msup><mi>e</mi><mrow><mo>-</mo><mi>k</mi><mi>t</mi></mrow></msup>", "e^(-kt)"),
        ("<msub><mi>x</mi><mi>i</mi></msub>", "x_i"),
        ("<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>", "x_i^2"),
        ("<mfrac><mn>1</mn><mn>2</mn></mfrac>", "1/2"),
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mn>2</mn></mfrac>", "(a+b)/2"),
        ("<msqrt><mi>n</mi><mo>+</mo><mn>1</mn></msqrt>", "√(n+1)"),
        ("<mroot><mi>n</mi><mn>3</mn></mroot>", "n^(1/3)"),
        ("<mover><mi>x</mi><mo>¯</mo></mover>", "x¯"),
        ("<munderover><mo>∑</mo><mi>i</mi><mi>n</mi></munderover>", "∑_i^n"),
        ("<mfenced open='[' close=']'><mi>a</mi><mi>b</mi></mfenced>", "[a,b]"),
        ("<mtable><mtr><mtd>1</mtd><mtd>2</mtd></mtr><mtr><mtd>3</mtd></mtr></mtable>", "1 2; 3"),
        ("<semantics><mi>x</mi><annotation>\\hat x</annotation></semantics>", "x"),
    ],
)
def test_formulas_in_one_line(math, text):
    parts = []
    append_formula(element(f"<math>{math}</math>"), parts)
    assert parts == [text]


@pytest.mark.parametrize(
    ("before", "above", "text"), [("10", "9", "10^9"), ("10", "-3", "10^-3"), ("m", "2", "m2")]
)
def test_a_number_above_a_digit_is_an_exponent(before, above, text):
    parts = [before, ""]
    append_superscript(above, parts)
    assert "".join(parts) == text
