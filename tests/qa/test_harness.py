"""The harness plug-in beside the harness's own `hf` backend, on one exported random checkpoint."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import biomedlm_jax
from biomedlm_jax.cli import main
from biomedlm_jax.commands import evaluate
from biomedlm_jax.generation import decoding
from biomedlm_jax.generation import generator as generator_module
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.mesh import make_mesh
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.qa.harness import Harness, evaluate_tasks, shared_prefixes

WORDS = ["aspirin", "heparin", "fever", "cough", "insulin", "the", "of", "has", "dose", "blood"]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


# Three tasks of each request type; the multiple-choice ones are variations of TASK.
LIKELIHOODS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{text}"
doc_to_target: " {{{{options[0]}}}}"
metric_list: [{{metric: acc}}, {{metric: perplexity}}]
"""
ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{text}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
GENERATED = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, train: {file}}}}}
test_split: test
fewshot_split: train
output_type: generate_until
doc_to_text: "{text}"
doc_to_target: "{{{{options[0]}}}}"
generation_kwargs: {settings}
metric_list: [{{metric: exact_match}}]
"""
TEXTS = ["{{question}}", "Q: {{question}} A:", "{{options[0]}}, {{question}} of"]
SETTINGS = [
    {"until": ["\n"], "max_gen_toks": 8},
    {"until": ["a", "in"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7},
    {"until": ["<|endoftext|>"], "max_gen_toks": 8, "repetition_penalty": 1.2},
]
COT = """
task: reasoned
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, train: {file}}}}}
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
num_fewshot: 1
repeats: 4
output_type: generate_until
doc_to_text: "{{{{options[0]}}}} is"
doc_to_target: "{{{{options[0]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 6, do_sample: true, temperature: 1.5, top_k: 40}}
filter_list:
  - name: voted
    filter:
      - {{function: regex, regex_pattern: "([a-z]+)"}}
      - {{function: majority_vote}}
      - {{function: take_first}}
  - name: first
    filter:
      - {{function: regex, regex_pattern: "([a-z]+)"}}
      - {{function: take_first}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(autouse=True)
def fresh_flags():
    evaluate.FLAGS.unparse_flags()  # a repeated flag would add to the last call's
    return


@pytest.fixture(scope="module")
def tokenizer():
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=299, initial_alphabet=alphabet)
    built.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    built.add_special_tokens(["<|endoftext|>"])
    return built


@pytest.fixture(scope="module")
def model(tokenizer):
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        context_length=48,
        layers=3,
        width=64,
        heads=4,
        initializer_range=0.2,
        scale_attn_by_inverse_layer_idx=True,
        compute_dtype="float32",
    )
    return GPT2(config, key=jax.random.key(0))


@pytest.fixture(scope="module")
def ours(model, tokenizer):
    return Harness(model, tokenizer, batch_tokens=512)


@pytest.fixture(scope="module")
def exported(model, tokenizer, tmp_path_factory):
    return export_hf(model, tokenizer, tmp_path_factory.mktemp("harness") / "model")


@pytest.fixture(scope="module")
def theirs(exported):
    from lm_eval.models.huggingface import HFLM

    backend: Any = HFLM  # its decorator hides its parameters from type checkers
    return backend(
        pretrained=str(exported),
        device="cpu",
        dtype="float32",
        batch_size=4,
        attn_implementation="eager",
    )


@pytest.fixture(scope="module")
def one_by_one(exported):
    """The `hf` backend without batches, where no row delays the stop of another."""
    return hf_backend(exported)


def hf_backend(folder):
    from lm_eval.models.huggingface import HFLM

    backend: Any = HFLM
    settings = {"device": "cpu", "dtype": "float32", "attn_implementation": "eager"}
    return backend(pretrained=str(folder), **settings)


