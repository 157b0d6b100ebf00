"""A model behind lm-evaluation-harness's interface (extra `harness`); tasks from local files."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.corpus.tokenizer import special_id, start_id
from biomedlm_jax.files import atomic_directory, check_output, write_text
from biomedlm_jax.generation.generator import Generator, generate_until
from biomedlm_jax.generation.options import as_texts
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.qa.evaluation import check_model
from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.qa.prompts import continuation_prompts
from biomedlm_jax.qa.scoring import BATCH_TOKENS, branch_log_probabilities

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
except ModuleNotFoundError as error:
    advice = "pip install 'biomedlm-jax[harness]'"
    raise ValueError(f"harness tasks need {error.name}, not installed; {advice}") from None

NEW_TOKENS = 256  # where a task has no limit, as in the `hf` backend
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
ROWS = 8  # prompts that are continued together
RESULTS, SAMPLES = "harness.json", "samples_{}.jsonl"


class Harness(TemplateLM):
    """For `lm_eval.simple_evaluate(Harness(model, tokenizer), tasks=...)`, as the `hf` backend."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, batch_tokens: int = BATCH_TOKENS
    ):
        super().__init__()
        self._model, self._tokens, self._batch_tokens = model, tokenizer, batch_tokens

    @property
    def eot_token_id(self) -> int:
        """Id of the tokenizer's end of text, by default the model's."""
        end = special_id(self._tokens, "eos_token")
        return self._model.config.eos_token_id if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """Id that precedes a text without a context: the tokenizer's bos, else its eos."""
        return start_id(self._tokens, self.eot_token_id)

    @property
    def max_length(self) -> int:
        """Positions of the model."""
        return self._model.config.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Return token ids, by default without special tokens."""
        return self._tokens.encode(string, add_special_tokens=bool(add_special_tokens)).ids

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        prompts, groups = shared_prefixes([request[1:] for request in requests], self.max_length)
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for group, branch, summed, greedy in branch_log_probabilities(
            self._model, prompts, batch_tokens=self._batch_tokens
        ):
            answers[groups[group][branch]] = summed, greedy
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:  # None: a window of a longer text
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Return log-probabilities of texts of any length, computed in windows of max_length."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            of_text = utils.get_rolling_token_windows(
                tokens, self.prefix_token_id, self.max_length, context_len=1
            )
            windows += [(None, *utils.make_disjoint_window(window)) for window in of_text]
            owners += [number] * (len(windows) - len(owners))
        sums = [summed for summed, _ in self._loglikelihood_tokens(windows)]
        totals = np.bincount(np.array(owners, int), sums, len(requests)).tolist()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Return the greedy continuations, each up to its first stop sequence."""
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(self._limits(request.args[1]), []).append(number)
        answers = [""] * len(requests)
        for (new_tokens, stops), numbers in alike.items():

            def keep(place: int, text: str, numbers: list[int] = numbers) -> None:
                answers[numbers[place]] = text
                self.cache_hook.add_partial("generate_until", requests[numbers[place]].args, text)

            prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            limits = {"until": stops, "max_new_tokens": new_tokens, "batch_size": ROWS}
            generate_until(self._generator, prompts, **limits, notify=keep)
        return answers

    def _limits(self, settings: dict) -> tuple[int, tuple[str, ...]]:
        """Return the new tokens and stop sequences of a task's generation_kwargs."""
        if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0:
            got = f"a task has generation_kwargs {settings}"
            raise ValueError(f"{got}, and this plug-in decodes greedily; set do_sample: false")
        limits = [int(settings[name]) for name in LIMITS if settings.get(name) is not None]
        new_tokens = next(iter(limits), NEW_TOKENS)
        if new_tokens >= self.max_length:
            got = f"a task has {new_tokens} new tokens, the model {self.max_length} positions"
            raise ValueError(f"{got}; lower max_gen_toks in its generation_kwargs")
        return new_tokens, tuple(stop for stop in as_texts(settings.get("until") or ()) if stop)

    @functools.cached_property
    def _generator(self) -> Generator:
        """The model laid out for decoding: a copy, made when a task first generates."""
        return Generator(self._model, self._tokens)


def shared_prefixes(
    pairs: Sequence[tuple[list[int], list[int]]], max_length: int
) -> tuple[list[Prompt], list[list[int]]]:
    """Return prompts that share equal contexts; `groups[question][option]` is a pair's number."""
    # Continuations that share a context have up to max_length tokens, which bounds a row.
    groups: list[list[int]] = []
    open_groups: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        group, used = open_groups.get(tuple(context), ([], 0))
        if not group or used + len(continuation) > max_length:
            groups.append(group := [])
            used = 0
        group.append(number)
        open_groups[tuple(context)] = group, used + len(continuation)
    shared = [("a request", pairs[group[0]][0], [pairs[n][1] for n in group]) for group in groups]
    return continuation_prompts(shared, max_length=max_length).prompts, groups


def evaluate_tasks(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    tasks: Sequence[str],
    task_directory: str | Path,
    limit: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    notify: Callable[[str], None] = print,
    **execution: Any,
) -> dict:
    """Run tasks on a run or Hugging Face directory; write results and samples into `out`.

    The tasks' YAML files are in `task_directory`. `limit` is the number of questions of each task;
    `notify` gets the harness's table, `execution` are fields of the model's config. Call it in
    every process; process 0 writes. Returns the harness's results.
    """
    from lm_eval import simple_evaluate  # slow to import, as all metrics and data sets come along
    from lm_eval.tasks import TaskManager

    keep_freed_memory()
    if not task_directory or not Path(task_directory).is_dir():
        raise FileNotFoundError(f"no directory with the tasks' YAML files: {task_directory}")
    manager = TaskManager(include_path=str(task_directory), include_defaults=False)
    if not tasks or {*tasks} - {*manager.all_tasks}:
        known = ", ".join(manager.all_tasks) or "none"
        raise ValueError(f"got the harness tasks {list(tasks)}; {task_directory} has {known}")
    if len(models) != 1 or check_model(models[0], mesh) is not None:
        raise ValueError(f"got {list(models)}; harness tasks take one model, without a head")

    def replaceable(path: Path) -> bool:
        return all(p.name == RESULTS or p.match(SAMPLES.format("*")) for p in path.iterdir())

    output = {"replaceable": replaceable, "overwrite": overwrite}
    writes = jax.process_index() == 0
    if writes:
        check_output(out, **output)
    model, tokenizer = load(models[0], mesh=mesh, **execution)
    assert tokenizer is not None  # checked above
    run: Any = simple_evaluate  # its decorator hides its parameters from type checkers
    harness = Harness(model, tokenizer, batch_tokens=batch_tokens)
    options = {"limit": limit, "task_manager": manager, "torch_random_seed": None}
    results = run(harness, tasks=list(tasks), **options)
    if writes:
        table = {name: value for name, value in results.items() if name != "samples"}
        with atomic_directory(out, **output) as new:
            for name, rows in results["samples"].items():
                write_text(new / SAMPLES.format(name), "".join(_json(row) + "\n" for row in rows))
            write_text(new / RESULTS, _json(table, indent=2) + "\n")
        notify(utils.make_table(results))
    return results


def _json(value, **options) -> str:
    return json.dumps(value, default=utils.handle_non_serializable, **options)
