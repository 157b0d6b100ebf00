"""gguf_files.py: files read back by transformers and by llama.cpp, and what is refused."""

import os
import sys
import tracemalloc

import numpy as np
import pytest
import tiny

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop import gguf_files
from biomedlm_jax.interop.gguf_files import DTYPES, export_gguf
from biomedlm_jax.interop.huggingface import export_hf, import_hf, load

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
torch = pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
transformers = pytest.importorskip("transformers")

TEXT = "hyperase of the cardiitis, 12 naïve neurosis"
# Rows are multiples of 32; transformers takes the head width of a GGUF's qwen3 from nowhere else.
WIDE = {"hidden_size": 64, "intermediate_size": 96}
OF_TYPE = {"qwen3": {"head_dim": 128}, "llama": {"tie_word_embeddings": True}}
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
LLAMA_3 |= {"original_max_position_embeddings": 32, "rope_theta": 500.0}


def quiet(line):
    del line


def make_source(model_type, directory, **changes):
    """A directory of transformers whose tokenizer llama.cpp can read."""
    path = tiny.directory_of(
        model_type, directory, **WIDE, **OF_TYPE.get(model_type, {}), **changes
    )
    if model_type in ("llama", "mistral"):
        tiny.complete_merges(path)
    return path


@pytest.fixture(scope="module")
def gpt2(make_model):
    return make_model(context_length=1024)  # transformers takes that for every GGUF file


@pytest.fixture(scope="module")
def sources(tmp_path_factory, gpt2, tokenizer):
    folder = tmp_path_factory.mktemp("sources")
    # Named "mistral", transformers would not read the file.
    directories = {
        name: make_source(name, folder / f"of_{name[:4]}{name[5:]}") for name in tiny.TYPES
    }
    return {"gpt2": export_hf(gpt2, tokenizer, folder / "gpt2"), **directories}


def tensors_of(path) -> dict:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def field(path, name):
    entry = gguf.GGUFReader(path).fields.get(name)
    return None if entry is None else entry.contents()


@pytest.mark.parametrize("model_type", ["gpt2", *tiny.TYPES])
def test_transformers_reads_the_file_with_the_same_logits_and_ids(model_type, sources, tmp_path):
    source, lines = sources[model_type], []
    path = export_gguf(source, tmp_path / "x.gguf", dtype="f32", notify=lines.append)
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source, **options).eval()
    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, **options
    )
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 290, (2, 20)))
    if model_type == "mistral":  # llama.cpp and this reader have no window
        assert (
            lines[0] == "llama.cpp has no sliding window: the file states 7 positions, its length"
        )
        assert field(path, "llama.context_length") == 7
        ids = ids[:, :7]
    with torch.no_grad():
        expected, got = theirs(ids).logits.numpy(), back.eval()(ids).logits.numpy()
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    words = transformers.AutoTokenizer.from_pretrained(source)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert reader.encode(TEXT, add_special_tokens=False) == words.encode(
        TEXT, add_special_tokens=False
    )
    assert field(path, "tokenizer.chat_template") == (None if model_type == "gpt2" else tiny.CHAT)
    assert field(path, "general.name") == source.name
    assert len(field(path, "tokenizer.ggml.tokens")) == len(expected[0, 0])


def test_llama_3_frequencies_are_divided_as_transformers_divides_them(tmp_path):
    source = make_source("llama", tmp_path / "source", rope_parameters=LLAMA_3, attention_bias=True)
    path = export_gguf(source, tmp_path / "x.gguf", dtype="f32", notify=quiet)
    config = transformers.AutoConfig.from_pretrained(source)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500.0 ** -(np.arange(0, 16, 2) / 16)
    tensors = tensors_of(path)
    np.testing.assert_allclose(tensors["rope_freqs.weight"].data, plain / scaled.numpy(), rtol=1e-6)
    assert tensors["rope_freqs.weight"].data.max() == pytest.approx(8)
    assert field(path, "llama.rope.freq_base") == 500
    # Rows of a bias are in the order of those of its matrix.
    weights = load(source)[0].layers.self_attn.q_proj
    kernel_KxD, bias_K = np.asarray(weights.kernel[...][1]).T, np.asarray(weights.bias[...][1])
    order = [
        np.flatnonzero((kernel_KxD == row).all(1))[0] for row in tensors["blk.1.attn_q.weight"].data
    ]
    np.testing.assert_array_equal(tensors["blk.1.attn_q.bias"].data, bias_K[order])
    assert order[:4] == [0, 8, 1, 9]


