import gzip
import json
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers.processors import TemplateProcessing

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.config import PairSettings
from biomedlm_jax.finetuning.pairs import (
    ADDED_TOKENS,
    Pair,
    read_pairs,
    remarks,
    split,
    text_prompts,
    train_and_dev,
)
from biomedlm_jax.qa.packing import Prompt

TEXTS = ["the kinase binds the receptor", "a trial of the drug", "renal tissue was examined"]


def settings(**changes):
    values = {
        "train": "x", "dev": "", "source_field": "source", "target_field": "target",
        "group_field": "", "dev_fraction": 0.5, "source_tokens": 4, "target_tokens": 3,
        "row_tokens": 32,
    }  # fmt: skip
    return PairSettings(**{**values, **changes})


def test_jsonl_and_pairs_of_files_hold_the_same(tmp_path):
    pairs = [("what is x?", "a thing"), ("why\u2028y?", "be\u0085cause")]
    records = [{"q": s, "a": t, "about": t} for s, t in pairs]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    mark = "\ufeff"  # of the file, as some editors write it
    (tmp_path / "dev.source").write_text(mark + "".join(s + "\n" for s, _ in pairs))
    (tmp_path / "dev.target").write_text("".join(t + "\n" for _, t in pairs))
    (tmp_path / "dev.jsonl").write_text(lines)
    with gzip.open(tmp_path / "dev.jsonl.gz", "wt") as file:
        file.write(lines + "\n")
    for path in ("dev", "dev.jsonl", "dev.jsonl.gz"):
        assert read_pairs(tmp_path / path, "q", "a") == [Pair(s, t, s) for s, t in pairs]
    grouped = read_pairs(tmp_path / "dev.jsonl", "q", "a", "about")
    assert [pair.group for pair in grouped] == ["a thing", "be\u0085cause"]


def test_arrays_and_parquet_are_read_and_fields_are_joined(tmp_path):
    rows = [{"instruction": "Explain.", "input": i, "output": "o"} for i in ("the text", "")]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.parquet"):
        pairs = read_pairs(tmp_path / name, "instruction, input", "output")
        assert [pair.source for pair in pairs] == ["Explain.\n\nthe text", "Explain."]
        assert [pair.target for pair in pairs] == ["o", "o"]
    with pytest.raises(ValueError, match=r"a\.json:\d: expected the texts input,id, output"):
        read_pairs(tmp_path / "a.json", "input,id", "output")


def test_a_split_keeps_groups_together_and_is_always_the_same(tmp_path):
    records = [{"source": f"q{i}", "target": "a", "g": f"g{i % 50}"} for i in range(400)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pairs = read_pairs(tmp_path / "x.jsonl", group="g")
    train, dev = split(pairs, dev_fraction=0.2)
    assert not {pair.group for pair in train} & {pair.group for pair in dev}
    assert len(train) + len(dev) == 400
    assert 20 <= len(dev) <= 160
    assert split(pairs[::-1], dev_fraction=0.2)[1] == dev[::-1]
    file = str(tmp_path / "x.jsonl")
    assert train_and_dev(settings(train=file, group_field="g", dev_fraction=0.2)) == (train, dev)
    other = shutil.copy(file, tmp_path / "y.jsonl")
    assert train_and_dev(settings(train=file, dev=str(other)))[1] == read_pairs(file)
    (tmp_path / "link.jsonl").symlink_to(file)
    for same in (file, str(tmp_path / "link.jsonl")):
        with pytest.raises(ValueError, match=r"x\.jsonl as both data\.train and data\.dev; give"):
            train_and_dev(settings(train=file, dev=same))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"source": "x"}\n',
            "a.jsonl:1: expected the texts source, target, got the fields source",
        ),
        ('{"source": "x", "target": 3}\n', "expected the texts"),
        ("nonsense\n", "a.jsonl:1"),
        ('{"source": " ", "target": "x"}\n', "no pair with both"),
        ('{"source": "a\\u0000", "target": "x"}\n', "NUL character in pair 1; expected UTF-8"),
    ],
)
def test_bad_lines(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "a.jsonl")


def test_pairs_with_an_empty_text_are_counted_with_their_reason(tmp_path):
    records = [{"source": s, "target": t} for s, t in (("a", "b"), (" ", "b"), ("", ""), ("c", ""))]
    train, dev = str(tmp_path / "train.jsonl"), str(tmp_path / "dev.jsonl")
    for path, rows in ((train, records), (dev, records[:2])):
        (tmp_path / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    left_out = Counter()
    sides = train_and_dev(settings(train=train, dev=dev), left_out)
    assert [len(side) for side in sides] == [1, 1]
    reasons = {f"{train}: empty source": 2, f"{train}: empty target": 1, f"{dev}: empty source": 1}
    assert left_out == reasons


def test_files_that_do_not_match_or_are_not_there(tmp_path):
    (tmp_path / "t.source").write_text("a\nb\n")
    (tmp_path / "t.target").write_text("a\n")
    with pytest.raises(ValueError, match=r"has 2 lines and .* 1"):
        read_pairs(tmp_path / "t")
    with pytest.raises(InputError, match=r"nowhere\.source"):
        read_pairs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="both need at least one"):
        split([Pair("x", "y", "x")], dev_fraction=0.5)


def test_a_prompt_is_source_separator_and_a_branch_of_target_and_end():
    tokenizer = train_tokenizer(iter(TEXTS * 9), vocab_size=280)
    assert tokenizer.add_special_tokens(list(ADDED_TOKENS)) == 2
    pairs = [Pair(TEXTS[0] * 3, TEXTS[1] * 3, ""), Pair("the", "a", "")]
    (long, short), cut = text_prompts(tokenizer, pairs, settings(), end_id=279)
    source, target = (tokenizer.encode(text * 3).ids for text in TEXTS[:2])
    assert long == Prompt([*source[:4], 281], [[*target[:3], 279]], 0)
    assert short.question == 1
    assert short.branches[0][-1] == 279
    assert cut == 1
    # What the tokenizer puts before a text begins the source, and what it puts after is left out.
    template = {"single": "E $A E", "special_tokens": [("E", 279)]}
    tokenizer.post_processor = TemplateProcessing(**template)
    (long, short), cut = text_prompts(tokenizer, pairs, settings(), end_id=279)
    assert long == Prompt([279, *source[:3], 281], [[*target[:3], 279]], 0)
    assert short.prefix == [*tokenizer.encode("the").ids[:-1], 281]
    assert cut == 1


def test_pairs_that_spell_a_special_token_are_plain_text_and_counted():
    tokenizer = train_tokenizer(iter(TEXTS * 9), vocab_size=280)
    tokenizer.add_special_tokens(list(ADDED_TOKENS))
    odd = Pair("a <|startoftext|> b", "<|endoftext|> c", "")
    ((prefix, (branch,), *_),), _ = text_prompts(
        tokenizer, [odd], settings(source_tokens=40, target_tokens=40, row_tokens=99), end_id=279
    )
    assert (prefix.count(281), prefix[-1], branch.count(279), branch[-1]) == (1, 281, 1, 279)
    assert tokenizer.decode(prefix[:-1]) == odd.source
    plain = Pair("a  b", "c", "")
    assert remarks(tokenizer, [plain], [Pair("d", "e", "")]) == ""
    assert remarks(tokenizer, [plain, odd], [Pair("a b ", "c", "")]) == (
        "; 1 of dev that are also in train; 1 spelling a special token, encoded as text"
    )
