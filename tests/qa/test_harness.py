"""The harness plug-in beside the harness's own `hf` backend, on one exported random checkpoint."""

import json
import re
import shutil
from typing import Any

import numpy as np
import peers
import pytest
from lm_eval.api.instance import Instance
from processes import run_process
from tokenizers import Tokenizer

from biomedlm_jax.generation import decoding
from biomedlm_jax.generation import generator as generator_module
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.llama import LlamaConfig, MistralConfig
from biomedlm_jax.qa.harness import Harness, shared_prefixes


@pytest.fixture(scope="module")
def ours(model, tokenizer):
    return Harness(model, tokenizer, batch_tokens=512)


def requests(kind, arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
    ]


def test_texts_of_all_lengths_have_the_same_log_probabilities(
    ours, theirs, text, assert_equal_answers
):
    rng = np.random.default_rng(1)
    pairs = [(text(rng, 1, 60), " " + text(rng, 1, 8)) for _ in range(10)]
    shared = text(rng, 5, 9)
    pairs += [(shared, " " + text(rng, 1, 5)) for _ in range(30)]  # more than one row's worth
    pairs += [("", text(rng, 1, 5)), ("", text(rng, 1, 5)), (shared + "  ", "fever")]
    pairs += [("Fièvre 39 °C — β", " ø\n"), pairs[0], pairs[0]]
    sent = requests("loglikelihood", pairs)
    expected = theirs.loglikelihood(sent, disable_tqdm=True)
    got = ours.loglikelihood(sent, disable_tqdm=True)
    assert_equal_answers(got, expected)
    # Neither their order nor their number changes an answer.
    order = rng.permutation(len(sent))
    mixed = ours.loglikelihood([sent[i] for i in order], disable_tqdm=True)
    for place, i in enumerate(order):
        np.testing.assert_allclose(mixed[place][0], got[i][0], atol=1e-5)
    one = ours.loglikelihood(sent[3:4], disable_tqdm=True)
    np.testing.assert_allclose(one[0][0], got[3][0], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "window"),
    [pytest.param(LlamaConfig, None, marks=pytest.mark.slow), (MistralConfig, 9)],
)
def test_rotary_models_have_the_answers_of_the_hf_backend(
    config, window, tokenizer, tmp_path, text, hf_backend, assert_equal_answers
):
    shape = {"context_length": 48, "layers": 2, "width": 32, "heads": 4}
    shape["vocab_size"] = tokenizer.get_vocab_size()
    grouped = {"key_value_heads": 2, "mlp_width": 48, "sliding_window": window}
    model = peers.random_model(config(**shape, **grouped), deviation=0.2)
    theirs = hf_backend(export_hf(model, tokenizer, tmp_path / "model"))
    ours = Harness(model, tokenizer, batch_tokens=256)
    rng = np.random.default_rng(7)
    shared = text(rng, 9, 12)
    pairs = [(text(rng, 1, 60), " " + text(rng, 1, 8)) for _ in range(6)]
    pairs += [(shared, " " + text(rng, 1, 5)) for _ in range(6)] + [("", text(rng, 1, 5))]
    sent = requests("loglikelihood", pairs)
    assert_equal_answers(ours.loglikelihood(sent), theirs.loglikelihood(sent))
    sent = requests("loglikelihood_rolling", [(text(rng, 1, n),) for n in (3, 40, 90)])
    rolling = ours.loglikelihood_rolling(sent), theirs.loglikelihood_rolling(sent)
    np.testing.assert_allclose(*rolling, atol=1e-3)
    limits = {"until": ["\n"], "do_sample": False, "max_gen_toks": 8}
    sent = requests("generate_until", [(text(rng, 2, n), limits) for n in (3, 20, 60)])
    assert ours.generate_until(sent) == theirs.generate_until(sent)


def test_a_greedy_continuation_is_reported_as_greedy(ours):
    prompt = "the cough has"
    (made,) = ours.generate_until(requests("generate_until", [(prompt, {"max_gen_toks": 6})]))
    likely, unlikely = ours.loglikelihood(
        requests("loglikelihood", [(prompt, made), (prompt, " aspirin fever cough")])
    )
    assert likely[1]
    assert not unlikely[1]
    assert likely[0] > unlikely[0]


def test_rolling_log_probabilities_are_equal(ours, theirs, text):
    rng = np.random.default_rng(2)
    sent = requests("loglikelihood_rolling", [(text(rng, 1, n),) for n in (3, 40, 90, 200)])
    sent += requests("loglikelihood_rolling", [("",)])
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(sent), theirs.loglikelihood_rolling(sent), atol=1e-3
    )