@pytest.mark.parametrize("dtype", DTYPES)
def test_formats_of_numbers(dtype, sources, tmp_path):
    path = export_gguf(sources["qwen2"], tmp_path / "x.gguf", dtype=dtype, notify=quiet)
    whole = tensors_of(
        export_gguf(sources["qwen2"], tmp_path / "y.gguf", dtype="f32", notify=quiet)
    )
    # Largest error, as a part of the largest number of a block of 32.
    error = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.57 / 127}
    # Scales and offsets have 16 bits.
    bits = {
        "q5_1": 1 / 31 + 2e-3,
        "q5_0": 1 / 16 + 2e-3,
        "q4_1": 1 / 15 + 2e-3,
        "q4_0": 1 / 8 + 2e-3,
    }
    kinds = set()
    for name, tensor in tensors_of(path).items():
        kind = tensor.tensor_type.name.lower()
        expected = whole[name].data
        got = gguf.dequantize(tensor.data, tensor.tensor_type)
        if expected.ndim == 1:
            assert kind == "f32"
        else:
            kinds.add((kind, name in ("token_embd.weight", "output.weight")))
        blocks = np.abs(expected).reshape(-1, 16 if expected.size % 32 else 32)
        most = blocks.max(1, keepdims=True) * (error | bits)[kind] + 1e-7
        assert (np.abs(got - expected).reshape(blocks.shape) <= most).all(), name
    assert kinds == {(dtype, False), (dtype if dtype in gguf_files.WHOLE else "q8_0", True)}
    mostly = {"f32": "ALL_F32"}.get(dtype, f"MOSTLY_{dtype.upper()}")
    assert field(path, "general.file_type") == gguf.LlamaFileType[mostly]


def test_a_run_and_its_export_are_one_file(sources, gpt2, tmp_path):
    card = (sources["gpt2"] / "README.md").read_text()
    source = tmp_path / "named"
    source.mkdir()
    for file in sources["gpt2"].iterdir():
        if file.name not in ("SHA256SUMS", "README.md"):
            os.link(file, source / file.name)
    (source / "README.md").write_text(
        card.replace("library_name", "license: cc-by-4.0\nlibrary_name")
    )
    run = import_hf(source, tmp_path / "run" / "named", notify=quiet)
    lines = []
    files = [
        export_gguf(one, tmp_path / f"{n}.gguf", dtype="q8_0", notify=lines.append)
        for n, one in enumerate((source, run))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert field(files[0], "general.license") == "cc-by-4.0"
    assert lines == []
    # The query of layer 2 is a third, position embeddings and vectors are float32.
    tensors = tensors_of(files[0])
    query = np.asarray(gpt2.h.attn.c_attn.query.bias[...][2]) / np.float32(3)
    np.testing.assert_array_equal(tensors["blk.2.attn_qkv.bias"].data[:32], query)
    np.testing.assert_array_equal(tensors["position_embd.weight"].data, gpt2.wpe[...])
    with pytest.raises(InputError, match="got step=3"):
        export_gguf(source, tmp_path / "x.gguf", step=3)


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12}
    source = tiny.directory_of("qwen2", tmp_path / "source", **sizes)
    export_gguf(source, tmp_path / "first.gguf", notify=quiet)
    tracemalloc.start()
    path = export_gguf(source, tmp_path / "x.gguf", notify=quiet)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 12e6
    assert peak < 6 * 4 * 256 * 512


