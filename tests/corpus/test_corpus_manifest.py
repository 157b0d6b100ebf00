import hashlib
import json

import pytest

from biomedlm_jax.corpus.corpus_builder import build_corpus
from biomedlm_jax.corpus.corpus_manifest import (
    corpora_of,
    is_corpus,
    read_corpus_manifest,
    shards_of,
)
from biomedlm_jax.corpus.corpus_settings import CorpusSettings
from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.sources import parse_sources
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json


@pytest.fixture
def corpus(tmp_path):
    source, out = tmp_path / "a.jsonl", tmp_path / "corpus"
    texts = [f"Patient {n} was given {n * n} mg. " * 3 for n in range(40)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build_corpus(parse_sources([f"text:{source}"]), out, CorpusSettings(shard_bytes=2000))
    return out


def described(files):
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return [
        {"path": str(file), "sha256": digest} for file, digest in zip(files, digests, strict=True)
    ]


def test_the_manifest_names_the_shards(corpus):
    manifest = read_corpus_manifest(corpus)
    assert shards_of(corpus) == sorted(corpus.glob("documents-*"))
    assert len(manifest["files"]) > 1
    assert is_corpus(corpus)
    assert not is_corpus(corpus.parent)


def test_damage_is_refused(corpus):
    file = corpus / "manifest.json"
    manifest = json.loads(file.read_text())
    for changes, message in (
        ({"documents": 1}, "does not match its checksum: it was changed; copy it again"),
        ({"version": 2}, "build the corpus with biomedlm build-corpus of this version"),
    ):
        write_json(file, {**manifest, **changes})
        assert is_corpus(corpus)
        with pytest.raises(InputError, match=message):
            read_corpus_manifest(corpus)
    write_json(file, manifest)
    shard = shards_of(corpus)[1]
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"00001-of-\d+\.jsonl\.zst has .* bytes, not"):
        shards_of(corpus)
    file.write_text("{")
    assert not is_corpus(corpus)


def test_token_rows_name_the_corpus_that_they_are_made_of(corpus, small_tokenizer, tmp_path):
    files = shards_of(corpus)
    manifest = build_tokens(
        read_documents([corpus]), small_tokenizer, tmp_path / "rows", length=16, inputs=files
    )
    digest = hashlib.sha256((corpus / "manifest.json").read_bytes()).hexdigest()
    assert manifest.get("corpora") == [{"path": str(corpus), "manifest_sha256": digest}]
    assert sum(split["documents"] for split in manifest["splits"].values()) == 40
    # The rows are those of the same texts from anywhere else.
    plain = build_tokens(read_documents([corpus]), small_tokenizer, tmp_path / "plain", length=16)
    assert plain["fingerprint"] == manifest["fingerprint"]
    assert "corpora" not in plain


def test_files_that_changed_since_the_corpus_was_built_are_refused(corpus, tmp_path):
    files = [*shards_of(corpus), tmp_path / "a.jsonl"]
    assert len(corpora_of(described(files))) == 1
    assert corpora_of(described(files[-1:])) == []
    content = bytearray(files[0].read_bytes())
    content[20] ^= 1
    files[0].write_bytes(content)
    with pytest.raises(InputError, match=r"00000-of.* was changed after the corpus was built"):
        corpora_of(described(files))
