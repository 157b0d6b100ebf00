"""verify_hf(): does transformers compute what this library computes from the same directory?"""

import functools
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.corpus.chat_template import read_chat_template
from biomedlm_jax.corpus.tokenizer import special_id
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import HUGGING_FACE, kind_of, model_config, read_tokenizer
from biomedlm_jax.interop.finetuned import CHOICE, load_finetuned, read_head
from biomedlm_jax.interop.huggingface import PAD, load
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.attention import Mask
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import config_from_hf, config_to_hf, family
from biomedlm_jax.model.heads import Scorer

TOLERANCE = 1e-4
# Differences of hidden states, as a part of their size, float32 beside float32: from the first a
# layer is named, and from so many times the tolerance of outputs they are an error themselves.
NOISE, STATES = 1e-5, 10
SHORT, LONG, PADDED = "short", "longer than the window", "left-padded"
# Settings that change no output.
WITHOUT_EFFECT = ("context_length", "eos_token_id")
# One text of each kind, encoded here and by transformers.
PROBE = (
    "",
    "We measured β₂-microglobulin and IL-10 in 24 mice (p < 0.05): 3.14e-2 µg/ml, 1,234.5.",
    " one leading space", "   three, and two at the end  ", "tab\tand\r\n\r\nnew lines\n",
    "it's, we'll, CAN'T, McDonald's; HbA1c ≥ 7.0 %, Ca²⁺, ½, Ⅳ, ﬁ",
    "naïve Überdosis: éčß, but e\u0301 and c\u030c", "Ελληνικά, русский, українська",
    "漢字かな交じり文、한국어", "עברית, العربية, हिन्दी, ไทย, বাংলা",
    "🧬👩‍🔬🇩🇪👍🏽 and \U0010ffff", "\x00\x01\x1b\x7f\x85\xa0\xad\u200b\u2028\ufeff\ufffd",
    "<s> </s> <unk> <pad> [PAD] [SEP] <|endoftext|><|startoftext|> <EOS> Ġ Ċ ▁",
)  # fmt: skip
# Chats that the template renders, if there is one.
TURN = {"role": "user", "content": " Why? "}, {"role": "assistant", "content": "So.\n"}
CHATS = (TURN[:1], TURN, TURN * 2, ({"role": "system", "content": "Be brief."}, *TURN))
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
TEXT = "We measured the cytotoxicity of nanoparticles in 24 mice (p < 0.05) and report every ECG."


class DiffersError(InputError):
    """What is compared differs; `report` has the figures so far."""

    def __init__(self, message: str, report: dict[str, Any]):
        super().__init__(message)
        self.report = report


class Rows(NamedTuple):
    """Rows of tokens of one kind."""

    tokens_BxL: np.ndarray
    real_BxL: np.ndarray  # false at padding, which comes first
    kept: int  # the last positions, whose logits are compared

    @property
    def positions_BxL(self) -> np.ndarray:
        """Position ids; 0 at padding."""
        return np.maximum(np.cumsum(self.real_BxL, axis=1) - 1, 0)


class Computed(NamedTuple):
    """What a model computes of rows."""

    outputs: np.ndarray  # logits [B, kept, V], or scores [B] or [B, C]
    states: tuple[np.ndarray, ...] = ()  # [B, L, D]: before each block, and the final ones