def test_a_text_begins_with_the_tokenizers_begin(ours, theirs, exported, tmp_path):
    """bos and eos differ, in the tokenizer and in the model."""
    changed = tmp_path / "changed"
    shutil.copytree(exported, changed)
    file = changed / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bos_token": "!"}))
    (changed / "special_tokens_map.json").unlink()
    model, tokenizer = load(changed)
    assert tokenizer is not None
    ours = Harness(model, tokenizer)
    settings = {"device": "cpu", "dtype": "float32", "attn_implementation": "eager"}
    theirs = type(theirs)(pretrained=str(changed), **settings)
    assert ours.prefix_token_id == theirs.prefix_token_id != ours.eot_token_id
    assert ours.eot_token_id == theirs.eot_token_id
    texts = requests("loglikelihood_rolling", [("fever",), ("the dose of heparin",)])
    expected = theirs.loglikelihood_rolling(texts)
    np.testing.assert_allclose(ours.loglikelihood_rolling(texts), expected, atol=1e-4)


def test_generated_texts_are_equal(ours, theirs, text):
    rng = np.random.default_rng(3)
    limits = {"until": ["\n"], "do_sample": False, "max_gen_toks": 8}
    # The last prompts are too long and lose their starts.
    sent = [(text(rng, 2, n), limits) for n in (3, 5, 12, 60, 90)]
    sent = requests("generate_until", sent)
    assert ours.generate_until(sent) == theirs.generate_until(sent)


def test_the_decoder_is_made_once_and_rows_stop_at_their_sequences(
    model, tokenizer, theirs, monkeypatch, text
):
    made, decoded, make, decode = [], [], generator_module.make_decoder, decoding.decode
    monkeypatch.setattr(generator_module, "make_decoder", lambda m: made.append(m) or make(m))

    def decoding_once(*arguments, **options):
        decoded.append(decode(*arguments, **options))
        return decoded[-1]

    monkeypatch.setattr(decoding, "decode", decoding_once)
    harness, rng = Harness(model, tokenizer), np.random.default_rng(4)
    sent = [(text(rng, 2, 9), {"max_gen_toks": 16, "until": stops}) for stops in [["a", "e"]] * 9]
    sent += [(text(rng, 2, 9), {"max_gen_toks": 4, "until": "a"})] * 2
    sent = requests("generate_until", sent)
    assert harness.generate_until(sent) == theirs.generate_until(sent)
    assert len(decoded) == 3
    assert len(made) == 1
    rows = decoded[0].tokens
    assert min(map(len, rows)) < 16
    assert not any(stop in tokenizer.decode(row[:-8]) for row in rows for stop in "ae")