def text(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A directory with one multiple-choice task; some questions are too long for the model."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    questions = []
    for number in range(12):
        count = int(rng.integers(2, 6))
        options = [text(rng, 1, 4) for _ in range(count)]
        question = text(rng, 2, 60 if number % 4 == 0 else 12)
        label = int(rng.integers(count))
        questions.append({"question": question, "options": options, "label": label})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(q) + "\n" for q in questions))
    (folder / "questions.yaml").write_text(TASK.format(name="own_questions", file=file))
    for number, (shown, settings) in enumerate(zip(TEXTS, SETTINGS, strict=True)):
        named = {"text": shown, "file": file, "settings": json.dumps(settings)}
        escaped = shown.replace("{", "{{").replace("}", "}}")
        choice = TASK.replace("Question: {{{{question}}}}\\nAnswer:", escaped)
        kinds = {"choice": choice, "likelihood": LIKELIHOODS, "rolling": ROLLING}
        kinds["generated"] = GENERATED
        for kind, template in kinds.items():
            name = f"{kind}_{number}"
            (folder / f"{name}.yaml").write_text(template.format(name=name, **named))
    (folder / "reasoned.yaml").write_text(COT.format(file=file))
    return folder


def requests(kind, arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
    ]


def assert_equal_answers(got, expected):
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    sums, expected_sums = ([summed for summed, _ in answers] for answers in (got, expected))
    np.testing.assert_allclose(sums, expected_sums, atol=1e-4)


def test_a_task_has_the_answers_of_the_hf_backend_request_by_request(
    exported, theirs, tasks, tmp_path
):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    of_task = {
        "tasks": ["own_questions"],
        "task_directory": tasks,
        "mesh": make_mesh(data=2, tensor=2),
    }
    got = evaluate_tasks([exported], tmp_path / "out", **of_task)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    run: Any = simple_evaluate
    expected = run(theirs, tasks=["own_questions"], task_manager=manager)
    for ours, other in zip(*(r["samples"]["own_questions"] for r in (got, expected)), strict=True):
        assert ours["arguments"] == other["arguments"]
        assert_equal_answers(ours["filtered_resps"], other["filtered_resps"])
    figures, reference = (r["results"]["own_questions"] for r in (got, expected))
    assert figures == reference
    assert 0 < figures["acc,none"] < 1


KINDS = ("choice", "likelihood", "rolling", "generated")


def test_three_tasks_of_each_request_type_are_those_of_the_hf_backend(
    exported, one_by_one, tasks, tmp_path
):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = [f"{kind}_{number}" for kind in KINDS for number in range(3)]
    of_tasks = {"task_directory": tasks, "mesh": make_mesh(data=8), "limit": 6}
    got = evaluate_tasks([exported], tmp_path / "out", tasks=names, **of_tasks)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    run: Any = simple_evaluate
    expected = run(one_by_one, tasks=names, task_manager=manager, limit=6)
    for name in names:
        rows = zip(got["samples"][name], expected["samples"][name], strict=True)
        for ours, other in rows:
            assert ours["arguments"] == other["arguments"]
            if name.startswith("generated"):
                assert ours["resps"] == other["resps"], name
            elif name.startswith("rolling"):
                np.testing.assert_allclose(ours["resps"], other["resps"], atol=1e-4)
            else:
                assert_equal_answers(ours["filtered_resps"], other["filtered_resps"])
        figures, reference = (
            {n: v for n, v in r["results"][name].items() if not isinstance(v, str)}
            for r in (got, expected)
        )
        assert figures == pytest.approx(reference, rel=1e-4)
    assert len({row["resps"][0][0] for row in got["samples"]["generated_1"]}) > 2


def test_texts_of_all_lengths_have_the_same_log_probabilities(ours, theirs):
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


def test_a_greedy_continuation_is_reported_as_greedy(ours):
    prompt = "the cough has"
    (made,) = ours.generate_until(requests("generate_until", [(prompt, {"max_gen_toks": 6})]))
    likely, unlikely = ours.loglikelihood(
        requests("loglikelihood", [(prompt, made), (prompt, " aspirin fever cough")])
    )
    assert likely[1]
    assert not unlikely[1]
    assert likely[0] > unlikely[0]


