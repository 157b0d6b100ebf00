"""The harness plug-in beside the harness's own `hf` backend, on one exported random checkpoint."""

import json
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
    ("settings", "message"),
    [({"do_sample": True}, "greedily"), ({"max_gen_toks": 48}, "48 positions"), ({}, "256 new")],
)
def test_generation_settings_that_are_refused(ours, settings, message):
    with pytest.raises(ValueError, match=message):
        ours.generate_until(requests("generate_until", [("the dose", settings)]))


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
    lines = (out / "samples_own_questions.jsonl").read_text().splitlines()
    assert len(lines) == 12
    evaluate.FLAGS.unparse_flags()
    assert main([*arguments, f"--harness_directory={tasks}"]) == 2
    assert "another directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--harness_tasks=nothing", "--harness_directory={tasks}"], "has own_questions"),
        (["--harness_tasks=own_questions", "--harness_directory=nowhere"], "no directory"),
        (["--harness_tasks=own_questions"], "no directory"),
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
