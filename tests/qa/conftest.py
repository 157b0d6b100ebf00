"""Answered questions, rows and files of questions; a random checkpoint and tasks of lm-eval."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.qa.formats import FORMATS, to_questions
from biomedlm_jax.qa.question_rows import Row
from biomedlm_jax.qa.questions import Skipped
from biomedlm_jax.qa.summary import summarise

CLASSES = ("maybe", "no", "yes")
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
WITH_SHOTS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, train: {file}}}}}
test_split: test
fewshot_split: train
"""
ONE_SHOT = WITH_SHOTS + "fewshot_config: {{sampler: first_n}}\nnum_fewshot: 1\n"
GENERATED = (
    WITH_SHOTS
    + """
output_type: generate_until
doc_to_text: "{text}"
doc_to_target: "{{{{options[0]}}}}"
generation_kwargs: {settings}
metric_list: [{{metric: exact_match}}]
"""
)
TEXTS = ["{{question}}", "Q: {{question}} A:", "{{options[0]}}, {{question}} of"]
SETTINGS = [
    {"until": ["\n"], "max_gen_toks": 8},
    {"until": ["a", "in"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7},
    {"until": ["<|endoftext|>"], "max_gen_toks": 8, "repetition_penalty": 1.2},
]
COT = (
    ONE_SHOT
    + """
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
)
# Tasks for a chat template: a system message and a shot; the second has the start of the answer.
CHATS = {
    "chosen": """
output_type: multiple_choice
doc_to_choice: "{{{{options}}}}"
doc_to_target: label
""",
    "begun": """
output_type: generate_until
gen_prefix: So
doc_to_target: "{{{{options[0]}}}}"
generation_kwargs: {{until: ['.'], max_gen_toks: 6}}
metric_list: [{{metric: exact_match}}]
""",
}
CHAT_PROMPT = 'description: "the dose"\ndoc_to_text: "{{{{options[0]}}}}"\n'
CODED = """
task: coded
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
repeats: 4
unsafe_code: true
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: e
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: true, temperature: 1.5, top_k: 40}}
filter_list:
  - {{name: made, filter: [{{function: custom, filter_fn: !function passing.predictions}}]}}
metric_list:
  - {{metric: !function passing.pass_at_k, k: [1, 2], aggregation: mean, higher_is_better: true}}
"""
PASSING = """
from math import comb


def pass_at_k(references, predictions, k):
    (texts,) = predictions
    passed = sum(references[0] in text.split("|")[-1] for text in texts)
    return {{f"pass@{{n}}": 1 - comb(len(texts) - passed, n) / comb(len(texts), n) for n in k}}


def predictions(resps, docs):
    return [[doc["question"] + "|" + text for text in of_doc] for of_doc, doc in zip(resps, docs)]
