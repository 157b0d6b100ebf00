"""pretrain(): the recipe of a language model on token rows."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.agreement import from_first_process
from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.batches import Batches, validation_batches
from biomedlm_jax.corpus.manifest import Manifest, check_tokens
from biomedlm_jax.corpus.mixtures import (
    SOURCES,
    Source,
    describe_source,
    parse_mixture,
    read_manifests,
    source_figures,
    sources_record,
)
from biomedlm_jax.corpus.packer import token_byte_counts
from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model, make_config
from biomedlm_jax.model.language_model import LanguageModel, axis_names, named_parameters
from biomedlm_jax.model.lora import matrices_in
from biomedlm_jax.settings import Settings, check_object, read_settings, setting
from biomedlm_jax.training.config import RunSettings, StepSettings
from biomedlm_jax.training.description import describe_run
from biomedlm_jax.training.fit import fit
from biomedlm_jax.training.loss import next_token_loss, summed_loss
from biomedlm_jax.training.metrics import flops_per_token, validation_metrics
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.provenance import read_run, weights_hash
from biomedlm_jax.training.recipe import Recipe
from biomedlm_jax.training.saved_steps import latest_step
from biomedlm_jax.training.state import interned, random_model

CONFIG = "config.json"  # what the model is


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSettings(Settings):
    """The token rows: `path`, a directory that `biomedlm build-tokens` wrote, or a mixture."""

    group = "data"
    path: str = setting("", free=True)
    # DIR:WEIGHT,DIR:WEIGHT in place of path; NAME=DIR:WEIGHT names a source. A run keeps rows and
    # weights; directories may move.
    mixture: str = setting("", free=True)
    seed: int = setting(least=0)  # of the order of the rows

    @property
    def sources(self) -> tuple[Source, ...]:
        """The directories of the rows, a single one with weight 1; InputError without any."""
        if self.path and self.mixture:
            raise InputError(
                f"got config.data.path={self.path} and config.data.mixture={self.mixture}; set one "
                "of them"
            )
        if self.mixture:
            return parse_mixture(self.mixture)
        if not self.path:
            raise InputError(
                "got an empty config.data.path; set --config.data.path=DIR to a directory that "
                "`biomedlm build-tokens` wrote, or --config.data.mixture=DIR:99,DIR:1 to several "
                "with weights"
            )
        return (Source(name="rows", path=self.path, weight=1),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSteps(StepSettings):
    """The `training` group of pre-training."""

    steps: int = setting(least=1)
    evaluate_every: int = setting(least=0, free=True)  # steps; 0: never
    evaluate_batches: int = setting(-1, free=True)  # spread over the validation split; -1: all
    evaluate_sources: str = setting("first", choices=("first", "all"), free=True)  # of a mixture
    # Never begin with random parameters: the learning rate, say, is one for trained weights.
    from_weights: bool = setting(False, free=True)

    def __post_init__(self):
        super().__post_init__()
        if self.evaluate_batches != -1 and self.evaluate_batches < 1:
            raise InputError(
                f"got training.evaluate_batches={self.evaluate_batches}; expected at least 1, or "
                "-1 for the whole validation split (training.evaluate_every=0 never evaluates)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings):
    """The groups of a pre-training config."""

    data: TokenSettings
    training: PretrainSteps


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """A language model that a run starts from; `interop.initial.initial_weights` makes it."""

    path: str
    config: ModelConfig
    tokenizer: Tokenizer
    read: Callable[[LanguageModel], LanguageModel]  # abstract and sharded -> with its values
    files: Mapping[str, dict]  # JSON files that the run keeps, by name


def pretrain(
    config: ConfigDict,
    workdir: str | Path,
    *,
    init: InitialWeights | None = None,
    extend: bool = False,
    fallback: bool = False,
    replay: str | Path | None = None,
) -> dict:
    """Train the config's model on its token rows, or resume the run in `workdir`.

    A new run starts from the weights of `init`, without its optimizer state and from step 0 of the
    schedule, or from random parameters. A resumed run needs `init` with LoRA only, whose
    checkpoints hold the factors and the merged model. A run gets more steps than it had if its
    learning rate does not depend on their number, or with `extend`.

    Writes `config.json`, the tokenizer, the rows' `manifest.json` (of a mixture the first source's,
    and all of them in `sources.json`) and what `fit` writes. Returns
    the step and, if this call evaluated, the last validation metrics. `fallback`, `replay` and the
    errors are those of `fit`. Raises InputError, before anything is written, if the config, the
    data or the directory do not fit together.
    """
    workdir = as_path(workdir).absolute()
    settings = read_settings(PretrainSettings, config)
    training = settings.training
    sources = settings.data.sources
    manifests = read_manifests(sources)
    manifest, path = manifests[0], sources[0].path
    before = from_first_process(lambda: read_run(workdir))
    latest = from_first_process(lambda: latest_step(workdir))
    started_from = _initial_facts(
        before, workdir, init, rank=settings.lora.rank, has_checkpoint=latest is not None
    )
    fields, source = settings.model, None if init is None else init.config
    if init is None and started_from:
        file = workdir / CONFIG
        source = make_config(check_object(read_json(file).get("model"), f"{file} has model"))
    if source is not None:
        where = started_from["path"] if init is None else init.path
        fields = _fill_config_from_source(fields, source, where=where)
    elif fields.get("layers") is None:
        raise InputError(
            "got no model.layers; set --config.model.layers, or start from weights with --init=DIR"
        )
    elif training.from_weights and not before:
        raise InputError(
            "got a config that continues from weights (training.from_weights=True) without "
            "--init=DIR; add it, or set --config.training.from_weights=False to train from "
            "random parameters"
        )
    model_config = fill_config_from_manifest(fields, manifest)
    # A run keeps its tokenizer; before the first checkpoint, its files may not be complete.
    known = latest is not None and from_first_process((workdir / "tokenizer.json").exists)
    tokenizer = load_tokenizer(workdir if known else path)
    if init is not None:
        _check_tokenizer(init, manifest["tokenizer_hash"], rows=path)
    smaller = source is not None and manifest["vocab_size"] <= source.vocab_size
    check_tokens(
        manifest,
        vocab_size=None if smaller else model_config.vocab_size,
        length=_row_length(model_config, manifest["length"]),
        eos_id=model_config.eos_token_id,
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    if manifest["length"] % training.loss_chunks:
        raise InputError(
            f"got training.loss_chunks={training.loss_chunks}; expected a divisor of the row "
            f"length {manifest['length']}"
        )
    evaluated = sources if training.evaluate_sources == "all" else sources[:1]
    for one, of_one in zip(evaluated, manifests, strict=False):
        if training.evaluate_every and not of_one["splits"]["validation"]["rows"]:
            raise InputError(
                f"{one.path} has no validation rows; build it with --validation_fraction, "
                "or set --config.training.evaluate_every=0"
            )
    lengthening = _lengthening(before, settings, workdir, extend=extend, step=latest or 0)
    mesh = settings.mesh.make()
    abstract = abstract_model(model_config)
    batch_size, length = training.batch_size, manifest["length"]
    meshes.check_fits(
        mesh, batch_size=batch_size, accumulation=training.accumulation, model=abstract
    )
    description = describe_run(abstract, mesh, length=length)
    sharding = meshes.sharding(mesh, "batch", "length")
    layout: dict[str, Any] = {"batch_size": batch_size, "sharding": sharding}
    base: list[Any] = []
    if init is not None:
        with jax.set_mesh(mesh):
            dtype = settings.lora.frozen_dtype
            base = [init.read(matrices_in(abstract_model(model_config, mesh), dtype))]
            started_from["weights"] = weights_hash(base[0])
    mixture = sources if len(sources) > 1 else ()
    batches = Batches(mixture or path, split="train", **layout, seed=settings.data.seed)
    loss_sums = jax.jit(interned(functools.partial(summed_loss, chunks=training.loss_chunks)))
    lengths_V = jnp.asarray(token_byte_counts(tokenizer))
    limit = training.evaluate_batches if training.evaluate_batches > 0 else None

    def evaluate_source(model, source: Source, check_stop: Callable[[], None]) -> dict[str, float]:
        total, count, text_bytes = 0.0, 0.0, 0
        for tokens, weights in validation_batches(source.path, **layout, limit=limit):
            check_stop()
            sums = loss_sums(model, tokens, weights_B=weights)
            total, count = total + float(sums[0]), count + float(sums[1])
            text_bytes += int(_byte_sum(lengths_V, tokens, weights))
        return validation_metrics(total / count, tokens=round(count), text_bytes=text_bytes)

    def evaluate(model, step: int, check_stop: Callable[[], None]) -> dict[str, float]:
        figures = [evaluate_source(model, source, check_stop) for source in evaluated]
        losses = {
            f"validation_loss/{source.name}": of_source["validation_loss"]
            for source, of_source in zip(evaluated, figures, strict=True)
        }
        return figures[0] | (losses if len(evaluated) > 1 else {})

    def write() -> None:
        facts = {"started_from": started_from} if started_from else {}
        write_json(workdir / CONFIG, {"model": model_config.to_json(), **facts})
        if not known:
            write_json(workdir / "manifest.json", manifest)
            if mixture:
                write_json(workdir / SOURCES, kept_sources)
            kept = tokenizer if init is None else init.tokenizer
            save_tokenizer(kept, workdir, overwrite=True)  # of a start that was killed
        for name, value in (init.files if init else {}).items():
            write_json(workdir / name, value)

    kept_sources = sources_record(sources, manifests)
    facts_of_sources = {
        f"{number}": source.facts(of_source)
        for number, (source, of_source) in enumerate(zip(mixture, manifests, strict=False), start=1)
    }
    tokens = batch_size * length
    recipe = Recipe(
        name="pretrain",
        settings=settings,
        steps=training.steps,
        make_model=functools.partial(_starting_model, model_config, training.seed),
        base=base,
        saves_merged=True,
        data=batches,
        loss=functools.partial(next_token_loss, chunks=training.loss_chunks),
        evaluate=evaluate if training.evaluate_every else None,
        evaluate_every=training.evaluate_every,
        tokens_per_step=tokens,
        flops_per_token=flops_per_token(abstract, length),
        started_from={
            "model": model_config.architecture(),
            "initialisation": _initialisation(model_config),
            "tokenizer": manifest["tokenizer_hash"],
            "rows": manifest["fingerprint"],
            **({"sources": facts_of_sources} if mixture else {}),
            **started_from,
        },
        may_change=["training.steps"] if lengthening else [],
        history=[*before.get("history", []), *([lengthening] if lengthening else [])],
        write=write,
        introduction=(
            description,
            *([_described_start(init, settings)] if init and latest is None else []),
            *_described_rows(sources, manifests, training),
            *([lengthening["learning_rate"]] if lengthening else []),
        ),
    )
    with jax.set_mesh(mesh):
        file = None if replay is None else as_path(replay)
        return fit(recipe, workdir, mesh, fallback=fallback, replay=file)[1]


def _starting_model(config: ModelConfig, seed: int, *base: LanguageModel) -> LanguageModel:
    return base[0] if base else random_model(config, seed=seed)


@jax.jit
def _byte_sum(lengths_V, tokens_BxL, weights_B):
    """The bytes of the tokens that the loss is over."""
    return (lengths_V[tokens_BxL[:, 1:]] * (weights_B[:, None] > 0)).sum()


def fill_config_from_manifest(fields: dict, manifest: Mapping[str, Any]) -> ModelConfig:
    """Return the model config, what it leaves as None taken from the token rows."""
    names = {"vocab_size": "vocab_size", "eos_token_id": "eos_id", "context_length": "length"}
    unset = {ours: manifest[its] for ours, its in names.items() if fields.get(ours) is None}
    return make_config({**fields, **unset})


def _row_length(config: ModelConfig, length: int) -> int:
    """Return the length that rows must have: theirs, if the model may be trained on shorter ones.

    A model with parameters of each position is not: those of the last would not be trained.
    """
    parameters = named_parameters(abstract_model(config)).values()
    if any("length" in axis_names(parameter) for parameter in parameters):
        return config.context_length
    return min(length, config.context_length)


def _described_start(init: InitialWeights, settings: PretrainSettings) -> str:
    """Return a line about the weights, and the learning rate's way from there."""
    _, schedule = make_optimizer(settings.optimizer, steps=settings.training.steps)
    warmup = settings.optimizer.warmup_of(settings.training.steps)
    peak = f"{settings.optimizer.learning_rate:.3g}"
    rise = f"starts at {peak} without a warmup"
    if warmup:
        rise = f"warms up again, to {peak} after {warmup:,} steps"
    last = f"{float(np.asarray(schedule(settings.training.steps - 1))):.3g}"
    way = f"{rise}, and ends at {last} ({settings.optimizer.schedule})"
    return f"starting from the weights of {init.path}; the learning rate {way}"