def test_what_llama_cpp_does_not_compute_is_refused(sources, make_finetuned, tmp_path, edit_config):
    path = tmp_path / "x.gguf"

    def refused(source, message, **options):
        with pytest.raises(InputError, match=message):
            export_gguf(source, path, notify=quiet, **options)
        assert not path.exists()

    finetuned, grown, head = make_finetuned("choice")
    refused(export_hf(finetuned, grown, tmp_path / "head", head=head), "with a choice head, not a")
    refused(sources["gpt2"], "got dtype='q2'; expected one of f32", dtype="q2")
    model, _ = load(sources["gpt2"])
    refused(export_hf(model, None, tmp_path / "wordless"), "has no tokenizer")
    other = make_source("qwen2", tmp_path / "qwen2", head_dim=32)
    refused(other, "head_dim=32, which is not width / heads, which llama.cpp does not compute")
    other = make_source("qwen3", tmp_path / "qwen3", attention_bias=True)
    refused(other, "a qwen3 model with attention_bias=True, which llama.cpp does not compute")
    model.wte[...] = model.wte[...].at[5, 5].set(7e4)
    large = export_hf(model, load(sources["gpt2"])[1], tmp_path / "large")
    refused(large, "tensor token_embd.weight has 70000, more than f16 can hold; choose bf16 or f32")
    assert export_gguf(large, path, dtype="bf16", notify=quiet) == path
    with pytest.raises(InputError, match=r"x\.gguf exists; name another file"):
        export_gguf(large, path)
    assert not list(tmp_path.glob(".*"))


def test_rows_that_no_block_divides_are_16_bits(tmp_path):
    lines = []
    source = tiny.directory_of("qwen2", tmp_path / "source")  # rows of 48 and 80
    (source / "generation_config.json").write_text('{"eos_token_id": [397, 399, 398]}')
    path = export_gguf(source, tmp_path / "x.gguf", dtype="q4_0", notify=lines.append)
    ends = [field(path, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    assert ends == [399, 397, 398]
    assert "15 matrices have rows that are no multiple of 32, and are f16" in lines
    assert {t.tensor_type.name for t in tensors_of(path).values()} == {"F32", "F16"}


def test_a_damaged_file_and_a_missing_package(sources, tmp_path, monkeypatch):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"before")
    write = gguf.GGUFWriter.write_tensor_data
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", lambda self, t: write(self, t * 0))
    with pytest.raises(OSError, match="does not read back as it was written"):
        export_gguf(sources["gpt2"], path, overwrite=True)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", lambda self, t: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_gguf(sources["gpt2"], path, overwrite=True)
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["x.gguf"]
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"needs gguf, which is not installed; pip install"):
        export_gguf(sources["gpt2"], path, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gpt2", *tiny.TYPES, "llama3"])
def test_llama_cpp_computes_the_same(model_type, sources, tmp_path):
    reason = "llama-cpp-python is not installed: it is built from source in about ten minutes"
    llama_cpp = pytest.importorskip("llama_cpp", reason=reason)
    source = sources.get(model_type)
    if source is None:  # biases everywhere, frequencies that are divided, other words
        changes = {"bos_token_id": 397, "eos_token_id": 398, "attention_bias": True}
        changes |= {"mlp_bias": True, "rope_parameters": LLAMA_3, **WIDE}
        source = tiny.directory_of("llama", tmp_path / "source", **changes)
        tiny.byte_pairs(source, qwen=False)
    model, tokenizer = load(source)
    length = min(48, model.config.context_length, model.config.sliding_window or 48)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size - 10, length)
    ours = np.asarray(model(tokens[None].astype(np.int32)))[0]
    path = export_gguf(source, tmp_path / "x.gguf", dtype="f32", notify=quiet)
    # Keys and values in 32 bits; GELU is a table of 16 bits.
    options = {"n_ctx": 64, "logits_all": True, "type_k": 0, "type_v": 0, "verbose": False}
    llama = llama_cpp.Llama(str(path), **options)
    llama.eval(tokens.tolist())
    np.testing.assert_allclose(llama.scores[:length], ours, rtol=0, atol=5e-3)
    assert ours.std() > 0.05
    texts = [TEXT, "心 naïve\n\n  12345 it's I'LL x_y\t", *tiny.sentences()[:20]]
    if model_type not in ("llama", "mistral"):  # they put no space after a special token
        texts.append(f"a{tokenizer.id_to_token(model.config.eos_token_id)} b")
    for text in texts:
        ids = llama.tokenize(text.encode(), add_bos=True, special=True)
        assert ids == tokenizer.encode(text).ids, text
    prompt = tokenizer.encode(TEXT).ids[: length // 2]
    llama.reset()
    greedy = [
        token
        for token, _ in zip(llama.generate(prompt, temp=0.0), range(length // 2), strict=False)
    ]
    row = [*prompt, *greedy]
    best = np.asarray(model(np.array([row], np.int32)))[0, len(prompt) - 1 : -1]
    chosen = best[np.arange(len(greedy)), greedy]
    assert (best.max(1) - chosen < 1e-2).all()