""".replace("{{", "{").replace("}}", "}")


def answered(n=60, *, share=0.6, seed=0, groups=0):
    rng = np.random.default_rng(seed)
    items = []
    for index in range(n):
        gold, options = index % 3, 3
        prediction = gold if rng.random() < share else (gold + 1) % 3
        scores = rng.normal(size=options)
        scores[prediction] = scores.max() + 0.5
        probabilities = np.exp(scores) / np.exp(scores).sum()
        items.append(
            {
                "id": f"q{index}",
                "gold": gold,
                "prediction": prediction,
                "scores": scores.tolist(),
                "probabilities": probabilities.tolist(),
                "options": ["yes", "no\u2028", "β \ud800 \0"],
                "truncated": index == 7,
                "group": f"family {index % groups}" if groups else None,
            }
        )
    return items


@pytest.fixture
def questions():
    """questions(n, share=of right answers, seed=, groups=) returns n answered questions."""
    return answered


@pytest.fixture
def full_summary():
    """The summary of three seeds with all that a summary may have."""
    return summarise(
        *(answered(seed=n) for n in range(3)),
        name="pubmedqa",
        what="classifier",
        published={"BioMedLM": 74.4, "GPT | 4": 75.2},
        published_split="test",
        with_macro_f1=True,
        baseline=[answered(share=0.4, seed=9)],
        baseline_name="not pre-trained",
    )


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def compared(path, setting, dev):
    return {
        "path": path,
        "weights": f"w-{path}",
        "tokenizer": "t",
        "chat_template": False,
        "setting": setting,
        "tied": [],
        "dev": {k: interval(v) for k, v in dev.items()},
        "accuracy": interval(0.5),
        "macro_f1": None,
        "truncated": 0,
        "not_chosen": None,
        "trained_on": False,
        "chose_checkpoint": False,
        "trained_on_dev": False,
    }


def different():
    """Two questions of one kind, of 30, and none of the others."""
    texts = {"question": "Which <drug>?", "context": "", "subject": "", "options": ["a & b", "c"]}
    listed = [{"id": id, **texts, "gold": 1, "model": 1, "base": 0} for id in ("q1", "q2")]
    none = {"n": 0, "listed": []}
    return {"only_model": {"n": 30, "listed": listed}, "only_base": none, "both_wrong": none}


@pytest.fixture
def comparison():
    """What `versus` returns of a model and its base."""
    base = compared("b|ase", "letter", {"letter": 0.4, "option": 0.3})
    dev = {"letter": 0.3, "option": 0.6, "letter, chat template": 0.6}
    model = {**compared("child", "option", dev), "chat_template": True}
    model["tied"] = ["letter, chat template"]
    questions = {"path": "d", "hash": "h-test", "limit": None, "in_split": 40}
    versus = {"difference": interval(0.05), "p_value": 0.0004, "only_first": 9, "only_second": 7}
    return {
        "task": "medqa, test",
        "n": 40,
        "groups": None,
        "chance": 0.25,
        "bootstrap": {"level": 0.95, "resamples": 10_000, "seed": 0},
        "chosen_on": {"split": "dev", "path": "d", "n": 20, "hash": "h-dev", "left_out": ["x"]},
        "not_chosen_because": "",
        "models": {"base": base, "model": model},
        "versus": {**versus, "test": "McNemar's exact test"},
        "disagreements": different(),
        "base_in_record": None,
        "skipped": {"left_out": {"no answer": ["x1"]}},
        "provenance": {
            "questions": questions,
            "shots": {"count": 0, "hash": None},
            "version": "v",
            "date": "now",
            "command": "c",
        },
    }


def refuse(problem):
    raise ValueError(problem)


@pytest.fixture
def check():
    """check(*fields, format=...) returns the questions of rows with these fields."""

    def parse(*fields, format="questions", refuse=refuse, skipped=None, first=None, **options):
        first = int(format == "medmcqa") if first is None else first
        rows = [Row(Path("f"), n, one, first) for n, one in enumerate(fields, 1)]
        return to_questions(rows, format, CLASSES, refuse, skipped or Skipped(), **options)

    return parse


@pytest.fixture
def read():
    """read(path, format, content) writes the file, and returns its rows."""

    def rows(path, format, content, refuse=refuse):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(FORMATS[format].read(path, refuse))

    return rows


def text(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


@pytest.fixture(name="text", scope="module")
def _text():
    return text


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
def exported(model, tokenizer, tmp_path_factory):
    return export_hf(model, tokenizer, tmp_path_factory.mktemp("harness") / "model")


def hf_backend(folder):
    from lm_eval.models.huggingface import HFLM

    backend: Any = HFLM
    settings = {"device": "cpu", "dtype": "float32", "attn_implementation": "eager"}
    return backend(pretrained=str(folder), **settings)


@pytest.fixture(name="hf_backend", scope="module")
def _hf_backend():
    return hf_backend


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
def one_by_one(exported, hf_backend):
    """The `hf` backend without batches, where no row delays the stop of another."""
    return hf_backend(exported)


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
    (folder / "passing.py").write_text(PASSING)
    for name, more in CHATS.items():
        whole = (ONE_SHOT + CHAT_PROMPT + more).format(name=name, file=file)
        (folder / f"{name}.yaml").write_text(whole)
    for name, template in (("reasoned", COT), ("coded", CODED)):
        whole = template.format(name=name, file=file)
        (folder / f"{name}.yaml").write_text(whole)
        alike = whole.replace("top_k: 40", "top_k: 1").replace(name, f"{name}_alike")
        (folder / f"{name}_alike.yaml").write_text(alike)
    once = COT.format(name="reasoned_once", file=file)
    once = once.replace("repeats: 4", "repeats: 1")
    once = once.replace("do_sample: true, temperature: 1.5, top_k: 40", "do_sample: false")
    (folder / "reasoned_once.yaml").write_text(once)
    return folder


def assert_equal_answers(got, expected):
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    sums, expected_sums = ([summed for summed, _ in answers] for answers in (got, expected))
    np.testing.assert_allclose(sums, expected_sums, atol=1e-4)


@pytest.fixture(name="assert_equal_answers", scope="module")
def _assert_equal_answers():
    return assert_equal_answers