def test_a_text_ends_before_its_first_stop_sequence(ours):
    free, cut, by_name = ours.generate_until(
        requests(
            "generate_until",
            [
                ("the dose of", {"max_gen_toks": 12}),
                ("the dose of", {"max_new_tokens": 12, "until": ["", "zzz"]}),
                ("the dose of", {"max_gen_toks": 12, "until": "a"}),
            ],
        )
    )
    assert free == cut
    assert by_name == free.split("a")[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4, "length_penalty": -0.5, "early_stopping": True},
        pytest.param(
            {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}, marks=pytest.mark.slow
        ),
        pytest.param({"min_new_tokens": 6, "until": ["e"]}, marks=pytest.mark.slow),
        {"bad_words_ids": [[102], [7, 8], [297]]},
        {"until": ["r", "pirin"]},
        pytest.param({"until": ["<|endoftext|>", "asp"]}, marks=pytest.mark.slow),
        pytest.param({"num_beams": 3, "min_length": 20}, marks=pytest.mark.slow),
        pytest.param({"eos_token_id": [102, 297]}, marks=pytest.mark.slow),
        pytest.param(
            {"do_sample": False, "temperature": 0.7, "top_k": 5, "top_p": 0.5},
            marks=pytest.mark.slow,
        ),
        pytest.param({"temperature": 0.0}, marks=pytest.mark.slow),
        pytest.param({"until": ["pirin", "r"]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_generation_settings_have_the_texts_of_the_hf_backend(ours, one_by_one, settings, text):
    rng, settings = np.random.default_rng(5), {"max_gen_toks": 10, **settings}
    sent = requests("generate_until", [(text(rng, 1, n), settings) for n in (3, 9, 20, 50)])
    assert ours.generate_until(sent) == one_by_one.generate_until(sent)


@pytest.mark.parametrize(
    "entries",
    [
        {"num_beams": 3, "length_penalty": 2.0},
        pytest.param({"max_new_tokens": 3}, marks=pytest.mark.slow),
        pytest.param({"do_sample": True, "temperature": 0.5, "top_p": 0.9}, marks=pytest.mark.slow),
        pytest.param({"repetition_penalty": 5.0, "max_length": 9}, marks=pytest.mark.slow),
        pytest.param({"eos_token_id": "\x0c"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_checkpoints_generation_config_applies_as_in_the_hf_backend(
    exported, tokenizer, tmp_path, entries, one_by_one, text, hf_backend
):
    if "eos_token_id" in entries:
        entries = {"eos_token_id": [297, *tokenizer.encode(entries["eos_token_id"]).ids]}
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    harness = Harness.create_from_arg_string(f"path={folder},dtype=float32", {"batch_size": 1})
    rng = np.random.default_rng(6)
    sent = [(text(rng, 1, n), {"max_gen_toks": 8, "until": ["zz"]}) for n in (3, 9, 20)]
    sent = requests("generate_until", sent)
    got = harness.generate_until(sent)
    assert got == hf_backend(folder).generate_until(sent)
    if not entries.get("do_sample"):
        assert got != one_by_one.generate_until(sent)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gen_toks": 48}, "48 positions"),
        ({}, "256 new"),
        ({"heat": 3}, "generation_kwargs heat, which is unknown"),
        ({"typical_p": 0.5}, "generation_kwargs typical_p"),
        ({"max_length": 20}, "generation_kwargs max_length"),
        ({"num_return_sequences": 2}, "generation_kwargs num_return_sequences"),
        ({"do_sample": True}, "do_sample: true without a temperature above 0"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample: true without a temperature"),
        ({"num_beams": 2, "temperature": 1.0}, "beam search does not sample"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0; expected above 0"),
    ],
    ids=str,
)
def test_generation_settings_that_are_refused(ours, settings, message):
    settings = (
        settings if not settings or "max_gen_toks" in settings else {"max_gen_toks": 8, **settings}
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ours.generate_until(requests("generate_until", [("the dose", settings)]))


def test_a_checkpoint_with_several_answers_is_refused(model, tokenizer):
    entries = {"num_return_sequences": 2, "num_beams": 2}
    harness = Harness(model, tokenizer, generation_config=entries)
    with pytest.raises(ValueError, match="num_return_sequences=2"):
        harness.generate_until(requests("generate_until", [("the", {"max_gen_toks": 4})]))


def test_no_requests_and_empty_texts_are_answered_as_in_the_hf_backend(ours, one_by_one):
    for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        assert getattr(ours, method)([]) == getattr(one_by_one, method)([]) == []
    empty = requests("loglikelihood_rolling", [("",)])
    assert ours.loglikelihood_rolling(empty) == one_by_one.loglikelihood_rolling(empty) == [0]
    with pytest.raises(ValueError, match="expected at least one"):  # an assertion there
        ours.loglikelihood(requests("loglikelihood", [("the dose", "")]))


def test_a_tokenizer_that_adds_a_begin_of_text_scores_as_the_hf_backend(
    model, tokenizer, assert_equal_answers
):
    import torch
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import GPT2Config as PeerConfig
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    from biomedlm_jax.interop.weights import file_name, hf_tensor_map, tensor_reader
    from biomedlm_jax.model.families import config_to_hf

    adding = Tokenizer.from_str(tokenizer.to_str())
    end = tokenizer.token_to_id("<|endoftext|>")
    template = {"single": "<|endoftext|> $A", "special_tokens": [("<|endoftext|>", end)]}
    adding.post_processor = TemplateProcessing(**template)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    words = PreTrainedTokenizerFast(tokenizer_object=adding, **special)
    peer_config = PeerConfig(**config_to_hf(model.config), attn_implementation="eager")
    peer, read = GPT2LMHeadModel(peer_config).eval(), tensor_reader(model)
    tensors = {
        file_name(name, model.config): torch.from_numpy(np.array(read(name)))
        for name in hf_tensor_map(model)
    }
    peer.load_state_dict(tensors, strict=False)
    backend: Any = HFLM
    theirs = backend(pretrained=peer, tokenizer=words, batch_size=1)
    ours = Harness(model, adding)
    pairs = [("the dose", " of fever"), ("", "the dose"), ("", "<|endoftext|>the")]
    pairs += [("<|endoftext|>the dose", " of fever"), ("the dose  ", "of fever")]
    sent = requests("loglikelihood", pairs)
    assert_equal_answers(ours.loglikelihood(sent), theirs.loglikelihood(sent))
    sent = requests("loglikelihood_rolling", [("the dose of",), ("",), ("fever " * 60,)])
    rolling = ours.loglikelihood_rolling(sent), theirs.loglikelihood_rolling(sent)
    np.testing.assert_allclose(*rolling, atol=1e-3)
    limits = {"max_gen_toks": 8, "until": ["\n"]}
    prompts = ["the dose", "<|endoftext|>the dose", "", "the dose of " * 20]
    sent = requests("generate_until", [(prompt, limits) for prompt in prompts])
    assert ours.generate_until(sent) == theirs.generate_until(sent)


SHOWING = (  # no system turn; a text is shown without the spaces around it
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}<{{ message['role'] }}>"
    "{{ message['content'] | trim }}{% if not loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}"
)


def test_a_chat_is_rendered_as_by_the_hf_backend(exported, tmp_path, hf_backend):
    path = shutil.copytree(exported, tmp_path / "model")
    with pytest.raises(ValueError, match="no chat template"):
        Harness(*load(path)).chat_template(True)
    chats = [[{"role": "user", "content": " Which dose?\n"}]]
    chats += [[{"role": "system", "content": "Be brief."}, *chats[0]]]
    for text in (SHOWING, SHOWING.replace(" | trim", "")):
        (path / "chat_template.jinja").write_text(text)
        ours, theirs = Harness(*load(path)), hf_backend(path)
        assert ours.chat_template(True) == theirs.chat_template(True) == text
        for chat in chats:
            assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
            begun = [*chat, {"role": "assistant", "content": "The dose is "}]
            pair = [one.apply_chat_template(begun, False) for one in (ours, theirs)]
            assert pair[0] == pair[1]
            assert pair[0].rstrip().endswith("<assistant>The dose is")
    (path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ValueError, match="leaves out the assistant's last text"):
        Harness(*load(path)).apply_chat_template(begun, False)
    (path / "chat_template.jinja").write_text("{{ strftime_now('%d %b') }}" + SHOWING)
    dated = Harness.create_from_arg_string(f"path={path},date=2026-02-03")
    assert dated.apply_chat_template(chats[0]).startswith("03 Feb<|endoftext|><user>")
    assert dated.get_model_info()["chat_date"] == "2026-02-03"


def test_a_seed_decides_the_samples(model, tokenizer):
    settings = {"temperature": 2.0, "max_gen_toks": 6}
    sent = requests("generate_until", [("the dose", settings)] * 3)
    one, again, other = (
        Harness(model, tokenizer, seed=seed).generate_until(sent) for seed in (1, 1, 2)
    )
    assert one == again != other
    assert len(set(one)) == 3


def test_the_model_is_registered_by_name(exported):
    from lm_eval.api.registry import get_model

    made = get_model("biomedlm").create_from_arg_string(f"path={exported}", {"device": "cpu"})
    assert isinstance(made, Harness)
    assert get_model("hf").__name__ == "HFLM"
    for arguments, message in (
        ("dtype=float32", "model_args without path"),
        (f"path={exported},pretrained=x", "got model_args pretrained; expected path"),
        (f"path={exported},device=tpu", "got device=tpu; JAX uses cpu"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Harness.create_from_arg_string(arguments)


# `python -m biomedlm_jax.qa.harness`, without lm-eval's own tasks, which take seconds to read.
COMMAND_LINE = """
import functools, runpy
from lm_eval.tasks import TaskManager

TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
runpy.run_module("biomedlm_jax.qa.harness", run_name="__main__")
"""


@pytest.mark.slow
def test_the_command_line_of_lm_eval_runs_it(exported, tasks, tmp_path):
    command = ["-c", COMMAND_LINE, "--model", "biomedlm"]
    command += ["--model_args", f"path={exported},dtype=float32", "--tasks", "own_questions"]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path), "--log_samples"]
    done = run_process([*command, "--limit", "3"])
    assert done.returncode == 0, done.stderr
    assert "own_questions" in done.stdout
    (file,) = tmp_path.rglob("results_*.json")
    config = json.loads(file.read_text())["config"]
    assert config["model"] == "biomedlm"
    assert len(config["model_sha"]) == 64
    refused = run_process([*command, "--limit", "3", "--apply_chat_template"])
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith(
        "error: the tokenizer has no chat template; fix: set template to one of alpaca"
    )
    done = run_process([*command, "--limit", "3", "--apply_chat_template", "zephyr"])
    assert done.returncode == 0, done.stderr


def test_one_context_is_one_prefix_until_its_branches_fill_a_row():
    prompts, groups = shared_prefixes([([7, 8], [1] * 4), ([9], [2]), *[([7, 8], [3, 3])] * 5], 10)
    assert groups == [[0, 2, 3, 4], [1], [5, 6]]
    assert [len(p.branches) for p in prompts] == [4, 1, 2]
    assert [p.prefix for p in prompts] == [[7, 8], [9], [7, 8]]


def test_an_answer_longer_than_the_model_is_refused(ours):
    with pytest.raises(ValueError, match="48 positions"):
        ours.loglikelihood(requests("loglikelihood", [("fever", " ø" * 60)]))
