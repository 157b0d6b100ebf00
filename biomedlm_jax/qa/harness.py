"""A model behind lm-evaluation-harness's interface (extra `harness`).

Importing this module registers the model name `biomedlm`. lm-eval looks for no plug-ins, so its own
command line is called through this module:

    python -m biomedlm_jax.qa.harness --model biomedlm --model_args path=RUN --tasks NAME
"""

import dataclasses
import datetime
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

import biomedlm_jax
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.corpus import chat_template as templates
from biomedlm_jax.corpus.tokenizer import prefix_token_id, special_id, tokenizer_hash
from biomedlm_jax.errors import InputError
from biomedlm_jax.generation.generator import Generator, answer_batches
from biomedlm_jax.generation.options import (
    RENAMED,
    Options,
    as_texts,
    make_options,
    read_generation_config,
)
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.mesh import make_mesh, platform
from biomedlm_jax.model.language_model import LanguageModel, parameter_count
from biomedlm_jax.qa.identity import run_environment
from biomedlm_jax.qa.models import check_model
from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.qa.prompts import continuation_prompts
from biomedlm_jax.qa.scoring import BATCH_TOKENS, branch_log_probabilities
from biomedlm_jax.training.provenance import weights_hash

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text
except ModuleNotFoundError as error:
    advice = "pip install 'biomedlm-jax[harness]'"
    problem = f"harness tasks need {error.name}, not installed; {advice}"
    if __name__ == "__main__":
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    raise InputError(problem) from None

NEW_TOKENS = 256  # where a task has no limit, as in the `hf` backend
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
ROWS = 8  # prompts that are continued together
MESH = {"data": -1, "fsdp": 1, "tensor": 1}
MARK = "\ue000"  # a private character: where the answer that is to be continued ends
# What `lm_eval --model_args` may set; lm-eval adds the last three.
ARGUMENTS = (
    "path", "dtype", "data", "fsdp", "tensor", "seed", "date", "batch_tokens",
    "batch_size", "max_batch_size", "device",
)  # fmt: skip
# Names of generation_kwargs: the options by transformers' names, less those that a task sets here.
NAMES = {field.name for field in dataclasses.fields(Options)}
KNOWN = {"do_sample", *RENAMED, *NAMES - {*RENAMED.values()}}
KNOWN -= {"num_return_sequences", "stop_strings", "max_new_tokens", "max_length", "seed"}


