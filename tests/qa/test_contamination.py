"""contamination.py against a search for substrings, and the files of its report."""

import json
import random
import re
import unicodedata

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_jsonl
from biomedlm_jax.qa.contamination import (
    PARTS,
    Rule,
    contamination,
    contamination_markdown,
    read_set,
)
from biomedlm_jax.qa.exclusions import read_exclusions

RNG = random.Random(0)
VOCABULARY = ["Renal", "dose", "of", "the", "Drug", "mg/kg", "β-blocker", "trial", "é", "12.5"]
LENGTHS = {"words": 4, "characters": 20}


def prose(count: int) -> str:
    return " ".join(RNG.choices(VOCABULARY, k=count))


ROWS = [
    {
        "id": f"q{n}",
        "question": prose(RNG.choice((1, 6, 12))),
        "options": {"A": prose(1), "B": prose(RNG.choice((1, 5))), "C": "none"},
        "answer_idx": "ABC"[n % 3],
    }
    for n in range(30)
]
ABSTRACTS = {
    "sentence1": "Does it help?",
    "sentence2": f"{ROWS[1]['question']}. The drug was given to all of the patients.",
}
# Documents have parts of questions, with other punctuation and letters between the lines.
DOCUMENTS = [f"{prose(30)}. {row['question'].upper()}; {row['options']['B']}" for row in ROWS[::3]]
DOCUMENTS += [f"A title\n\n{ABSTRACTS['sentence2'].replace('given', 'GIVEN')}"]