def verify_hf(
    path: str | Path,
    *,
    run: str | Path | None = None,
    batch: int = 2,
    length: int | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    mesh: Mesh | None = None,
    **ids: int,
) -> dict:
    """Compare the outputs of a Hugging Face directory here and in transformers, in float32.

    Outputs are logits, or a fine-tuned model's scores at the last token of each row, for `batch`
    rows of random tokens, and one of text if there is a tokenizer, each of `length` tokens
    (default: 64, or all positions of a smaller model); for the same rows with padding on the left;
    and for a row that is `length` tokens longer than the model's sliding window, if it has one.
    They are compared with transformers' eager attention, with its default one (warning if it
    computes another function), and with those of the run directory `run`; so are the hidden states
    after each layer, and the settings. Before that the ids of `PROBE`, `CHATS` and special tokens
    are compared with those of AutoTokenizer. Models of this library go onto `mesh`, by default one
    device. `ids` are those of `import_hf`. Returns figures, ready for JSON. Raises DiffersError,
    which names the first layer that differs, if an absolute difference of outputs (except the
    default attention's) exceeds `tolerance`, if one of hidden states exceeds ten times as large a
    part of their size, or if a setting differs, and InputError if a token id differs, or if torch
    and transformers are not installed.
    """
    torch, transformers = _peers()
    if kind_of(path) != HUGGING_FACE:
        raise InputError(f"{path} is a run directory; export it first, then pass it as --run")
    config = model_config(path, **ids)
    tokenizer = read_tokenizer(path, config)
    texts = 0 if tokenizer is None else compare_ids(tokenizer, path)
    length = min(64, config.context_length) if length is None else length
    if batch < 1 or not 1 <= length <= config.context_length:
        most = f"the model's {config.context_length} positions"
        raise InputError(f"got batch={batch}, length={length}; expected at least 1, at most {most}")
    model, _ = _load(path, mesh, **ids)
    rows = _rows(config, tokenizer, batch=batch, length=length, seed=seed)
    here = _compute(model, rows)
    del model
    eager, theirs = _of_transformers(path, rows, states=True, attn_implementation="eager")
    # The settings of config.json that folding the attention scale would change.
    folded = config_to_hf(family(config.model_type).fold_attention_scale(config)[0])
    foldable = {k: v for k, v in config_to_hf(config).items() if v != folded[k]}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"))  # which config.json may have wrong
    settings = _other_settings(config, config_from_hf(theirs.to_dict() | ends), "in transformers")
    whose = "those that transformers computes"
    report: dict[str, Any] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "jax": jax.__version__,
        "foldable_settings": foldable,
        "texts_with_equal_ids": texts,
        "rows": {name: len(of_kind.tokens_BxL) for name, of_kind in rows.items()},
        "lengths": {name: of_kind.tokens_BxL.shape[1] for name, of_kind in rows.items()},
        "length": length,
        "tolerance": tolerance,
        "largest_output": float(np.abs(eager[SHORT].outputs).max()),
    }
    compared = rows, here, eager
    _check(report, "eager", compared, path=path, whose=whose, settings=settings)
    if run is not None:
        model, _ = _load(run, mesh)
        if max(one.tokens_BxL.max() for one in rows.values()) >= model.config.vocab_size:
            raise InputError(f"{run} has a vocabulary of {model.config.vocab_size} only")
        trained, settings = _compute(model, rows), _other_settings(config, model.config, "in it")
        del model
        compared, whose = (rows, here, trained), f"those of {run}"
        _check(report, "run", compared, path=path, whose=whose, settings=settings)
    default, theirs = _of_transformers(path, rows)
    attention = str(getattr(theirs, "_attn_implementation", "unknown"))
    difference = _difference(rows, here, default)
    report["default"] = {"attention": attention, **difference, "ignores": []}
    if not difference["max"] <= tolerance:  # nan is no agreement
        if foldable:
            without = {name: folded[name] for name in foldable}
            other, _ = _of_transformers(path, rows, attn_implementation="eager", **without)
            if _difference(rows, default, other)["max"] <= tolerance:
                report["default"]["ignores"] = sorted(foldable)
        warnings.warn(_warning(report), RuntimeWarning, stacklevel=2)
    return report