class Harness(TemplateLM):
    """For `lm_eval.simple_evaluate(Harness(model, tokenizer), tasks=...)`, as the `hf` backend.

    Answers are those of the `hf` backend at batch size 1: its larger batches decode every row until
    all have stopped. With num_beams each beam ends at its own stop sequence, as in transformers;
    that backend ends all of them when the best one has it.

    `batch_tokens` bound a batch that is scored, `batch_size` prompts are continued together; no
    answer depends on them. `seed` and a request's place decide its samples. `generation_config`
    are the entries of the model's generation_config.json, which a task's generation_kwargs
    override. `date`, YYYY-MM-DD, is what a chat template prints as today ("": the day it is).
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int = ROWS,
        seed: int = 0,
        date: str = "",
        generation_config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self._model, self._tokens, self._batch_tokens = model, tokenizer, batch_tokens
        self._batch_size, self._seed = batch_size, seed
        self._generation_config = dict(generation_config or {})
        self._today = date or datetime.date.today().isoformat()
        templates.fixed_date(self._today, name="date")
        self._template: templates.ChatTemplate | None = None

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None) -> "Harness":
        """Load a model for `lm_eval --model biomedlm --model_args path=DIR,dtype=float32`."""
        arguments = utils.simple_parse_args_string(arg_string)
        return cls.create_from_arg_obj(arguments, additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict, additional_config=None) -> "Harness":
        """Load the model at `path`; InputError for an argument that is unknown.

        lm-eval's default batch_size of 1, and auto, stand for the default here.
        """
        given = {**arg_dict, **(additional_config or {})}
        given = {name: value for name, value in given.items() if value is not None}
        unknown = sorted({*given} - {*ARGUMENTS})
        if unknown or "path" not in given:
            got = f"got model_args {unknown[0]}" if unknown else "got model_args without path"
            raise InputError(f"{got}; expected path and any of {', '.join(ARGUMENTS[1:])}")
        if "device" in given and str(given["device"]).split(":")[0] not in (platform(), "cuda"):
            raise InputError(f"got device={given['device']}; JAX uses {platform()}: leave it out")
        path, execution = str(given["path"]), {}
        if "dtype" in given:
            execution["compute_dtype"] = given["dtype"]
        keep_freed_memory()
        mesh = make_mesh(**{name: int(given.get(name, n)) for name, n in MESH.items()})
        if check_model(path, mesh) is not None:
            raise InputError(f"{path} has a classification head; harness tasks need none")
        model, tokenizer = load(path, mesh=mesh, **execution)
        assert tokenizer is not None  # checked above
        rows = str(given.get("batch_size", 1)).split(":")[0]
        numbers = {name: int(given[name]) for name in ("batch_tokens", "seed") if name in given}
        numbers["batch_size"] = ROWS if rows in ("1", "auto") else int(rows)
        config, date = read_generation_config(path), str(given.get("date", ""))
        return cls(model, tokenizer, generation_config=config, date=date, **numbers)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the results are of; lm-eval adds it to their `config`."""
        return {
            "model_num_parameters": parameter_count(self._model),
            "model_dtype": str(self._model.config.dtype),
            "model_sha": weights_hash(self._model),
            "tokenizer_sha": tokenizer_hash(self._tokens),
            "max_length": self.max_length,
            "chat_date": self._today,
            "biomedlm_jax": biomedlm_jax.__version__,
            **run_environment(),
        }

    @property
    def eot_token_id(self) -> int:
        """Id of the tokenizer's end of text, by default the model's."""
        end = special_id(self._tokens, "eos_token")
        return self._model.config.eos_token_id if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """Id that precedes a text without a context: the tokenizer's bos, else its eos."""
        return prefix_token_id(self._tokens, self.eot_token_id)

    @property
    def max_length(self) -> int:
        """Positions of the model."""
        return self._model.config.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Return token ids, by default with those that the tokenizer adds to a text.

        A text that begins with the prefix token gets none.
        """
        if add_special_tokens is None:
            prefix = self._tokens.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not string.startswith(prefix)
        return self._tokens.encode(string, add_special_tokens=add_special_tokens).ids

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        if not requests:
            return []
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
        """Return the continuations, each up to its first stop sequence.

        Raises InputError for generation_kwargs that the decoder does not have.
        """
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        plans = [(self._plan(requests[numbers[0]]), numbers) for numbers in alike.values()]
        answers = [""] * len(requests)
        for (options, stops, room), numbers in plans:
            prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
            prompts = [prompt or [self.prefix_token_id] for prompt in prompts]
            named = {"batch_size": self._batch_size, "numbers": numbers, "stops_span": False}
            for place, (answer, *_) in answer_batches(self._generator, prompts, options, **named):
                text = postprocess_generated_text(self._tokens.decode(answer.tokens), stops, None)
                answers[numbers[place]] = text
                self.cache_hook.add_partial("generate_until", requests[numbers[place]].args, text)
        return answers

    def _plan(self, request) -> tuple[Options, list[str], int]:
        """Return the options of a request, its stop sequences, and the most tokens of its prompt.

        The checkpoint's generation_config.json applies as in the `hf` backend: below the task's
        generation_kwargs, but its max_new_tokens above their max_gen_toks.
        """
        settings = {name: value for name, value in request.args[1].items() if value is not None}
        task = f"task {request.task_name}" if request.task_name else "a task"
        limits = [int(settings.pop(name)) for name in LIMITS if name in settings]
        new_tokens = next(iter(limits), NEW_TOKENS)
        if new_tokens >= self.max_length:
            got = f"{task} has {new_tokens} new tokens, the model {self.max_length} positions"
            raise InputError(f"{got}; lower max_gen_toks in its generation_kwargs")
        end = self._tokens.decode([self.eot_token_id], skip_special_tokens=False)
        stops = handle_stop_sequences(list(as_texts(settings.pop("until", ()))), eos=end)
        where = f"{task} has generation_kwargs"
        if unknown := sorted({*settings} - KNOWN):
            known = ", ".join(["until", *LIMITS, *sorted(KNOWN)])
            raise InputError(f"{where} {unknown[0]}, which is unknown here; known: {known}")
        temperature = float(settings.get("temperature", 0))
        sampled = settings.setdefault("do_sample", temperature > 0)
        if sampled and not temperature:
            got = "do_sample: true without a temperature above 0"
            raise InputError(f"{where} {got}; set temperature, or do_sample: false")
        config = {**self._generation_config, **settings}
        stops += as_texts(config.pop("stop_strings", None) or ())
        if (config.get("num_return_sequences") or 1) > 1:
            got = f"num_return_sequences={config['num_return_sequences']}"
            raise InputError(f"generation_config.json has {got}, and a request has one answer")
        new = config.pop("max_new_tokens", None) or new_tokens
        given = {"max_new_tokens": new, "stop": [stop for stop in stops if stop]}
        try:
            options = make_options(config, **given, seed=self._seed)
        except ValueError as error:
            raise InputError(f"{where} {request.args[1]}: {error}") from None
        return options, stops, self.max_length - new_tokens

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests tells tokenizers apart by."""
        return tokenizer_hash(self._tokens)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return a chat template as text, and use it from now on; "" for False.

        True is the tokenizer's own; else the name of one of its others or of the package's, or a
        .jinja file. Raises InputError if there is none.
        """
        if not chat_template:
            return ""
        name, clock = chat_template, templates.fixed_date(self._today)
        name = name if isinstance(name, str) else ""
        self._template = templates.chat_template(self._tokens, name, today=clock)
        return self._template.text

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        """Return a conversation as one text, as the `hf` backend does.

        Without `add_generation_prompt` the text ends with the last message, to be continued. System
        messages are left out if the template refuses them.
        """
        try:
            return self._in_chat(chat_history, add_generation_prompt)
        except InputError:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            return self._in_chat(rest, add_generation_prompt)

    def _in_chat(self, messages: Sequence[Mapping[str, Any]], begins: bool) -> str:
        if self._template is None:
            self.chat_template(True)
        template = self._template
        assert template is not None
        if begins:
            return template.render(messages)
        *earlier, last = messages
        marked = {**last, "content": f"{last['content']}{MARK} "}
        text, mark, rest = template.render([*earlier, marked], False).rpartition(MARK)
        if not mark:
            got = f"the chat template of {template.where} leaves out the {last['role']}'s last text"
            raise InputError(f"{got}; leave out the task's gen_prefix, or the template")
        return text if rest.startswith(" ") else text.rstrip()

    @functools.cached_property
    def _generator(self) -> Generator:
        """The decoder, with a copy of the model, made when a task first generates."""
        return Generator(self._model, self._tokens)


register_model("biomedlm")(Harness)  # as a decorator it would hide the parameters


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


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as error:  # of a request or a setting
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