def _described_rows(
    sources: Sequence[Source], manifests: Sequence[Manifest], training: PretrainSteps
) -> list[str]:
    """Return a line about the steps and, of a mixture, one about each source."""
    length, split = manifests[0]["length"], manifests[0]["splits"]["train"]
    line = f"{counted(training.steps, 'step')} of {training.batch_size} x {length} tokens"
    if len(sources) == 1:
        passes = training.steps * training.batch_size * length / split["tokens"]
        return [f"{line}: {passes:.2f} passes over {split['tokens']:,} tokens"]
    record, rows = sources_record(sources, manifests), training.steps * training.batch_size
    figures = source_figures(record, rows, where="the mixture")
    return [f"{line} from {len(sources)} sources", *map(describe_source, figures)]


def _fill_config_from_source(fields: dict, source: ModelConfig, *, where: str) -> dict:
    """Return the model group, what it leaves unset taken from the model that a run starts from.

    Raises InputError if it sets what is computed from the weights otherwise.
    """
    values, free = source.to_json(), source.free_names()
    fixed = {**source.architecture(), "vocab_multiple": source.vocab_multiple}
    for name, value in fixed.items():
        if fields.get(name) not in (None, value):
            raise InputError(
                f"got model.{name}={fields[name]!r}, and the weights in {where} are of a model "
                f"with {name}={value!r}; set --config.model.{name}={value}, or leave it unset"
            )
    unset = [name for name in values if name not in free and fields.get(name) is None]
    return {**fields, **{name: values[name] for name in unset}}


