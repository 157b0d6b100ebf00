"""manifest.py: it has the values a model needs, and an edited or contradicting one is refused."""

import gzip
import hashlib
import json
import random
from typing import Any

import pytest
from corpus.conftest import flip, forget_files, value_or_line

from biomedlm_jax.corpus.documents import Skipped, read_documents
from biomedlm_jax.corpus.input_files import input_files
from biomedlm_jax.corpus.manifest import END_BYTES, check_tokens, describe_file, read_manifest
from biomedlm_jax.corpus.tokenizer import load_tokenizer, tokenizer_hash
from biomedlm_jax.errors import InputError


def test_the_manifest_has_the_inputs_and_the_values_of_the_model(build, documents, out, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in documents) + "no JSON\n")
    skipped = Skipped()
    texts = read_documents([file], on_error="skip", skipped=skipped)
    manifest = build(texts=texts, inputs=[file], skipped=skipped)
    assert manifest == read_manifest(out)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert manifest["inputs"] == [
        {"path": str(file), "bytes": file.stat().st_size, "sha256": sha256}
    ]
    assert manifest["skipped"] == {
        "bad": 1,
        "empty": 0,
        "subsets": {},
        "files": {"count": 0, "names": []},
    }
    assert (manifest["vocab_size"], manifest["eos_id"], manifest["length"]) == (300, 299, 16)
    assert manifest["dtype"] == "uint16"
    assert manifest["tokenizer_hash"] == tokenizer_hash(load_tokenizer(out))
    # The files and the skipped lines do not change the identity of the rows.
    assert build(tmp_path / "again")["fingerprint"] == manifest["fingerprint"]


def test_the_manifest_lists_copies_and_files_left_out(build, documents, out, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = "".join(json.dumps({"text": d.text}) + "\n" for d in documents)
    (corpus / "a.jsonl").write_text(text)
    (corpus / "b.jsonl").write_text(text)
    (corpus / "c.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (corpus / "c.pdf").write_text("x")
    skipped = Skipped()
    texts = read_documents([corpus], skipped=skipped)
    manifest = build(texts=texts, inputs=input_files([corpus]), skipped=skipped)
    assert manifest["skipped"]["files"] == {"count": 1, "names": [str(corpus / "c.pdf")]}
    copies = [entry.get("copy_of") for entry in manifest["inputs"]]
    assert copies == [None, str(corpus / "a.jsonl"), str(corpus / "a.jsonl")]
    counts = [split["documents"] for split in manifest["splits"].values()]
    assert sum(counts) == 3 * len(documents)


def test_bad_directories(build, out, tmp_path):
    with pytest.raises(InputError, match="build token rows with biomedlm build-tokens"):
        read_manifest(out)
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    manifest = build()
    for change, message in (
        ({"version": 0}, "expected {'format': .* got {'format'"),
        ({"vocab_size": 301}, "does not match its fingerprint"),
        ({"format": None}, "'format': None"),
    ):
        (out / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=message):
            read_manifest(out)
    for text in ("", "[1]", "{}", json.dumps(manifest)[:-9]):
        (out / "manifest.json").write_text(text)
        with pytest.raises(InputError, match="not a manifest of token rows; copy it again, or b"):
            read_manifest(out)


def test_any_flipped_bit_of_the_manifest_is_refused(build, out, tmp_path):
    (tmp_path / "text").write_text("x")
    build(inputs=[tmp_path / "text"])
    file = out / "manifest.json"
    content = file.read_bytes()
    manifest = read_manifest(out)
    for byte in range(0, len(content), 2):
        flip(file, byte, byte % 7)
        got, line = value_or_line(lambda: read_manifest(out))
        # An escape or an exponent in the other case is no change.
        assert got == manifest or line.startswith(str(file))
        assert "\n" not in line
        file.write_bytes(content)


def test_the_list_of_files_does_not_change_the_identity_of_the_rows(build, out):
    manifest = build()
    assert [(entry["name"], entry["bytes"]) for entry in manifest["files"]] == [
        (file.name, file.stat().st_size) for file in sorted((out / "rows").iterdir())
    ]
    features = out / "rows" / "features.json"
    digest = hashlib.sha256(features.read_bytes()).hexdigest()
    assert {"sha256_of_ends": digest}.items() <= manifest["files"][1].items()
    forget_files(out)  # as an earlier version wrote it
    before = read_manifest(out)
    assert before["fingerprint"] == manifest["fingerprint"]
    assert not {"files", "checksum"} & {*before}


@pytest.mark.parametrize("size", [0, 10, END_BYTES, END_BYTES + 10, 2 * END_BYTES, 3 * END_BYTES])
def test_the_ends_of_a_file(tmp_path, size):
    content = random.Random(0).randbytes(size)
    (tmp_path / "file").write_bytes(content)
    ends = content if size <= 2 * END_BYTES else content[:END_BYTES] + content[-END_BYTES:]
    assert describe_file(tmp_path / "file") == {
        "name": "file",
        "bytes": size,
        "sha256_of_ends": hashlib.sha256(ends).hexdigest(),
    }


def test_check_tokens(build):
    manifest = build()
    good: dict[str, Any] = {"vocab_size": 300, "length": 16, "eos_id": 299}
    check_tokens(manifest)
    check_tokens(manifest, **good)
    check_tokens(manifest, **good, tokenizer_hash=manifest["tokenizer_hash"])
    for change, message in (
        ({"length": 8}, "have length=16, but the model has length=8; build .* --length=8"),
        ({"vocab_size": 279}, "have vocab_size=300, but the model has vocab_size=279"),
        ({"vocab_size": 301}, r"model\.vocab_size=300 --config\.model\.eos_token_id=299"),
        ({"eos_id": 0}, r"eos_id=299, .* set --config\.model\.eos_token_id=299"),
        ({"tokenizer_hash": "0" * 64}, "tokenizer_hash=0000"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tokens(manifest, **{**good, **change})