def test_rolling_log_probabilities_are_equal(ours, theirs):
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


def test_generated_texts_are_equal(ours, theirs):
    rng = np.random.default_rng(3)
    limits = {"until": ["\n"], "do_sample": False, "max_gen_toks": 8}
    # The last prompts are too long and lose their starts.
    sent = [(text(rng, 2, n), limits) for n in (3, 5, 12, 60, 90)]
    sent = requests("generate_until", sent)
    assert ours.generate_until(sent) == theirs.generate_until(sent)


def test_the_decoder_is_made_once_and_rows_stop_at_their_sequences(
    model, tokenizer, theirs, monkeypatch
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
        {"num_beams": 3, "min_length": 20},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 6, "until": ["e"]},
        {"bad_words_ids": [[102], [7, 8], [297]]},
        {"eos_token_id": [102, 297]},
        {"do_sample": False, "temperature": 0.7, "top_k": 5, "top_p": 0.5},
        {"temperature": 0.0},
        {"until": ["r", "pirin"]},
        {"until": ["pirin", "r"]},
        {"until": ["<|endoftext|>", "asp"]},
    ],
    ids=str,
)
def test_generation_settings_have_the_texts_of_the_hf_backend(ours, one_by_one, settings):
    rng, settings = np.random.default_rng(5), {"max_gen_toks": 10, **settings}
    sent = requests("generate_until", [(text(rng, 1, n), settings) for n in (3, 9, 20, 50)])
    assert ours.generate_until(sent) == one_by_one.generate_until(sent)


