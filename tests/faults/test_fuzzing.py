"""Damaged and random input for every reader and every config.

A reader returns what was written, or raises InputError: one printable line that names the file. It
never raises another exception, and never hangs. FUZZ_EXAMPLES=N makes N examples of each reader,
at random: `FUZZ_EXAMPLES=2000 pytest -n0 tests/faults/test_fuzzing.py`.
"""

import bz2
import contextlib
import copy
import dataclasses
import functools
import gzip
import io
import json
import lzma
import math
import os
import random
import re
import runpy
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from safetensors.numpy import load as load_tensors

from biomedlm_jax.corpus import manifest
from biomedlm_jax.corpus.documents import Skipped, read_documents
from biomedlm_jax.corpus.tokenizer import (
    load_tokenizer,
    prefix_ids,
    save_tokenizer,
    special_id,
    tokenizer_hash,
    train_tokenizer,
)
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json, write_jsonl
from biomedlm_jax.finetuning import pairs
from biomedlm_jax.finetuning.config import PairSettings, QuestionSettings, TextSettings
from biomedlm_jax.generation import prompt_files
from biomedlm_jax.generation.options import make_options, model_options
from biomedlm_jax.interop import directories, finetuned, modelcard
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.interop.shards import write_tensors
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.interop.weights import check_tensors, tensor_shapes
from biomedlm_jax.model.families import (
    abstract_model,
    config_from_hf,
    config_to_hf,
    make_config,
    make_model,
)
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.qa import identity, report, statistics
from biomedlm_jax.qa.journal import Journal
from biomedlm_jax.qa.prompts import encode_plain
from biomedlm_jax.qa.questions import Skipped as SkippedQuestions
from biomedlm_jax.qa.questions import questions_hash
from biomedlm_jax.qa.splits import note_shared_questions, read_questions
from biomedlm_jax.qa.tasks import find_task
from biomedlm_jax.settings import read_settings
from biomedlm_jax.streams import read_blocks, read_lines
from biomedlm_jax.training.pretrain import PretrainSettings

ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
SECONDS = 10  # for one input of a few kilobytes
TEXTS = ["Aspirin inhibits COX-1.", "Ünïcode \u2028 漢 text.", 'A "quoted" \\ text\twith tabs.']
NUMBERS = (0, -1, 1, 3, 2**31, 2**32 + 1, -(2**63), 2**63, 10**30, 10**400)
NUMBERS += (1.5, -0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324)
STRINGS = ("", " ", "x", "\0", "\ud800", "a\nb", "\x1b[31m", "\u2028", "../x", "/etc/passwd")
STRINGS += ("10", "auto", "<|endoftext|>", "x" * 5000)
NESTED: Any = functools.reduce(lambda inner, _: [inner], range(200), [])
VALUES = (None, True, False, *NUMBERS, *STRINGS, [], {}, [[]], [None], ["x"], [1, "x"], {"x": 1})
VALUES += ({"": None}, [["x", 1]], NESTED)
PIECES = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800", b'"', b"{", b"}", b"[", b"]", b",", b"\n")
PIECES += (b"\r", b"\r\n", "\u2028".encode(), b"9" * 5000, b"[" * 100_000, b'{"a":' * 50_000)
PIECES += (b"1e999", b"NaN", b"-Infinity", b"null", b"\x1b[31m", b" ", b"\t", b"'", b"\\")

quick = functools.partial(
    settings,
    database=None,
    derandomize=not EXAMPLES,
    deadline=None,  # `limited` stops what hangs
    suppress_health_check=list(HealthCheck),
)


def examples(ci: int) -> settings:
    """Settings with `ci` examples, or FUZZ_EXAMPLES."""
    return quick(max_examples=EXAMPLES or ci)


randoms = st.randoms(use_true_random=False)


# Damage


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """One change of a file that has no structure."""
    place, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 7, 100))
    kind = rng.randrange(6)
    if kind == 0 and data:
        place = min(place, len(data) - 1)
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + data[place + size :]
    if kind == 3:
        return data[: place + size] + data[place:]
    if kind == 4 and (numbers := [*re.finditer(rb"-?\d+", data)]):
        number = rng.choice(numbers)
        return data[: number.start()] + str(rng.choice(NUMBERS)).encode() + data[number.end() :]
    return data[:place] + rng.choice(PIECES) + data[place:]