def compare_ids(tokenizer: Tokenizer, path: str | Path) -> int:
    """Return how many texts have the ids of transformers' AutoTokenizer of the directory `path`.

    They are `PROBE`, texts with each added token of either side, and `CHATS` as the chat template
    of the directory renders them. Raises InputError for the first that differs.
    """
    _, transformers = _peers()
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(path)
    except Exception as error:  # of many kinds
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"transformers cannot read the tokenizer of {path}: {reason}") from None
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    added = [*dict.fromkeys([*added, *theirs.get_added_vocab()])]
    texts = [*PROBE, *(f"a{token}b {token} c{token} " for token in added[:1000])]
    for text in texts:
        for special in (True, False):
            got = tokenizer.encode(text, add_special_tokens=special).ids
            _check_ids(path, repr(text), got, theirs(text, add_special_tokens=special)["input_ids"])
    for name in SPECIAL:
        _check_ids(path, name, special_id(tokenizer, name), getattr(theirs, f"{name}_id"))
    return len(texts) + _compare_chats(tokenizer, path, theirs)


def _compare_chats(tokenizer: Tokenizer, path: str | Path, theirs: Any) -> int:
    """Return how many chats have the ids of transformers; one that is refused here is none."""
    template, count = read_chat_template(path), 0
    if template is None:
        return 0
    for chat, header in itertools.product(CHATS, (False, True)):
        try:
            text = template.render(chat, header)
        except InputError:
            continue
        options = {"add_generation_prompt": header, "return_dict": False}
        try:
            expected = theirs.apply_chat_template([*chat], **options)
        except Exception as error:  # of many kinds
            expected = f"an error ({error})"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        _check_ids(path, f"the chat {text!r}", ids, expected)
        count += 1
    return count


def _check_ids(path: str | Path, what: str, got: Any, expected: Any) -> None:
    if got != expected:
        cause = "its tokenizer files contradict one another, or need another library version"
        raise InputError(
            f"{path}: {what} is {got} here and {expected} in transformers; {cause}: save the "
            "tokenizer again with transformers"
        )


def _load(path: str | Path, mesh: Mesh | None, **ids: int) -> tuple[Any, Tokenizer | None]:
    execution: dict[str, Any] = {"compute_dtype": "float32", "attention": "xla", **ids}
    return (load if read_head(path) is None else load_finetuned)(path, mesh=mesh, **execution)[:2]


def _rows(
    config: ModelConfig, tokenizer: Tokenizer | None, *, batch: int, length: int, seed: int
) -> dict[str, Rows]:
    """The rows of each kind."""
    tokens = _tokens(config.vocab_size, tokenizer, batch=batch, length=length, seed=seed)
    real = np.ones(tokens.shape, bool)
    rows = {SHORT: Rows(tokens, real, length)}
    window = config.sliding_window
    if window is not None and window < config.context_length:
        most = min(window + length, config.context_length)
        shape = {"batch": 1, "length": most, "seed": seed + 1}
        tokens_1xL = _tokens(config.vocab_size, tokenizer, **shape)[-1:]  # of text
        rows[LONG] = Rows(tokens_1xL, np.ones(tokens_1xL.shape, bool), min(length, most - window))
    # Each row has more padding than the one before it.
    starts = length * (1 + np.arange(len(tokens))) // (1 + len(tokens))
    real = np.arange(length) >= starts[:, None]
    return rows | {PADDED: Rows(np.where(real, tokens, 0), real, length)}


def _compute(model: Any, rows: Mapping[str, Rows]) -> dict[str, Computed]:
    # GPU and TPU would multiply in TF32 or bfloat16, which hides differences of the weights.
    with jax.default_matmul_precision("highest"):
        return {name: _computed(model, of_kind) for name, of_kind in rows.items()}


def _computed(model: Any, rows: Rows) -> Computed:
    padding: dict[str, Any] = {"positions_BxL": None, "mask": None}
    if not rows.real_BxL.all():
        segment_BxL = np.where(rows.real_BxL, 0, -1).astype(np.int32)
        padding = {"positions_BxL": rows.positions_BxL, "mask": Mask(jnp.asarray(segment_BxL))}
    outputs, *states = _forward(model, rows.tokens_BxL, padding, rows.kept)
    return Computed(np.asarray(outputs), tuple(np.asarray(state) for state in states))