def slow_set(text: str, unit: str) -> set[str]:
    """The n-grams of a text by their definition."""
    text = unicodedata.normalize("NFKC", text)
    if unit == "words":
        pieces = ["".join(c for c in w.casefold() if c.isalnum()) for w in text.split()]
        tokens = [piece for piece in pieces if piece]
    else:
        tokens = [c for c in text if c.isalnum()]
    n = LENGTHS[unit]
    return {"\0".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contamination")

    def write(name, rows):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("medqa/test.jsonl", ROWS)
    three = [{**ABSTRACTS, "id": f"p{n}", "label": ["yes", "no", "maybe"][n]} for n in range(3)]
    three[1]["sentence2"] = "No document here has this sentence or a part of it."
    write("pubmedqa/test.jsonl", three)
    rows = [{"text": text, "pmid": n} for n, text in enumerate(DOCUMENTS)]
    write("a.jsonl", rows[:6])
    write("b.jsonl", rows[6:])
    return folder


@pytest.fixture(scope="module")
def sets(folder):
    return [read_set(name, folder / name) for name in ("medqa", "pubmedqa")]


@pytest.fixture(scope="module")
def report(folder, sets):
    files = [folder / "a.jsonl", folder / "b.jsonl"]
    contamination(sets, files, folder / "out", lengths=LENGTHS)
    return folder / "out"


def test_each_question_is_counted_as_by_substrings(report, sets):
    states = []
    for unit in LENGTHS:
        documents = [slow_set(document, unit) for document in DOCUMENTS]
        corpus = set().union(*documents)
        for (_, row), source in zip(
            read_jsonl(report / "medqa-test.questions.jsonl"), ROWS, strict=True
        ):
            options = dict(source["options"])
            right = options.pop(source["answer_idx"])
            texts = {"question": [source["question"]], "answer": [right]}
            texts |= {"options": [*options.values()]}
            got = row["units"][unit]
            assert row["id"] == source["id"]
            every = set()
            for part, ones in texts.items():
                # Repeated n-grams of one text are rare enough here to be told from their set.
                grams = [slow_set(text, unit) for text in ones]
                every |= set().union(*grams)
                counts = got["parts"][part]
                assert (counts["matched"] > 0) == any(one & corpus for one in grams)
                assert (counts["ngrams"] > 0) == any(grams)
                assert counts["matched"] <= counts["ngrams"]
                if all(one <= corpus for one in grams):
                    assert counts["matched"] == counts["ngrams"]
            hit, known = bool(every & corpus), bool(every)
            expected = "contaminated" if hit else "clean" if known else "too_short"
            assert got["state"] == expected
            states.append(expected)
            assert got["documents"] == sum(bool(every & one) for one in documents)
            assert len(got["examples"]) == min(3, got["documents"])
            for example in got["examples"]:
                there = documents[int(example["document"]["pmid"])]
                assert slow_set(example["text"], unit)
                assert slow_set(example["text"], unit) <= there
                assert re.search(r"[ab]\.jsonl:\d+$", example["place"])
    assert {*states} == {"contaminated", "clean", "too_short"}


def test_the_report_states_what_is_so_by_construction(report, sets):
    text = (report / "report.md").read_text()
    assert "pubmedqa: each context is an abstract of PubMed" in text
    assert "- medqa:" not in text
    content = json.loads((report / "report.json").read_text())
    medqa, pubmedqa = content["sets"]
    assert pubmedqa["units"]["words"]["contaminated"] == 2
    assert pubmedqa["units"]["words"]["parts"]["options"]["questions"] == 0  # the classes
    for one, of in zip(content["sets"], sets, strict=True):
        for unit in LENGTHS:
            states = one["units"][unit]
            assert (
                sum(states[s] for s in ("contaminated", "clean", "too_short")) == one["questions"]
            )
            name = f"{of.task.name}-test.exclude-{unit}.json"
            exclusions = read_exclusions(report / name, of.questions)
            assert len(exclusions.ids) == states["contaminated"]
            assert f"of the n-grams of {LENGTHS[unit]} {unit} of any part" in exclusions.rule
    assert content["corpus"]["documents"] == len(DOCUMENTS)
    assert [len(one["sha256"]) for one in content["corpus"]["inputs"]] == [64, 64]
    assert medqa["hash"] != pubmedqa["hash"]
    assert not (report / "ngrams").exists()


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_report(folder, sets, report):
    files = [folder / "a.jsonl", folder / "b.jsonl"]
    contamination(sets, files, folder / "two", lengths=LENGTHS, workers=2)
    names = sorted(one.name for one in report.iterdir())
    assert names == sorted(one.name for one in (folder / "two").iterdir())
    for name in names:
        assert (report / name).read_bytes() == (folder / "two" / name).read_bytes()


def test_the_rule():
    def parts(**matched):
        return {part: {"ngrams": 10, "matched": n} for part, n in matched.items()}

    assert Rule().state(parts(question=0, options=1)) == "contaminated"
    assert Rule(("question",)).state(parts(question=0, options=1)) == "clean"
    assert Rule(least=0.3).state(parts(question=2, options=3)) == "contaminated"
    assert Rule(least=0.3).state(parts(question=2, context=2)) == "clean"
    assert Rule(("context",)).state(parts(question=5)) == "too_short"
    for bad in ({"parts": ("title",)}, {"parts": ()}, {"least": 1.5}, {"least": float("nan")}):
        with pytest.raises(InputError, match="got "):
            Rule(**bad)


def test_bad_input_leaves_nothing(folder, sets, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        contamination(sets, [tmp_path / "bad.jsonl"], tmp_path / "out")
    with pytest.raises(InputError, match="the same questions"):
        contamination([sets[0], sets[0]], [folder / "a.jsonl"], tmp_path / "out")
    with pytest.raises(InputError, match="at least one set"):
        contamination([], [folder / "a.jsonl"], tmp_path / "out")
    with pytest.raises(InputError, match="workers=0"):
        contamination(sets, [folder / "a.jsonl"], tmp_path / "out", workers=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        contamination(sets, [folder / "a.jsonl"], tmp_path / "mine", overwrite=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bad.jsonl", "mine"]
    assert {*PARTS} >= {"question", "context"}


def test_sets_of_one_name_have_their_paths_in_the_table(report):
    content = json.loads((report / "report.json").read_text())
    first, other = content["sets"]
    text = contamination_markdown({**content, "sets": [first, {**first, "path": "b|c"}, other]})
    assert f"| medqa, test ({first['path']}) | 4 words |" in text
    assert r"| medqa, test (b\|c) | 4 words |" in text
    assert "| pubmedqa, test | 4 words |" in text