def _initial_facts(
    before: Mapping,
    workdir: Path,
    init: InitialWeights | None,
    *,
    rank: int,
    has_checkpoint: bool,
) -> dict[str, str]:
    """Return path and hash of the weights that a run started from, the hash if it is known."""
    if init is not None:
        return {"path": str(as_path(init.path).absolute())}
    saved = before.get("started_from", {})
    facts = {name: saved[name] for name in ("path", "weights") if name in saved}
    if rank and not facts:
        raise InputError(
            f"got lora.rank={rank} without --init; LoRA leaves the weights as they are, and those "
            "of a new model are random: add --init=DIR, or set --config.lora.rank=0"
        )
    if facts and (rank or not has_checkpoint):
        start = facts.get("path")
        reason = "whose weights LoRA reads again" if rank else "and has no checkpoint yet"
        raise InputError(
            f"{workdir} was to start from {start}, {reason}; give --init={start} again"
        )
    return facts


def _check_tokenizer(init: InitialWeights, rows_hash: str, *, rows: str) -> None:
    """Raise InputError unless token rows have the tokenizer of the weights."""
    if tokenizer_hash(init.tokenizer) != rows_hash:
        raise InputError(
            f"the token rows in {rows} have another tokenizer ({rows_hash[:12]}) than {init.path} "
            f"({tokenizer_hash(init.tokenizer)[:12]}); build them again with "
            f"biomedlm build-tokens --tokenizer={init.path}"
        )