@functools.partial(jax.jit, static_argnums=3)
def _forward(model, tokens_BxL, padding, kept: int):
    trunk = model.trunk if isinstance(model, Scorer) else model
    x_BxLxD, streams_NxBxLxD = trunk.hidden_with_streams(tokens_BxL, **padding)
    if isinstance(model, Scorer):
        outputs = model(x_BxLxD[:, -1])
    else:
        outputs = model.logits(x_BxLxD[:, -kept:])
    return outputs, *streams_NxBxLxD, x_BxLxD


def _of_transformers(
    path: str | Path, rows: Mapping[str, Rows], *, states: bool = False, **options: Any
) -> tuple[dict[str, Computed], Any]:
    """What transformers computes, and its config."""
    torch, transformers = _peers()
    head = read_head(path)
    loader = transformers.AutoModelForCausalLM
    if head is not None:
        loader = transformers.AutoModelForSequenceClassification
        options["num_labels"] = head.outputs
    model = loader.from_pretrained(path, **options).float().eval()
    computed = {}
    for name, of_kind in rows.items():
        given = {}
        if not of_kind.real_BxL.all():
            given["attention_mask"] = torch.from_numpy(of_kind.real_BxL.astype(np.int64))
            given["position_ids"] = torch.from_numpy(of_kind.positions_BxL)
        with torch.no_grad():
            tokens = torch.from_numpy(of_kind.tokens_BxL.astype(np.int64))
            result = model(tokens, **given, output_hidden_states=states)
        if head is not None and head.kind == CHOICE:
            # transformers' class has one score for a choice, too, but no bias.
            bias = TensorFiles(path, model_config(path)).read("score.bias")
            outputs = result.logits.numpy()[:, 0] + bias
        else:
            outputs = result.logits.numpy()
            outputs = outputs[:, -of_kind.kept :] if head is None else outputs
        hidden = result.hidden_states if states else ()
        computed[name] = Computed(outputs, tuple(state.numpy() for state in hidden))
    return computed, model.config


def _tokens(size: int, tokenizer: Tokenizer | None, *, batch, length, seed) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, size, (batch, length))
    if tokenizer is not None:
        text = np.resize(tokenizer.encode(TEXT).ids, (1, length))  # repeated as needed
        tokens = np.concatenate([tokens, text])
        # transformers scores the last token that is not padding.
        tokens[tokens == (tokenizer.token_to_id(PAD) or 0)] = 0
    return tokens.astype(np.int32)


def _difference(
    rows: Mapping[str, Rows], here: Mapping[str, Computed], other: Mapping[str, Computed]
) -> dict[str, Any]:
    """Figures of the differences of outputs; of logits, at positions that are no padding."""
    kinds = {}
    for name, of_kind in rows.items():
        a, b = here[name].outputs, other[name].outputs
        if a.shape != b.shape:
            raise InputError(f"got outputs of shape {b.shape}; expected {a.shape}")
        kinds[name] = np.abs(a.astype(np.float32) - b)
        if a.ndim == 3:
            kinds[name] = kinds[name][of_kind.real_BxL[:, -of_kind.kept :]]
    total, count = (sum(f(d) for d in kinds.values()) for f in (np.sum, np.size))
    most = {name: float(difference.max()) for name, difference in kinds.items()}
    # numpy's maximum, because Python's may drop a nan.
    whole = float(np.max([*most.values()]))
    figures: dict[str, Any] = {"max": whole, "mean": float(total / count), "max_per_kind": most}
    if here[SHORT].outputs.ndim == 3:
        shape = here[SHORT].outputs.shape
        means = kinds[SHORT].reshape(shape).mean(axis=(0, 2))
        figures["mean_per_position"] = [float(f"{value:.3g}") for value in means]
    return figures


