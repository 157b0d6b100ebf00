"""Harness: a model as lm-evaluation-harness sees one, and its tasks run on local task files.

Needs the extra `harness`; neither torch nor transformers. Requests with the same context are scored
as branches of one shared prefix, so a question is read once for all of its options.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.generation.options import as_texts
from biomedlm_jax.generation.text import Generator, generate_until
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.qa.rows import continuation_prompts
from biomedlm_jax.qa.scoring import BATCH_TOKENS, log_probabilities
from biomedlm_jax.qa.setup import read_head
from biomedlm_jax.qa.tuned import best_of

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
except ModuleNotFoundError as error:
    advice = "pip install 'biomedlm-jax[harness]'"
    raise ValueError(f"harness tasks need {error.name}, not installed; {advice}") from None

NEW_TOKENS = 256  # where a task does not say how many: what the `hf` backend takes
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
ROWS = 8  # prompts that are continued together
RESULTS, SAMPLES = "harness.json", "samples_{}.jsonl"


class Harness(TemplateLM):
    """`lm_eval.simple_evaluate(Harness(model, tokenizer), tasks=...)` evaluates the model.

    Texts become tokens, and long ones are cut, as in the harness's `hf` backend; so the answers
    are the same, request by request. They do not depend on which requests come together. On
    several hosts every process computes all of them.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, batch_tokens: int = BATCH_TOKENS):
        super().__init__()
        self._model, self._tokens, self._batch_tokens = model, tokenizer, batch_tokens

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token; it also stands before a text that nothing precedes."""
        return self._model.config.eos_token_id

    @property
    def max_length(self) -> int:
        """Positions of the model."""
        return self._model.config.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Token ids; no special ones are added unless asked for."""
        return self._tokens.encode(string, add_special_tokens=bool(add_special_tokens)).ids

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        prompts, groups = shared_prefixes([request[1:] for request in requests], self.max_length)
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for group, branch, logp, likeliest in log_probabilities(
            self._model, prompts, batch_tokens=self._batch_tokens
        ):
            number = groups[group][branch]
            answers[number] = float(logp.sum(dtype=np.float64)), bool(likeliest.all())
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:  # the windows of a longer text are no requests of their own
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of texts of any length, in windows as long as the model allows."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            of_text = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            cut = [(None, *utils.make_disjoint_window(window)) for window in of_text]
            windows += cut
            owners += [number] * len(cut)
        totals = [0.0] * len(requests)
        for number, (summed, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += summed
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuations, each up to its first stop sequence.

        A prompt that is too long loses its start. Raises ValueError where a task asks for samples,
        or for as many new tokens as the model has positions.
        """
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            asked = request.args[1]
            if asked.get("do_sample") or float(asked.get("temperature") or 0) > 0:
                raise ValueError(
                    f"a task's generation_kwargs are {asked}; set do_sample: false, for the "
                    "harness plug-in only decodes greedily"
                )
            lengths = [int(asked[name]) for name in LENGTHS if asked.get(name) is not None]
            new_tokens = lengths[0] if lengths else NEW_TOKENS
            if new_tokens >= self.max_length:
                raise ValueError(
                    f"a task asks for {new_tokens} new tokens, and the model has "
                    f"{self.max_length} positions; lower max_gen_toks in its generation_kwargs"
                )
            stops = tuple(stop for stop in as_texts(asked.get("until") or ()) if stop)
            alike.setdefault((new_tokens, stops), []).append(number)
        answers = [""] * len(requests)
        for (new_tokens, stops), numbers in alike.items():

            def keep(place: int, text: str, numbers: list[int] = numbers) -> None:
                answers[numbers[place]] = text
                arguments = requests[numbers[place]].args
                self.cache_hook.add_partial("generate_until", arguments, text)

            generate_until(
                self._generator,
                [self.tok_encode(requests[number].args[0]) for number in numbers],
                until=stops,
                max_new_tokens=new_tokens,
                batch_size=ROWS,
                notify=keep,
            )
        return answers

    @functools.cached_property
    def _generator(self) -> Generator:
        """The model laid out for decoding: a copy, made when a task first generates."""
        return Generator(self._model, self._tokens)


def shared_prefixes(
    pairs: Sequence[tuple[list[int], list[int]]], max_length: int
) -> tuple[list[Prompt], list[list[int]]]:
    """(context, continuation) pairs -> prompts that share equal contexts, and each one's members.

    `groups[prompt.question][option]` is the pair's number. A context stands once for continuations
    of up to `max_length` tokens in all, so that no row grows with the number of requests.
    """
    groups: list[list[int]] = []
    open_groups: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        group, used = open_groups.get(tuple(context), (None, 0))
        if group is None or used + len(continuation) > max_length:
            groups.append(group := [])
            used = 0
        group.append(number)
        open_groups[tuple(context)] = group, used + len(continuation)
    prompts = []
    for question, group in enumerate(groups):
        context, branches = pairs[group[0]][0], [pairs[number][1] for number in group]
        of = {"question": question, "max_length": max_length}
        prompts += continuation_prompts(context, branches, **of)[0]
    return prompts, groups


def run_tasks(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    task_directory: str | Path,
    *,
    limit: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> dict:
    """Run tasks whose YAML files lie in `task_directory`, and return the harness's results.

    No others are known, so only a task file that names data there uses the network. `limit` takes
    that many questions of each. Raises FileNotFoundError (directory) or ValueError (task).
    """
    if not task_directory or not Path(task_directory).is_dir():
        raise FileNotFoundError(f"no directory with the tasks' YAML files: {task_directory}")
    # Imported here: these read every library of metrics and data sets that the harness uses.
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(task_directory), include_defaults=False)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        raise ValueError(
            f"got the harness tasks {list(tasks)}; {task_directory} has "
            f"{', '.join(manager.all_tasks) or 'none'}"
        )
    return simple_evaluate(
        Harness(model, tokenizer, batch_tokens=batch_tokens),
        tasks=list(tasks),
        limit=limit,
        task_manager=manager,
        torch_random_seed=None,
    )


def evaluate_tasks(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    tasks: Sequence[str],
    task_directory: str | Path,
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    notify: Callable[[str], None] = print,
) -> dict:
    """`run_tasks` on a run or Hugging Face directory; writes results and samples into `out`.

    `notify` is told the harness's table. Raises ValueError, FileNotFoundError or FileExistsError.
    """
    keep_freed_memory()
    out = Path(out)
    if len(models) != 1 or read_head(best_of(models[0])) is not None:
        raise ValueError(f"got {list(models)}; harness tasks take one model, without a head")
    others = [path.name for path in out.iterdir() if not _ours(path)] if out.exists() else []
    if others or ((out / RESULTS).exists() and not overwrite):
        raise FileExistsError(f"{out} holds {(*others, RESULTS)[0]}; name another directory")
    model, tokenizer = load(models[0])
    if tokenizer is None:
        raise ValueError(f"{models[0]} has no tokenizer, and tasks are text")
    results = run_tasks(model, tokenizer, tasks, task_directory, batch_tokens=batch_tokens)
    samples = results.pop("samples")
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in samples.items():
            lines = "".join(_json(row) + "\n" for row in rows)
            (out / SAMPLES.format(name)).write_text(lines, encoding="utf-8")
        (out / RESULTS).write_text(_json(results, indent=2) + "\n", encoding="utf-8")
    notify(utils.make_table(results))
    return {**results, "samples": samples}


def _ours(path: Path) -> bool:
    return path.name == RESULTS or path.match(SAMPLES.format("*"))


def _json(value, **options) -> str:
    return json.dumps(value, default=utils.handle_non_serializable, **options)
