"""Tasks beside the harness's own `hf` backend, the files written, and what is refused."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from math import comb
from typing import Any

import numpy as np
import pytest

import biomedlm_jax
from biomedlm_jax.cli import main
from biomedlm_jax.commands import evaluate
from biomedlm_jax.mesh import make_mesh
from biomedlm_jax.qa import harness_tasks
from biomedlm_jax.qa.harness_tasks import evaluate_tasks


@pytest.fixture(autouse=True)
def fresh_flags():
    evaluate.FLAGS.unparse_flags()  # a repeated flag would add to the last call's
    return


@pytest.fixture(autouse=True)
def no_list_of_packages(monkeypatch):
    """`pip list`, whose output lm-eval adds to its results, takes a second."""
    collect_env = pytest.importorskip("torch.utils.collect_env", reason="torch: the extra `dev`")
    monkeypatch.setattr(collect_env, "get_pip_packages", lambda *arguments: ("pip", ""))


def test_a_task_has_the_answers_of_the_hf_backend_request_by_request(
    exported, theirs, tasks, tmp_path, assert_equal_answers
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


CHAT = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_tasks_in_a_chat_template_are_those_of_the_hf_backend(
    exported, hf_backend, tasks, tmp_path, assert_equal_answers
):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    path = shutil.copytree(exported, tmp_path / "model")
    (path / "chat_template.jinja").write_text(CHAT)
    named = {"tasks": ["chosen", "begun"], "limit": 5}
    got = evaluate_tasks(
        [path], tmp_path / "out", task_directory=tasks, chat_template=True, **named
    )
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    run: Any = simple_evaluate
    expected = run(hf_backend(path), task_manager=manager, apply_chat_template=True, **named)
    (written,) = tmp_path.rglob("results_*.json")
    assert json.loads(written.read_text())["chat_template"] == CHAT
    for name in named["tasks"]:
        for ours, other in zip(*(r["samples"][name] for r in (got, expected)), strict=True):
            assert ours["arguments"] == other["arguments"]
            context = ours["arguments"][0][0]
            assert context.startswith("<|endoftext|><system>the dose<|endoftext|><user>")
            assert context.endswith("<assistant>" + "So" * (name == "begun"))
            if name == "begun":
                assert ours["filtered_resps"] == other["filtered_resps"]
            else:
                assert_equal_answers(ours["filtered_resps"], other["filtered_resps"])


KINDS = ("choice", "likelihood", "rolling", "generated")


@pytest.mark.slow
def test_three_tasks_of_each_request_type_are_those_of_the_hf_backend(
    exported, one_by_one, tasks, tmp_path, assert_equal_answers
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


@pytest.mark.slow
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


def assert_tasks_are_those_of_the_hf_backend(exported, peer, tasks, names, out, **run):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    got = evaluate_tasks([exported], out, tasks=names, task_directory=tasks, limit=6, **run)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs: Any = simple_evaluate
    expected = theirs(peer, tasks=names, task_manager=manager, limit=6, **run)
    for name in names:
        for field in ("arguments", "resps", "filtered_resps", "filter"):
            values = [[row[field] for row in r["samples"][name]] for r in (got, expected)]
            assert values[0] == values[1], (name, field)
        assert got["results"][name] == expected["results"][name]
    return got


@pytest.mark.slow
def test_repeats_with_votes_and_extraction_are_those_of_the_hf_backend(
    exported, one_by_one, tasks, tmp_path
):
    """With top_k=1 the samples of both libraries are one; the next tests have different ones."""
    names = ["reasoned_alike", "reasoned_once"]
    arguments = exported, one_by_one, tasks, names, tmp_path / "out"
    got = assert_tasks_are_those_of_the_hf_backend(*arguments)
    rows = got["samples"]["reasoned_alike"]
    assert {len(row["resps"][0]) for row in rows} == {4}
    assert len({row["resps"][0][0] for row in rows}) > 2


@pytest.mark.slow
def test_pass_at_k_is_that_of_the_hf_backend(exported, one_by_one, tasks, tmp_path):
    run = {"confirm_run_unsafe_code": True}
    arguments = exported, one_by_one, tasks, ["coded_alike"], tmp_path / "out"
    got = assert_tasks_are_those_of_the_hf_backend(*arguments, **run)
    rows = got["samples"]["coded_alike"]
    assert (
        rows[0]["filtered_resps"][0][0] == f"{rows[0]['doc']['question']}|{rows[0]['resps'][0][0]}"
    )
    of_task = {"tasks": ["coded"], "task_directory": tasks, "limit": 6}
    results = evaluate_tasks([exported], tmp_path / "sampled", **of_task, **run)
    rows = results["samples"]["coded"]
    passed = [sum("e" in one for one in row["resps"][0]) for row in rows]
    assert {len(row["resps"][0]) for row in rows} == {4}
    one, two = (np.mean([1 - comb(4 - n, k) / comb(4, k) for n in passed]) for k in (1, 2))
    figures = results["results"]["coded"]
    assert (figures["pass@1,made"], figures["pass@2,made"]) == pytest.approx((one, two))
    assert 0 < one < two
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        evaluate_tasks([exported], tmp_path / "refused", **of_task)


WITHOUT = """
import sys
from importlib.machinery import PathFinder