def _layers(
    rows: Mapping[str, Rows], here: Mapping[str, Computed], other: Mapping[str, Computed]
) -> list[dict[str, Any]]:
    """Differences of the hidden states after the embedding and after each layer.

    `relative` is the largest norm of the difference at a token, as a part of the state's norm.
    """
    last = len(here[SHORT].states) - 1
    names = ["embedding", *(f"layer {layer}" for layer in range(last))]
    names[-1] += " and the final norm"
    layers = []
    for number, name in enumerate(names):
        figures = []
        for kind, of_kind in rows.items():
            a_nxD, b_nxD = (x[kind].states[number][of_kind.real_BxL] for x in (here, other))
            norm_n = np.linalg.norm(b_nxD.astype(np.float64), axis=-1)
            apart_n = np.linalg.norm(b_nxD.astype(np.float64) - a_nxD, axis=-1)
            # The embedding of padding, for one, may be all zeros.
            size_n = np.maximum(np.maximum(norm_n, np.median(norm_n)), np.finfo(np.float32).tiny)
            figures.append([np.abs(a_nxD - b_nxD).max(), (apart_n / size_n).max()])
        most, relative = np.max(figures, axis=0)
        layers.append({"after": name, "max": float(most), "relative": float(relative)})
    return layers


def _other_settings(ours: ModelConfig, theirs: ModelConfig, where: str) -> str:
    """What differs in the settings that decide outputs, "" if nothing does."""
    # Folding an attention scale into the weights changes a setting, and no output.
    folded = (family(c.model_type).fold_attention_scale(c)[0] for c in (ours, theirs))
    here, there = (config.architecture() for config in folded)
    return ", ".join(
        f"{name}={here.get(name)!r} here and {there.get(name)!r} {where}"
        for name in {**here, **there}
        if name not in WITHOUT_EFFECT and here.get(name) != there.get(name)
    )


def _check(
    report: dict[str, Any], name: str, compared: tuple, *, path: Any, whose: str, settings: str
) -> None:
    """Add the differences to the report; DiffersError for too large ones, or other settings."""
    tolerance = report["tolerance"]
    report[name] = difference = _difference(*compared)
    difference["layers"] = layers = _layers(*compared)
    most = float(np.max([layer["relative"] for layer in layers]))
    if not difference["max"] <= tolerance:  # so that nan is an error too
        got = f"the outputs of {path} differ by {difference['max']:.3g} from {whose}"
        problem = f"{got}; expected at most {tolerance:g}"
    elif not most <= STATES * tolerance:
        got = f"the hidden states of {path} differ by {most:.3g} of their size from {whose}"
        problem = f"{got}; expected at most {STATES * tolerance:g}"
    elif settings:
        same = f"outputs on these rows agree with {whose}"
        raise DiffersError(f"{path} has {settings}; {same}", report)
    else:
        return
    first = next((layer for layer in layers if not layer["relative"] <= NOISE), None)
    where = "hidden states agree, so the output head differs"
    if first is not None:
        size = f"{first['relative']:.3g} of their size"
        where = f"the first hidden states that differ, by {size}, are those after {first['after']}"
    cause = f"; settings that differ: {settings}" if settings else ""
    raise DiffersError(f"{problem}; {where}{cause}", report)


def _warning(report: dict) -> str:
    default, ignored = report["default"], ", ".join(report["default"]["ignores"])
    verb = f"IGNORES {ignored}" if ignored else "computes ANOTHER FUNCTION"
    problem = f"transformers {report['transformers']} {verb} by default ({default['attention']})"
    fix = 'load with attn_implementation="eager", or export with --fold_attention_scale'
    return f"{problem}: outputs differ by up to {default['max']:.3g}; {fix}"


def _peers():
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        fix = "pip install 'biomedlm-jax[hf]'"
        raise InputError(f"verify-hf needs {error.name}, which is not installed; {fix}") from None
    return torch, transformers