def _lengthening(
    before: Mapping[str, Any],
    settings: PretrainSettings,
    workdir: Path,
    *,
    extend: bool,
    step: int,
) -> dict[str, Any] | None:
    """Return what changes if a run gets more steps than it had before; None if it does not.

    Raises InputError if its learning rate would change without `extend`.
    """
    if extend and not before:
        raise InputError(f"got --extend, and {workdir} holds no run; leave it out for a new run")
    old, new = before.get("training", {}).get("steps"), settings.training.steps
    if not isinstance(old, int) or new <= old:
        return None
    optimizer = settings.optimizer

    def rate(steps: int, count: int) -> str:
        _, schedule = make_optimizer(optimizer, steps=steps)
        return f"{float(np.asarray(schedule(count))):.3g}"

    line = (
        f"{old:,} steps become {new:,}; with schedule={optimizer.schedule} the learning rate goes "
        f"from {rate(old, max(0, step - 1))} at step {step} to {rate(new, step)} at the next, and "
        f"ends at {rate(new, new - 1)}"
    )
    if optimizer.schedule_depends_on_total_steps and not extend:
        raise InputError(
            f"got training.steps={new} for the run in {workdir}: {line}; allow this with "
            "--extend, or choose another --workdir"
        )
    return {"steps": new, "steps_before": old, "after_step": step, "learning_rate": line}


def _initialisation(config: ModelConfig) -> dict:
    kept = ("initializer_range", "vocab_multiple")
    return {k: value for k, value in config.to_json().items() if k in kept or "dropout" in k}
