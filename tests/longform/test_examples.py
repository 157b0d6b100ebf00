import gzip
import json

import pytest

from biomedlm_jax.longform.examples import read_examples, split


def test_jsonl_and_pairs_of_files_hold_the_same(tmp_path):
    pairs = [("what is x?", "a thing"), ("why\u2028y?", "be\u0085cause")]
    records = [{"q": s, "a": t, "about": t} for s, t in pairs]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (tmp_path / "dev.source").write_text("".join(s + "\n" for s, _ in pairs))
    (tmp_path / "dev.target").write_text("".join(t + "\n" for _, t in pairs))
    (tmp_path / "dev.jsonl").write_text(lines)
    with gzip.open(tmp_path / "dev.jsonl.gz", "wt") as file:
        file.write(lines + "\n")
    for path in ("dev", "dev.jsonl", "dev.jsonl.gz"):
        found = read_examples(tmp_path / path, source="q", target="a")
        assert [(e.source, e.target, e.group) for e in found] == [(s, t, s) for s, t in pairs]
    grouped = read_examples(tmp_path / "dev.jsonl", source="q", target="a", group="about")
    assert [e.group for e in grouped] == ["a thing", "be\u0085cause"]


def test_a_split_keeps_groups_together_and_is_always_the_same(tmp_path):
    records = [{"source": f"q{i}", "target": "a", "g": f"g{i % 50}"} for i in range(400)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    examples = read_examples(tmp_path / "x.jsonl", group="g")
    train, dev = split(examples, dev_fraction=0.2)
    assert not {e.group for e in train} & {e.group for e in dev}
    assert len(train) + len(dev) == 400
    assert 20 <= len(dev) <= 160
    assert split(examples[::-1], dev_fraction=0.2)[1] == dev[::-1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"source": "x"}\n', "line 1: KeyError"),
        ("a.jsonl", '{"source": "x", "target": 3}\n', "must be texts"),
        ("a.jsonl", "nonsense\n", "line 1"),
        ("a.jsonl", '{"source": " ", "target": "x"}\n', "no example"),
    ],
)
def test_lines_that_cannot_be(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_examples(tmp_path / name)


def test_files_that_do_not_match_or_are_not_there(tmp_path):
    (tmp_path / "t.source").write_text("a\nb\n")
    (tmp_path / "t.target").write_text("a\n")
    with pytest.raises(ValueError, match=r"has 2 lines and .* 1"):
        read_examples(tmp_path / "t")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.source"):
        read_examples(tmp_path / "nowhere")
    (tmp_path / "one.jsonl").write_text('{"source": "x", "target": "y"}\n')
    with pytest.raises(ValueError, match="both need some"):
        split(read_examples(tmp_path / "one.jsonl"), dev_fraction=0.5)
