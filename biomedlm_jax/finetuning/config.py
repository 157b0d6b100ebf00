"""The typed groups of a fine-tuning config, for questions, for texts and for chats."""

import dataclasses

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.conversations import FORMATS
from biomedlm_jax.finetuning.conversations import ON_ERROR as ON_BAD_LINE
from biomedlm_jax.interop.finetuned import RELEASED, ROW_FORMATS
from biomedlm_jax.qa.prompts import LEAST_LENGTH
from biomedlm_jax.qa.splits import LABEL_BASES, ON_ERROR, TWINS
from biomedlm_jax.settings import Settings, setting
from biomedlm_jax.training.config import RunSettings, StepSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochSteps(StepSettings):
    """The `training` group of fine-tuning."""

    epochs: int = setting(least=1)  # each has every question, or every row, once


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings(Settings):
    """Runs to make instead of one; an empty tuple stands for the config's own value."""

    group = "sweep"
    learning_rates: tuple[float, ...] = setting((), free=True)
    seeds: tuple[int, ...] = setting((), free=True)

    def __post_init__(self):
        super().__post_init__()
        rates, seeds = self.learning_rates, self.seeds
        if any(rate <= 0 for rate in rates) or len({*rates}) < len(rates):
            raise InputError(f"got sweep.learning_rates={rates}; expected different rates above 0")
        # jax.random.key takes a seed modulo 2**32.
        if not all(0 <= seed < 2**32 for seed in seeds) or len({*seeds}) < len(seeds):
            raise InputError(f"got sweep.seeds={seeds}; expected different seeds from 0 to 2**32-1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """The questions. A run is compared by their content, so name and path are free."""

    group = "task"
    name: str = setting(free=True)  # of qa/tasks.py, or jsonl:PATH
    path: str = setting(free=True)  # a file or directory
    train_path: str = setting("", free=True)  # of the training questions; empty: the same
    format: str = setting(free=True)  # of the files; empty: the task's own
    train_split: str = setting(free=True)
    dev_split: str = setting(free=True)
    fold: int = setting(least=0, free=True)
    on_error: str = setting(choices=ON_ERROR, free=True)
    label_base: str = setting("auto", choices=LABEL_BASES, free=True)  # of the first option
    twins: str = setting("keep", choices=TWINS, free=True)  # questions with two equal options
    row_format: str = setting(choices=ROW_FORMATS)
    max_length: int = setting(least=LEAST_LENGTH)  # tokens of a question with one option


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionSettings(RunSettings):
    """A config of recipe=questions."""

    recipe: str = setting(choices=("questions",))
    task: TaskSettings
    training: EpochSteps
    sweep: SweepSettings

    def __post_init__(self):
        super().__post_init__()
        if self.training.loss_chunks != 1:
            raise InputError(
                f"got training.loss_chunks={self.training.loss_chunks} with recipe=questions, "
                "whose loss has no logits over the vocabulary; set --config.training.loss_chunks=1"
            )
        if self.task.row_format == RELEASED and self.training.accumulation > 1:
            raise InputError(
                f"got training.accumulation={self.training.accumulation} with row_format=released, "
                "which may divide a question between parts; set --config.training.accumulation=1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSettings(Settings):
    """The pairs of a source and a target text. A run is compared by their tokens."""

    group = "data"
    train: str = setting(free=True)  # JSONL, or the stem of a .source and a .target file
    dev: str = setting(free=True)  # empty: a part of train
    source_field: str = setting(free=True)
    target_field: str = setting(free=True)
    group_field: str = setting(free=True)  # empty: equal sources stay together
    dev_fraction: float = setting(least=0, most=1, free=True)
    source_tokens: int = setting(least=1)  # more are cut off at the end
    target_tokens: int = setting(least=1)
    row_tokens: int = setting(least=1)

    def __post_init__(self):
        super().__post_init__()
        if not self.train:
            files = "a JSONL file, or the stem of a .source and a .target file"
            raise InputError(f"got an empty data.train; set --config.data.train to {files}")
        longest = self.source_tokens + self.target_tokens + 2
        if longest > self.row_tokens:
            parts = "source_tokens + separator + target_tokens + end of text"
            got = f"got data.row_tokens={self.row_tokens}"
            raise InputError(f"{got}; expected at least {longest} tokens: {parts}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingSettings(Settings):
    """How many dev sources are answered; 0 final examples are all, -1 none."""

    group = "evaluation"
    examples: int = setting(least=0)  # after each epoch but the last
    final_examples: int = setting(least=-1)
    batch_size: int = setting(least=1, free=True)  # sources answered at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(RunSettings):
    """A config of recipe=text."""

    recipe: str = setting(choices=("text",))
    data: PairSettings
    training: EpochSteps
    evaluation: DecodingSettings
    generation: dict  # fields of generation.options.Options
    sweep: SweepSettings

    def check_positions(self, new_tokens: int, positions: int) -> None:
        """Raise InputError unless rows, and a source with its answer, fit the model."""
        row, source = self.data.row_tokens, self.data.source_tokens
        if max(row, source + 1 + new_tokens) > positions:
            raise InputError(
                f"got data.row_tokens={row}, data.source_tokens={source} and generation."
                f"max_new_tokens={new_tokens}; expected at most the model's {positions} positions; "
                f"set --config.data.row_tokens={positions}, and a source and an answer that fit"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationSettings(Settings):
    """Files of instructions and chats. A run is compared by their tokens."""

    group = "data"
    train: tuple[str, ...] = setting(free=True)  # JSON lines, a JSON array or parquet
    format: tuple[str, ...] = setting(free=True)  # of all of train and dev, or of each of train
    weights: tuple[float, ...] = setting(())  # of each of train: how often an epoch has an example
    caps: tuple[int, ...] = setting(())  # of each of train: examples of an epoch, before the weight
    dev: tuple[str, ...] = setting(free=True)  # empty: a part of each of train
    dev_fraction: float = setting(least=0, most=1, free=True)
    source_field: str = setting(free=True)  # of format pairs
    target_field: str = setting(free=True)
    group_field: str = setting(free=True)  # empty: equal first messages stay together
    on_error: str = setting(choices=ON_BAD_LINE, free=True)
    template: str = setting(free=True)  # empty: the tokenizer's own
    date: str = setting(free=True)  # that a template prints, YYYY-MM-DD
    added_tokens: tuple[str, ...] = setting()  # of the template, that the tokenizer lacks
    masked_spans: tuple[str, ...] = setting()  # pairs of markers inside an answer
    row_tokens: int = setting(least=8)

    def __post_init__(self):
        super().__post_init__()
        if not self.train or not all(self.train):
            raise InputError(
                "got an empty data.train; set --config.data.train to a file or several"
            )
        number = len(self.train)
        if len(self.format) not in (1, number) or not {*self.format} <= {*FORMATS}:
            known = ", ".join(FORMATS)
            expected = f"expected one of {known} for all files, or one for each of data.train"
            raise InputError(f"got data.format={self.format}; {expected}; it is never guessed")
        for name, values in (("weights", self.weights), ("caps", self.caps)):
            if values and len(values) != number:
                expected = f"expected one for each of the {number} files of data.train, or none"
                raise InputError(f"got data.{name}={values}; {expected}")
        if not (all(weight > 0 for weight in self.weights) and all(cap >= 0 for cap in self.caps)):
            got = f"got data.weights={self.weights} and data.caps={self.caps}"
            raise InputError(f"{got}; expected weights above 0, and caps of at least 0 (0: none)")
        if len({*self.format}) > 1 and self.dev:
            raise InputError("got several data.format with data.dev; expected one format for all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings(RunSettings):
    """A config of recipe=chat."""

    recipe: str = setting(choices=("chat",))
    data: ConversationSettings
    training: EpochSteps
    evaluation: DecodingSettings
    generation: dict  # fields of generation.options.Options
    sweep: SweepSettings

    def check_positions(self, tokens: int, positions: int) -> None:
        """Raise InputError unless rows, and `tokens` of a dev prompt and its answer, fit."""
        row = self.data.row_tokens
        if max(row, tokens) > positions:
            got = (
                f"got data.row_tokens={row}, and dev prompts with answers of up to {tokens} tokens"
            )
            fix = (
                f"fix: set --config.data.row_tokens={positions}, generation.max_new_tokens to less"
            )
            raise InputError(f"{got}; expected at most the model's {positions} positions; {fix}")