def damaged_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with one part replaced, removed, renamed or repeated."""
    value, parents = copy.deepcopy(value), []

    def collect(part: Any) -> None:
        keys = (
            part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        )
        for key in list(keys)[:200]:
            parents.append((part, key))
            collect(part[key])

    collect(value)
    if not parents or rng.randrange(30) == 0:
        return rng.choice(VALUES)
    parent, key = rng.choice(parents)
    kind = rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(STRINGS)] = parent.pop(key)
    elif kind == 2:
        other, name = rng.choice(parents)
        parent[key] = copy.deepcopy(other[name]) if name in other or isinstance(other, list) else 0
    elif kind == 3 and isinstance(parent, dict):
        parent[rng.choice(STRINGS)] = rng.choice(VALUES)
    elif kind == 4 and isinstance(parent, list):
        parent.insert(key, rng.choice(VALUES))
    elif kind == 5 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = rng.choice(NUMBERS)
    else:
        parent[key] = rng.choice(VALUES)
    return value


def damaged_json(rng: random.Random, data: bytes) -> bytes:
    """One or two changes of a JSON text, of its values or of its bytes."""
    if rng.randrange(4) == 0:
        return damaged_bytes(rng, data)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        value = damaged_value(rng, value)
    text = json.dumps(value)
    if rng.randrange(8) == 0 and (keys := [*re.finditer(r'"[^"\\]*": ', text)]):  # a key twice
        key = rng.choice(keys)
        text = (
            text[: key.start()]
            + f"{key[0]}{json.dumps(rng.choice(VALUES))}, "
            + text[key.start() :]
        )
    return text.encode()


def damaged_lines(rng: random.Random, data: bytes) -> bytes:
    """A damaged line of JSON lines, or another order of them."""
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    if rng.randrange(6) == 0:
        lines.insert(number, rng.choice(lines))
    elif lines[number]:
        lines[number] = damaged_json(rng, lines[number])
    return b"\n".join(lines)


def damaged_tensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header or bytes are damaged."""
    size = int.from_bytes(data[:8], "little")
    kind = rng.randrange(5)
    if kind == 0:
        return damaged_bytes(rng, data)
    if kind == 1:
        length = rng.choice((0, 1, max(size, 1) - 1, min(size, 2**63) + 1, 2**31, 2**63, 2**64 - 1))
        return length.to_bytes(8, "little") + data[8:]
    header = damaged_json(rng, data[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


DAMAGE = {".json": damaged_json, ".jsonl": damaged_lines, ".safetensors": damaged_tensors}


# Readers


@contextlib.contextmanager
def limited():
    """Raise after SECONDS: what takes longer counts as a hang."""

    def stop(number, frame):
        raise AssertionError(f"it hangs: {SECONDS} s are over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(read: Callable[[], Any], *names: str) -> Any:
    """What is read, or None after an InputError of one printable line that has one of `names`."""
    try:
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except InputError as error:
        message = str(error)
        assert message.isprintable(), f"not a line: {message!r}"
        assert len(message) < 5000, f"too long: {message[:300]!r}"
        assert any(name in message for name in names), f"names no file: {message!r}"
        return None


@dataclasses.dataclass(frozen=True)
class Reader:
    """What reads a directory, and a valid one of them."""

    files: Mapping[str, bytes]
    read: Callable[[Path], Any]
    damaged: tuple[str, ...] = ()  # the files to damage; all by default
    exact: bool = False  # no damage may go unnoticed

    def attempt(self, rng: random.Random, folder: Path) -> Any:
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        name = rng.choice(self.damaged or sorted(self.files))
        damage = DAMAGE.get(Path(name).suffix, damaged_bytes)
        content = self.files[name]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            with contextlib.suppress(ValueError, RecursionError):  # it is no JSON any more
                content = damage(rng, content)
        (folder / name).write_bytes(content)
        return outcome(lambda: self.read(folder), str(folder), name, "data.dev_fraction")


def lines(rows: list) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def compress(data: bytes, suffix: str) -> bytes:
    compressors = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    }
    return compressors[suffix](data)


def documents(name: str, **options: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        skipped = Skipped()
        texts = [one.text for one in read_documents([folder / name], skipped=skipped, **options)]
        assert all(text.strip() and text.encode() for text in texts)
        assert str(skipped).isprintable()
        return texts

    return read


ROWS = [{"text": text, "meta": {"pile_set_name": "PubMed Central", "n": 1}} for text in TEXTS]
ARRAY = json.dumps(ROWS).encode()
PAIRS = [{"source": f"{text} {n}", "target": f"{text} target"} for n, text in enumerate(TEXTS * 4)]
PROMPTS = [{"prompt": text, "id": number} for number, text in enumerate(TEXTS)]
QUESTIONS: dict[str, Any] = {
    "questions": [
        {"id": f"q{n}", "question": text, "options": {"A": "yes", "B": "no"}, "answer_idx": "A"}
        for n, text in enumerate(TEXTS)
    ],
    "choices": [{"question": t, "choices": ["a", "b", "c"], "answer": 1} for t in TEXTS],
    "bigbio": [
        {"question": t, "choices": ["a", "b"], "answer": ["b"], "context": "c"} for t in TEXTS
    ],
    "bigbio_classes": [
        {"question": t, "choices": ["yes", "no"], "answer": [("yes", "no")[n % 2]], "context": "c"}
        for n, t in enumerate(TEXTS)
    ],
    "sentences": [
        {"sentence1": t, "sentence2": "c", "label": ("yes", "no")[n % 2]}
        for n, t in enumerate(TEXTS)
    ],
    "endings": [
        {"sent1": t, "sent2": "It", "ending0": "a", "ending1": "b", "label": 0} for t in TEXTS
    ],
    "medmcqa": [
        {
            "question": t,
            "opa": "a",
            "opb": "b",
            "opc": "c",
            "opd": "d",
            "cop": n % 4 + 1,
            "exp": None,
        }
        for n, t in enumerate(TEXTS * 2)
    ],
    "mmlu": b'"What, is it?",a,b,c,d,A\nWhich?,a,b,c,"d ""x""",B\n',
    "pubmedqa_set": {
        str(n): {"QUESTION": t, "CONTEXTS": ["c", "d"], "final_decision": ("yes", "no")[n % 2]}
        for n, t in enumerate(TEXTS)
    },
    "pubmedqa_rows": [
        {"pubid": n, "question": f"q{n}", "context": {"contexts": ["c"]}, "final_decision": answer}
        for n, answer in enumerate(["yes"] * 552 + ["no"] * 338 + ["maybe"] * 110)
    ],
    "bioasq": {
        "questions": [
            {
                "id": f"b{n}",
                "body": t,
                "type": "yesno",
                "exact_answer": ("Yes", "no")[n % 2],
                "snippets": [{"text": "s"}],
            }
            for n, t in enumerate(TEXTS)
        ]
    },
    "blurb": b"1\tIs it?\tcontext\tyes\n2\tOr not?\tcontext\tno\n",
}
SKIPPED = ("questions", "endings", "medmcqa", "pubmedqa_set", "bioasq", "mmlu")


def question_reader(format: str, *, task: str = "", name: str = "", **options: Any) -> Reader:
    rows = QUESTIONS[format]
    suffix = {"mmlu": ".csv", "blurb": ".tsv", "pubmedqa_set": ".json", "bioasq": ".json"}
    name = name or f"dev{suffix.get(format, '.jsonl')}"
    content = lines(rows) if name.endswith(".jsonl") else rows
    content = content if isinstance(content, bytes) else json.dumps(content).encode()

    def read(folder: Path) -> Any:
        one = find_task(task or f"jsonl:{folder / name}", format="" if task else format)
        skipped, path = SkippedQuestions(), folder / name if task else None
        questions = read_questions(one, path, split="dev", skipped=skipped, **options)
        assert str(skipped).isprintable()
        for question in questions:
            text = [question.question, question.context, *question.options, question.subject]
            assert all(isinstance(part, str) and "\0" not in part for part in text)
            assert "".join(text).encode() is not None
            json.dumps(question.id)
        return questions_hash(questions), identity.question_hash(questions[0])

    return Reader({name: content}, read)


def read_splits(folder: Path) -> Any:
    one, skipped = find_task(f"jsonl:{folder}"), SkippedQuestions()
    questions = read_questions(one, split="dev")
    note_shared_questions(one, None, questions, split="dev", skipped=skipped)
    assert str(skipped).isprintable()
    return questions_hash(questions)


TWO_SPLITS = {
    "train.jsonl": lines(QUESTIONS["questions"][:2]),
    "dev.jsonl": lines(QUESTIONS["questions"][1:]),
}


def read_text_pairs(folder: Path, name: str, tokenizer: Any) -> Any:
    options = {"train": str(folder / name), "dev": "", "source_field": "source"}
    numbers = {"source_tokens": 9, "target_tokens": 9, "row_tokens": 20, "dev_fraction": 0.3}
    config = PairSettings(target_field="target", group_field="", **options, **numbers)
    both = pairs.train_and_dev(config)
    for pair in (*both[0], *both[1]):
        encode_plain(tokenizer, pair.source + pair.target)
    return both


def read_tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    ids = encode_plain(tokenizer, TEXTS[0])
    special_id(tokenizer, "eos_token")
    prefix_ids(tokenizer)
    tokenizer.decode(ids)
    digest = tokenizer_hash(tokenizer)
    out = folder.with_name("saved")
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.suppress(InputError):
        save_tokenizer(tokenizer, out)
        again = load_tokenizer(out)
        assert (tokenizer_hash(again), encode_plain(again, TEXTS[0])) == (digest, ids)
    return ids


def read_directory(folder: Path) -> Any:
    """All that is read of a run or a Hugging Face directory, without its weights."""
    for is_kind in (directories.is_run, directories.is_hugging_face):
        is_kind(folder)
    head = finetuned.read_head(folder)
    config = directories.model_config(folder)
    if head is None:
        directories.refuse_heads(folder)
    options, begin = model_options(config, folder)
    tokenizer = directories.read_tokenizer(folder, config)
    options.to_generation_config(config, tokenizer)
    record = directories.training_record(folder)
    identity.check_seeds([folder, folder])
    record = directories.training_record(folder)
    identity.used_in_training(folder, "medqa", "dev", [])
    if directories.is_run(folder):
        modelcard.training_facts(folder, step=1)
    finetuned.read_facts(folder)
    config_to_hf(config)
    json.dumps(record)
    return config, options, begin


def read_tensors(folder: Path) -> Any:
    config = GPT2Config(**TINY)
    files = TensorFiles(folder, config)
    check_tensors(files.shapes, abstract_model(config), where=str(folder))
    return {name: files.read(name).tobytes() for name in files.entries}


def read_results(folder: Path) -> Any:
    seeds = report.read_seeds(folder)
    report.read_provenance(folder)
    columns = [statistics.columns(items) for items in seeds]
    return [one.prediction_N.tolist() for one in columns]


def read_journal(folder: Path) -> Any:
    journal = Journal(folder, start=1, notify=lambda line: None)
    journal.begin([1], total=3)
    result = journal.read(0)
    return None if result is None else [part.tolist() for part in result]


def read_answers(folder: Path) -> Any:
    return prompt_files._kept_lines(folder / "out.jsonl", TEXTS, "s", "prompt")


def read_stream(folder: Path, name: str) -> bytes:
    data = b"".join(read_blocks(folder / name))
    assert data == b"".join(line for _, line in read_lines(folder / name))
    return data


TINY = {"vocab_size": 300, "context_length": 24, "layers": 2, "width": 16, "heads": 2}
DATA = b"".join(lines(ROWS) for _ in range(20))
ITEM = {"gold": 0, "prediction": 0, "scores": [-0.1, -2.0], "probabilities": [0.75, 0.25]}
ITEM |= {"options": ["a", "b"], "truncated": False, "content": "c", "group": None}
ITEMS = lines([{"id": f"q{n}", **ITEM} for n in range(3)])
GENERATION = {"eos_token_id": 279, "bos_token_id": 279, "do_sample": True, "temperature": 0.7}
GENERATION |= {"top_k": 5, "num_beams": 1, "max_new_tokens": 8, "bad_words_ids": [[1, 2]]}


@pytest.fixture(scope="session")
def valid(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """Directories that were written by the package, file by file."""
    root = tmp_path_factory.mktemp("valid")
    tokenizer = train_tokenizer(TEXTS * 20, vocab_size=280)
    config = GPT2Config(**{**TINY, "vocab_size": 280})
    model = jax.jit(lambda: make_model(config, key=jax.random.key(0)))()
    facts = {"facts": {"task": "medqa", "dev_accuracy": 0.5, "train_questions": "h", "steps": 3}}
    facts |= {"started_from": {"weights": "w", "path": "p"}, "training": {"seed": 1}, "task": {}}
    options = {"training_record": facts, "generation": GENERATION}
    export_hf(model, tokenizer, root / "whole", **options)
    export_hf(model, tokenizer, root / "parts", max_shard_size=20_000)
    finetuned.save_finetuned(root / "run", model, tokenizer, facts=facts["facts"])
    write_json(root / "run" / "run.json", {"recipe": "pretrain", **facts})
    write_json(root / "run" / "generation_config.json", options["generation"])
    head = finetuned.Head(kind="choice", task="medqa", row_format="keep_end", max_length=9)
    fields = {"model": config.to_json(), "head": head.to_json(), "facts": facts["facts"]}
    write_json(root / "headed" / "config.json", fields)
    journal = Journal(root / "journal", start=1)
    journal.begin([1], total=3)
    journal.write(0, (np.arange(6.0), np.arange(3)), size=3, new=True)
    entry = {**manifest.FORMAT, "length": 4, "vocab_size": 300, "eos_id": 299, "splits": {}}
    entry["fingerprint"] = manifest.fingerprint(entry)
    write_json(root / "rows" / "manifest.json", entry)
    return {
        folder.name: {
            str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file() and "checkpoints" not in file.parts
        }
        for folder in root.iterdir()
    }


@pytest.fixture(scope="session")
def readers(valid) -> dict[str, Reader]:
    """Every reader of the package, with a directory that it reads."""
    tokenizer_files = {
        name: content
        for name, content in valid["whole"].items()
        if "token" in name or name in ("vocab.json", "merges.txt")
    }
    table_files = {k: v for k, v in tokenizer_files.items() if k != "tokenizer.json"}
    table_files["added_tokens.json"] = b'{"<x>": 280}'
    decoded = {"content": "<x>", "lstrip": False, "special": True}
    config = {
        **json.loads(table_files["tokenizer_config.json"]),
        "added_tokens_decoder": {"280": decoded},
    }
    listed = {**tokenizer_files, "tokenizer_config.json": json.dumps(config).encode()}
    plain = {
        **tokenizer_files,
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
    }
    of_config = {k: v for k, v in valid["whole"].items() if not k.endswith(".safetensors")}
    tokenizer = train_tokenizer(TEXTS * 20, vocab_size=280)
    answer = {"index": 0, "prompt": TEXTS[0], "settings": "s"}
    tables = {name: table(rows) for name, rows in (("d", ROWS), ("p", PAIRS))}
    text_pairs = {"p.source": "\n".join(pair["source"] for pair in PAIRS).encode()}
    text_pairs["p.target"] = "\n".join(pair["target"] for pair in PAIRS).encode()
    result = {
        f"stream{suffix}": Reader(
            {f"d{suffix}": compress(DATA, suffix)},
            functools.partial(read_stream, name=f"d{suffix}"),
            exact=True,
        )
        for suffix in (".gz", ".zst", ".bz2", ".xz")
    }
    result |= {f"questions {name}": question_reader(name) for name in QUESTIONS}
    result |= {
        f"questions {name}, skip": question_reader(name, on_error="skip") for name in SKIPPED
    }
    result |= {
        "documents txt": Reader({"d.txt": TEXTS[1].encode()}, documents("d.txt")),
        "documents jsonl": Reader({"d.jsonl": lines(ROWS)}, documents("d.jsonl")),
        "documents skip": Reader({"d.jsonl": lines(ROWS)}, documents("d.jsonl", on_error="skip")),
        "documents json": Reader({"d.json": ARRAY}, documents("d.json")),
        "documents array, skip": Reader({"d.json": ARRAY}, documents("d.json", on_error="skip")),
        "documents indented": Reader(
            {"d.json": json.dumps(ROWS, indent=1).encode()}, documents("d.json")
        ),
        "documents subsets": Reader(
            {"d.jsonl": lines(ROWS)}, documents("d.jsonl", subsets=["PubMed Central"])
        ),
        "documents nested": Reader(
            {"d.jsonl": lines(ROWS)}, documents("d.jsonl", text_field="meta.pile_set_name,text")
        ),
        "documents limit": Reader(
            {"d.jsonl": lines(ROWS)}, documents("d.jsonl", max_document_bytes=99, on_error="skip")
        ),
        "documents parquet": Reader({"d.parquet": tables["d"]}, documents("d.parquet")),
        "documents parquet, skip": Reader(
            {"d.parquet": tables["d"]}, documents("d.parquet", on_error="skip")
        ),
        "documents gz": Reader({"d.jsonl.gz": gzip.compress(lines(ROWS))}, documents("d.jsonl.gz")),
        "prompts txt": Reader(
            {"p.txt": "\n".join(TEXTS).encode()},
            lambda folder: prompt_files.read_prompts(folder / "p.txt"),
        ),
        "prompts jsonl": Reader(
            {"p.jsonl": lines(PROMPTS)},
            lambda folder: [
                (encode_plain(tokenizer, text), json.dumps(identity).encode())
                for text, identity in prompt_files.read_prompts(folder / "p.jsonl")
            ],
        ),
        "question splits": Reader(TWO_SPLITS, read_splits),
        "pubmedqa": question_reader("pubmedqa_set", task="pubmedqa", name="dev_set.json"),
        "medmcqa": question_reader("medmcqa", task="medmcqa", name="dev.json"),
        "tokenizer": Reader(tokenizer_files, read_tokenizer),
        "tokenizer, listed": Reader(listed, read_tokenizer),
        "tokenizer, plain": Reader(plain, read_tokenizer),
        "tokenizer tables": Reader(table_files, read_tokenizer),
        "tokenizer.json": Reader(
            {"tokenizer.json": tokenizer_files["tokenizer.json"]},
            lambda folder: tokenizer_hash(load_tokenizer(folder / "tokenizer.json")),
        ),
        "hugging face": Reader(
            of_config,
            read_directory,
            ("config.json", "generation_config.json", "training.json"),
        ),
        "run": Reader(
            valid["run"], read_directory, ("config.json", "run.json", "generation_config.json")
        ),
        "head": Reader(valid["headed"], finetuned.read_head),
        "weights": Reader(
            valid["whole"], lambda folder: load(folder)[0], ("config.json", "model.safetensors")
        ),
        "results": Reader(
            {"items.jsonl": ITEMS, "items-2.jsonl": ITEMS, "report.json": b'{"provenance": {}}'},
            read_results,
        ),
        "journal": Reader(valid["journal"], read_journal),
        "answers": Reader({"out.jsonl": lines([answer])}, read_answers),
        "manifest": Reader(
            valid["rows"],
            lambda folder: manifest.check_tokens(
                manifest.read_manifest(folder), vocab_size=300, length=4
            ),
        ),
    }
    for name in ("pairs.jsonl", "pairs.json", "p.parquet", "p"):
        content = {
            "pairs.jsonl": {name: lines(PAIRS)},
            "pairs.json": {name: json.dumps(PAIRS).encode()},
            "p.parquet": {name: tables["p"]},
            "p": text_pairs,
        }[name]
        read = functools.partial(read_text_pairs, name=name, tokenizer=tokenizer)
        result[f"pairs {name}"] = Reader(content, read)
    index = ("model.safetensors.index.json", "model-00001-of-00003.safetensors")
    tensors = {k: v for k, v in valid["parts"].items() if ".safetensors" in k}

    def read_parts(folder: Path) -> Any:
        files = TensorFiles(folder, GPT2Config(**{**TINY, "vocab_size": 280}))
        return {name: files.read(name).tobytes() for name in files.entries}

    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    stored = {
        name: torch.from_numpy(tensor)
        for name, tensor in load_tensors(valid["whole"]["model.safetensors"]).items()
    }
    for name, options in (
        ("torch", {}),
        ("torch, legacy", {"_use_new_zipfile_serialization": False}),
    ):
        file = io.BytesIO()
        torch.save(stored, file, **options)
        result[name] = Reader({"pytorch_model.bin": file.getvalue()}, read_parts)
    result["tensors"] = Reader(tensors, read_parts, tuple(n for n in tensors if n in index))
    return result


NAMES = (
    *(f"stream{suffix}" for suffix in (".gz", ".zst", ".bz2", ".xz")),
    *(f"questions {name}" for name in QUESTIONS),
    *(
        f"questions {n}, skip"
        for n in ("questions", "endings", "medmcqa", "pubmedqa_set", "bioasq", "mmlu")
    ),
    *("documents txt", "documents jsonl", "documents skip", "documents json"),
    *("documents array, skip", "documents indented", "documents subsets", "documents nested"),
    *("documents limit", "documents parquet", "documents parquet, skip", "documents gz"),
    *("prompts txt", "prompts jsonl", "question splits", "pubmedqa", "medmcqa", "tokenizer"),
    *("tokenizer, listed", "tokenizer, plain", "tokenizer tables", "tokenizer.json"),
    *("hugging face", "run", "head", "weights", "results", "journal", "answers", "manifest"),
    *("pairs pairs.jsonl", "pairs pairs.json", "pairs p.parquet", "pairs p", "tensors"),
    *("torch", "torch, legacy"),
)


def test_every_reader_is_named(readers):
    assert sorted(NAMES) == sorted(readers)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file(name, readers, tmp_path):
    """A reader raises InputError, or reads; a format with a checksum reads what was written."""
    reader, folder = readers[name], tmp_path / "input"
    rng = random.Random(0)
    intact = dataclasses.replace(reader, damaged=("no",), files={**reader.files, "no": b""})
    truth = intact.attempt(rng, folder)
    assert truth is not None or name == "manifest", "the undamaged input is read"

    @examples(60)
    @given(randoms)
    def damage(rng):
        result = reader.attempt(rng, folder)
        assert not reader.exact or result in (None, truth)

    damage()


# Configs


def get_config(recipe: str, variant: str) -> ConfigDict:
    return runpy.run_path(str(ROOT / "configs" / f"{recipe}.py"))["get_config"](variant)


CONFIGS = {
    "pretrain": (PretrainSettings, get_config("pretrain", "tiny")),
    "questions": (QuestionSettings, get_config("finetune", "medqa")),
    "text": (TextSettings, get_config("finetune", "meqsum")),
}
CONFIGS["text"][1].data.train = "pairs.jsonl"


def random_value(rng: random.Random, value: Any) -> Any:
    """A value of any type, tuples and groups too, often of the type of `value`."""
    if isinstance(value, bool) or rng.randrange(3) == 0:
        value = rng.choice((*VALUES, (), ("x",), (1, math.nan), (None,), b"x", print, ConfigDict()))
        return tuple(value) if isinstance(value, list) and rng.randrange(2) else value
    if isinstance(value, int | float):
        return rng.choice(NUMBERS)
    return rng.choice(STRINGS) if isinstance(value, str) else rng.choice(VALUES)


def plain(value: Any) -> Any:
    """A value that compares by content: NaN as text, groups in order."""
    if isinstance(value, dict | ConfigDict):
        return {str(k): plain(value[k]) for k in sorted(value, key=str)}
    return value if isinstance(value, int | str | tuple | list) else repr(value)


@pytest.mark.parametrize("recipe", CONFIGS)
def test_any_value_in_a_config(recipe):
    """It is kept as it is and can be written as JSON, or refused by name."""
    cls, config = CONFIGS[recipe]
    places = [
        (group, name)
        for group in config
        for name in (config[group] if isinstance(config[group], ConfigDict) else ("",))
    ]

    @examples(400)
    @given(randoms)
    def change(rng):
        values = config.to_dict()
        for group, name in rng.sample(places, rng.choice((1, 1, 2))):
            if not name or rng.randrange(20) == 0:
                values[group] = random_value(rng, values[group])
            elif not isinstance(values[group], dict):
                continue
            elif rng.randrange(20) == 0:
                values[group][rng.choice((*STRINGS, 1, None, ()))] = values[group].pop(name)
            else:
                values[group][name] = random_value(rng, values[group][name])
        given_values = copy.deepcopy(values)

        def make():
            result = read_settings(cls, values)
            for group, value in given_values.items():
                typed = getattr(result, group)
                kept = dataclasses.asdict(typed) if dataclasses.is_dataclass(typed) else typed
                assert plain(kept) == plain(value), group
                json.dumps(plain(kept) if dataclasses.is_dataclass(typed) else "", allow_nan=False)
            model = make_config({**result.model, "model_type": "gpt2"})
            assert make_config(json.loads(json.dumps(model.to_json()))) == model
            if recipe == "text":
                make_options(None, **result.generation)

        outcome(make, "config", *(f"{g}" for g, _ in places), "model", "generation", "got ")

    change()


# Round trips: what was written is read back

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
full = texts.filter(str.strip)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_streams_one_after_the_other(suffix, tmp_path):
    """Several streams in a file are one text; a file that ends inside one is an error."""
    file = tmp_path / f"d{suffix}"

    @examples(20)
    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.data())
    def check(parts, data):
        streams = [compress(part, suffix) for part in parts]
        file.write_bytes(b"".join(streams))
        assert b"".join(read_blocks(file)) == b"".join(parts)
        lines = [line for _, line in read_lines(file)]
        assert lines == io.BytesIO(b"".join(parts)).readlines()
        cut = data.draw(st.integers(1, len(streams[-1]) - 1))
        file.write_bytes(b"".join(streams)[:-cut])
        assert outcome(lambda: b"".join(read_blocks(file)), str(file)) is None

    check()


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet", "d.jsonl.zst", "d.txt"])
def test_documents_round_trip(name, tmp_path):
    file = tmp_path / name

    @examples(20)
    @given(st.lists(full, min_size=1, max_size=5))
    def check(written):
        rows = [{"text": text} for text in written]
        content = lines(rows)
        if name == "d.json":
            content = json.dumps(rows, ensure_ascii=False, indent=1).encode()
        elif name == "d.parquet":
            content = table(rows)
        elif name == "d.txt":
            written = [written[0].replace("\r", "\n").removeprefix("\ufeff") or "x"]
            content = written[0].encode()
        elif name.endswith(".zst"):
            content = compress(content, ".zst")
        file.write_bytes(content)
        if all(text.strip() for text in written):
            assert [one.text for one in read_documents([file])] == written

    check()


@examples(40)
@given(st.lists(st.tuples(full, full), min_size=4, max_size=8, unique=True))
def test_texts_round_trip(rows):
    """Prompts, pairs and questions."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.jsonl"
        write_jsonl(file, [{"prompt": first, "id": second} for first, second in rows])
        expected = [(first, {"id": second}) for first, second in rows]
        assert prompt_files.read_prompts(file) == expected
        write_jsonl(file, [{"source": first, "target": second} for first, second in rows])
        read = [(pair.source, pair.target) for pair in pairs.read_pairs(file)]
        assert read == rows
        written = [{"question": a, "options": [b, f"{b}."], "label": 1} for a, b in rows]
        write_jsonl(file, written)
        questions = read_questions(find_task(f"jsonl:{file}"), split="given file")
        assert [(q.question, q.options[0], q.label) for q in questions] == [(*r, 1) for r in rows]


@examples(40)
@given(st.lists(texts, min_size=1, max_size=5, unique=True), st.integers(0, 1), st.booleans())
def test_results_round_trip(ids, gold, truncated):
    with tempfile.TemporaryDirectory() as folder:
        items = [{"id": one, **ITEM, "gold": gold, "truncated": truncated} for one in ids]
        report.write_items(Path(folder) / "items.jsonl", items)
        assert report.read_items(folder) == items


@examples(40)
@given(st.text(), st.text())
def test_tokens_round_trip(tokenizer, text, other):
    """Any text but half surrogates is encoded and decoded without a loss."""
    text = f"{text}<|endoftext|>{other}".encode(errors="replace").decode()
    assert tokenizer.decode(encode_plain(tokenizer, text), skip_special_tokens=False) == text


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TEXTS * 20, vocab_size=280)


@examples(60)
@given(
    layers=st.integers(1, 40),
    heads=st.integers(1, 8),
    head_dim=st.integers(1, 64),
    sizes=st.tuples(*[st.integers(1, 2**16)] * 3),
    rates=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
    scaled=st.booleans(),
    ends=st.lists(st.integers(0, 2**16), max_size=3, unique=True),
)
def test_configs_round_trip(layers, heads, head_dim, sizes, rates, scaled, ends):
    """Through Hugging Face's config.json, and through a run's."""
    vocabulary, context, inner = sizes
    ids = [one for one in ends if one < vocabulary] or [vocabulary - 1]
    dropout = ("embedding_dropout", "attention_dropout", "residual_dropout")
    config = GPT2Config(
        vocab_size=vocabulary,
        context_length=context,
        layers=layers,
        width=heads * head_dim,
        heads=heads,
        mlp_width=inner,
        scale_attn_by_inverse_layer_idx=scaled,
        eos_token_id=ids[0],
        more_eos_token_ids=tuple(ids[1:]),
        **dict(zip(dropout, rates, strict=True)),
    )
    read = config_from_hf(json.loads(json.dumps(config_to_hf(config))))
    assert dataclasses.replace(read, hf_entries="{}") == config
    assert make_config(json.loads(json.dumps(config.to_json()))) == config


@examples(20)
@given(st.randoms(use_true_random=False), st.integers(10_000, 60_000))
def test_tensors_round_trip(rng, shard):
    """Through whole files and shards, every bit but those of NaN."""
    config = GPT2Config(**TINY)
    shapes = tensor_shapes(abstract_model(config))
    random_bits = np.random.default_rng(rng.randrange(2**32))
    tensors = {}
    for name, shape in shapes.items():
        bits = random_bits.integers(0, 2**32, shape, np.uint32).view(np.float32)
        tensors[name] = np.where(np.isfinite(bits), bits, np.float32(-0.0))
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder), shapes, tensors.__getitem__, max_shard_size=shard)
        files = TensorFiles(folder, config)
        assert files.shapes == shapes
        for name, tensor in tensors.items():
            assert files.read(name).tobytes() == tensor.tobytes()


@examples(60)
@given(
    temperature=st.floats(0.125, 8, width=32),
    top_k=st.integers(0, 999),
    top_p=st.floats(0.5, 1),
    words=st.lists(st.lists(st.integers(0, 279), min_size=1, max_size=3).map(tuple), max_size=3),
    stop=st.lists(full, max_size=2),
    new=st.integers(1, 24),
)
def test_generation_settings_round_trip(tokenizer, temperature, top_k, top_p, words, stop, new):
    config = GPT2Config(**{**TINY, "vocab_size": 280})
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": new}
    options = make_options(None, **given, bad_words=tuple(words), stop=tuple(stop))
    written = json.loads(json.dumps(options.to_generation_config(config, tokenizer)))
    again = make_options(written)
    assert dataclasses.replace(again, ends=()) == options
    assert again.strategy(config, tokenizer) == options.strategy(config, tokenizer)