@pytest.mark.parametrize(
    "entries",
    [
        {"num_beams": 3, "length_penalty": 2.0},
        {"max_new_tokens": 3},
        {"do_sample": True, "temperature": 0.5, "top_p": 0.9},
        {"repetition_penalty": 5.0, "max_length": 9},
        {"eos_token_id": "\x0c"},
    ],
    ids=str,
)
def test_a_checkpoints_generation_config_applies_as_in_the_hf_backend(
    exported, tokenizer, tmp_path, entries, one_by_one
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


def test_a_tokenizer_that_adds_a_begin_of_text_scores_as_the_hf_backend(model, tokenizer):
    import torch
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import GPT2Config as PeerConfig
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    from biomedlm_jax.interop.weights import file_name, places, tensor_reader
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
        for name in places(model)
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


def test_repeats_sample_and_answers_are_extracted(exported, tasks, tmp_path):
    run = {"tasks": ["reasoned"], "task_directory": tasks, "limit": 5}
    results = [evaluate_tasks([exported], tmp_path / n, **run) for n in ("one", "two")]
    rows = results[0]["samples"]["reasoned"]
    samples = [row["resps"][0] for row in rows if row["filter"] == "voted"]
    assert [len(of_question) for of_question in samples] == [4] * 5
    assert sum(len(set(of_question)) for of_question in samples) > 10
    again = [row["resps"][0] for row in results[1]["samples"]["reasoned"]]
    assert [row["resps"][0] for row in rows] == again
    for row in rows:
        words = [(re.findall("[a-z]+", one) or ["[invalid]"])[0] for one in row["resps"][0]]
        voted = max(words, key=words.count) if row["filter"] == "voted" else words[0]
        assert row["filtered_resps"] == [voted]
        assert " is" in row["arguments"][0][0].split("\n\n")[0]  # the answered question before
    scores = results[0]["results"]["reasoned"]
    assert {"exact_match,voted", "exact_match,first"} <= {*scores}


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


def test_the_command_line_of_lm_eval_runs_it(exported, tasks, tmp_path):
    command = [sys.executable, "-m", "biomedlm_jax.qa.harness", "--model", "biomedlm"]
    command += ["--model_args", f"path={exported},dtype=float32", "--tasks", "own_questions"]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path), "--log_samples"]
    done = subprocess.run([*command, "--limit", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "own_questions" in done.stdout
    (file,) = tmp_path.rglob("results_*.json")
    config = json.loads(file.read_text())["config"]
    assert config["model"] == "biomedlm"
    assert len(config["model_sha"]) == 64


OWN_TASK = """
import pathlib, sys
import datasets
from datasets import Dataset

row = {"question": "what", "correct_answer": "fever", "support": "the dose"}
row |= {f"distractor{n}": word for n, word in enumerate(("cough", "blood", "of"), 1)}
made = Dataset.from_list([row] * 5)
cache = pathlib.Path(datasets.config.HF_DATASETS_CACHE, "allenai___sciq", "default", "0.0.0", "ab")
for split in ("train", "validation", "test"):
    made.to_parquet(cache.parent / f"{split}.parquet")
files = {split: str(cache.parent / f"{split}.parquet") for split in ("train", "validation", "test")}
own = str(cache.parents[3] / "own")
builder = datasets.load_dataset_builder("parquet", data_files=files, cache_dir=own)
builder.download_and_prepare()
import shutil
shutil.copytree(builder.cache_dir, cache)
for file in cache.glob("parquet-*"):
    file.rename(file.with_name(file.name.replace("parquet-", "sciq-")))
from biomedlm_jax.cli import main

sys.exit(main(sys.argv[1:]))
"""


def test_a_task_of_lm_eval_runs_by_name_from_the_offline_cache(exported, tmp_path):
    command = [sys.executable, "-c", OWN_TASK, "evaluate", f"--model={exported}"]
    command += ["--harness_tasks=sciq", f"--out={tmp_path / 'out'}", "--limit=3", "--num_fewshot=2"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert table["n-samples"]["sciq"] == {"original": 5, "effective": 3}
    assert table["n-shot"]["sciq"] == 2
    # Another task's data set is not in the cache: one line.
    command[-3:] = ["--harness_tasks=piqa", f"--out={tmp_path / 'other'}"]
    command[2] = "import sys; from biomedlm_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [word for word in command if word != "--harness_tasks=sciq"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "piqa" in done.stderr.splitlines()[-1]


def test_one_context_is_one_prefix_until_its_branches_fill_a_row():
    prompts, groups = shared_prefixes([([7, 8], [1] * 4), ([9], [2]), *[([7, 8], [3, 3])] * 5], 10)
    assert groups == [[0, 2, 3, 4], [1], [5, 6]]
    assert [len(p.branches) for p in prompts] == [4, 1, 2]
    assert [p.prefix for p in prompts] == [[7, 8], [9], [7, 8]]


def test_an_answer_longer_than_the_model_is_refused(ours):
    with pytest.raises(ValueError, match="48 positions"):
        ours.loglikelihood(requests("loglikelihood", [("fever", " ø" * 60)]))


def test_the_command_writes_results_and_samples(exported, tasks, tmp_path, capsys):
    out = tmp_path / "results"
    arguments = ["evaluate", f"--model={exported}", "--harness_tasks=own_questions", f"--out={out}"]
    assert main([*arguments, f"--harness_directory={tasks}"]) == 0
    assert "own_questions" in capsys.readouterr().out
    results = json.loads((out / "harness.json").read_text())
    assert results["results"]["own_questions"]["sample_len"] == 12
    (file,) = out.glob(f"{exported.name}/results_*.json")
    assert json.loads(file.read_text())["results"] == results["results"]
    assert results["model_source"] == results["config"]["model"] == "biomedlm"
    assert results["model_name"] == results["config"]["model_args"]["path"] == str(exported)
    assert len(results["config"]["tokenizer_sha"]) == 64
    written = results["config"]
    assert written["command"]
    assert biomedlm_jax.__version__ in written["version"]
    assert datetime.datetime.fromisoformat(written["date"]).tzinfo is not None
    (file,) = out.glob(f"{exported.name}/samples_own_questions_*.jsonl")
    lines = file.read_text().splitlines()
    assert len(lines) == 12
    assert "gen_args_0" in json.loads(lines[0])["arguments"]
    evaluate.FLAGS.unparse_flags()
    assert main([*arguments, f"--harness_directory={tasks}"]) == 2
    assert "another directory" in capsys.readouterr().err


SAMPLED = ["--harness_tasks=own_questions", "--harness_directory={tasks}"]


def test_shots_and_chosen_questions(exported, tasks, tmp_path):
    messages: list[str] = []
    run = {"task_directory": tasks, "notify": messages.append}
    names = ["generated_0", "own_questions"]
    samples = {"generated_0": [4, 2], "own_questions": [0]}
    results = evaluate_tasks(
        [exported], tmp_path / "out", tasks=names, samples=samples, num_fewshot=2, **run
    )
    rows = results["samples"]["generated_0"]
    assert [row["doc_id"] for row in rows] == [4, 2]
    assert results["n-shot"]["generated_0"] == 2
    assert rows[0]["arguments"][0][0].count("\n\n") == 2
    file = tmp_path / "samples.json"
    file.write_text(json.dumps({"own_questions": [3]}))
    results = evaluate_tasks(
        [exported], tmp_path / "other", tasks=names[1:], samples=str(file), **run
    )
    assert [row["doc_id"] for row in results["samples"]["own_questions"]] == [3]
    evaluate_tasks(
        [exported], tmp_path / "other", tasks=names[:1], limit=0.5, overwrite=True, **run
    )
    (file,) = (tmp_path / "other").rglob("results_*.json")
    sizes = json.loads(file.read_text())["n-samples"]["generated_0"]
    assert sizes == {"original": 12, "effective": 6}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--harness_tasks=nothing", "--harness_directory={tasks}"], "own_questions, "),
        (["--harness_tasks=own_questions", "--harness_directory=nowhere"], "no directory"),
        (["--harness_tasks=own_questions"], "lm-eval has no such task"),
        (["--harness_tasks=own_questions", "--shots=3"], "--shots with --harness_tasks"),
        (["--task=medqa", "--num_fewshot=3"], "--num_fewshot with --task"),
        ([*SAMPLED, '--samples={{"nothing": [1]}}'], "samples of nothing; expected some of own"),
        ([*SAMPLED, '--samples={{"own_questions": [12]}}'], "numbers from 0 to 11"),
        ([*SAMPLED, "--samples={{}}", "--limit=3"], "both a limit and samples"),
        ([*SAMPLED, "--samples=nowhere.json"], "nowhere.json"),
        (["--harness_tasks=own_questions", "--task=medqa"], "give either"),
        ([], "give either"),
    ],
)
def test_the_command_refuses_in_one_line(exported, tasks, tmp_path, capsys, more, message):
    more = [argument.format(tasks=tasks) for argument in more]
    assert main(["evaluate", f"--model={exported}", f"--out={tmp_path / 'out'}", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


WITHOUT = """
import sys
from importlib.machinery import PathFinder

hidden, find = {hidden}, PathFinder.find_spec


def find_the_rest(name, path=None, target=None):
    return None if name.split(".")[0] in hidden else find(name, path, target)


PathFinder.find_spec = staticmethod(find_the_rest)
from biomedlm_jax.cli import main

code = main(sys.argv[1:])
assert not {{name.split(".")[0] for name in sys.modules}} & set(hidden)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("hidden", "code"), [(["torch", "transformers"], 0), (["lm_eval"], 2)], ids=str
)
def test_it_needs_lm_eval_but_not_torch(exported, tasks, tmp_path, hidden, code):
    command = [sys.executable, "-c", WITHOUT.format(hidden=hidden), "evaluate"]
    command += [f"--model={exported}", "--harness_tasks=own_questions", f"--out={tmp_path / 'o'}"]
    done = subprocess.run(
        [*command, f"--harness_directory={tasks}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "pip install 'biomedlm-jax[harness]'" in done.stderr
        assert done.stderr.count("\n") == 1