hidden, find = {hidden}, PathFinder.find_spec


def find_the_rest(name, path=None, target=None):
    return None if name.split(".")[0] in hidden else find(name, path, target)


PathFinder.find_spec = staticmethod(find_the_rest)
"""
OWN_TASK = """
import pathlib, shutil
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
shutil.copytree(builder.cache_dir, cache)
for file in cache.glob("parquet-*"):
    file.rename(file.with_name(file.name.replace("parquet-", "sciq-")))
"""
COMMAND = """
from biomedlm_jax.cli import main
from biomedlm_jax.commands import evaluate

for arguments in {calls}:
    evaluate.FLAGS.unparse_flags()
    print("code", main(arguments))
assert not {{name.split(".")[0] for name in sys.modules}} & set(hidden)
"""


def codes_without(hidden, calls, *, code="", **environment):
    """The exit codes of commands in a process that lacks some packages, and its errors' lines."""
    code = WITHOUT.format(hidden=hidden) + code + COMMAND.format(calls=calls)
    run = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, **run)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return re.findall(r"^code (\d+)$", done.stdout, re.MULTILINE), done.stderr.splitlines()


@pytest.mark.slow
def test_a_task_of_lm_eval_runs_by_name_from_the_offline_cache_without_torch(exported, tmp_path):
    command = ["evaluate", f"--model={exported}", "--limit=3", "--num_fewshot=2"]
    commands = [
        [*command, f"--harness_tasks={name}", f"--out={tmp_path / name}"]
        for name in ("sciq", "nothing", "piqa")
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    hidden = ["torch", "transformers"]
    codes, errors = codes_without(hidden, commands, code=OWN_TASK, **offline)
    assert codes == ["0", "2", "2"]  # the last one's data set is not in the cache
    assert sum("lm-eval has no such task" in line for line in errors) == 1
    assert "piqa" in errors[-1]
    table = json.loads((tmp_path / "sciq" / "harness.json").read_text())
    assert table["n-samples"]["sciq"] == {"original": 5, "effective": 3}
    assert table["n-shot"]["sciq"] == 2


def test_it_needs_lm_eval(exported, tasks, tmp_path):
    command = ["evaluate", f"--model={exported}", "--harness_tasks=own_questions"]
    command += [f"--out={tmp_path / 'o'}", f"--harness_directory={tasks}"]
    codes, (error,) = codes_without(["lm_eval"], [command])
    assert codes == ["2"]
    assert "pip install 'biomedlm-jax[harness]'" in error


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


@pytest.mark.slow
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
        (["--harness_tasks=own_questions", "--twins=skip"], "--twins with --harness_tasks"),
        (["--task=medqa", "--confirm_run_unsafe_code"], "--confirm_run_unsafe_code with --task"),
        ([*SAMPLED, '--samples={{"nothing": [1]}}'], "samples of nothing; expected some of own"),
        ([*SAMPLED, '--samples={{"own_questions": [12]}}'], "numbers from 0 to 11"),
        ([*SAMPLED, "--samples={{}}", "--limit=3"], "both a limit and samples"),
        ([*SAMPLED, "--samples=nowhere.json"], "nowhere.json"),
        ([*SAMPLED, "--limit=2.5"], "got limit=2.5; expected a number of questions"),
        ([*SAMPLED, "--limit=nan"], "got limit=nan"),
        (["--harness_tasks=own_questions", "--task=medqa"], "give either"),
        ([], "give either"),
    ],
)
def test_the_command_refuses_in_one_line(
    exported, tasks, tmp_path, capsys, more, message, monkeypatch
):
    (tmp_path / "empty").mkdir()
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=str(tmp_path / "empty"), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "_own_tasks", lambda: own)  # lm-eval's take 5 s to read
    more = [argument.format(tasks=tasks) for argument in more]
    assert main(["evaluate", f"--model={exported}", f"--out={tmp_path / 'out'}", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    progress = "examples/s"  # of `datasets`, which reads the questions for the first time
    assert len([line for line in error.splitlines() if line and progress not in line]) == 1
    assert not (tmp_path / "out").exists()
