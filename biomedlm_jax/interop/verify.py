"""verify_hf(): does transformers compute what this library computes from the same directory?"""

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import special_id
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import HUGGING_FACE, kind_of, model_config, read_tokenizer
from biomedlm_jax.interop.finetuned import CHOICE, CLASSIFICATION, load_finetuned, read_head
from biomedlm_jax.interop.huggingface import PAD, load
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.families import config_to_hf, family
from biomedlm_jax.model.heads import Scorer

TOLERANCE = 1e-4
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
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
TEXT = "We measured the cytotoxicity of nanoparticles in 24 mice (p < 0.05) and report every ECG."


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
    (default: 64, or all positions of a smaller model). They are compared with transformers' eager
    attention, with its default one (warning if it computes another function), and with those of
    the run directory `run`. Before that the ids of `PROBE` and of the special tokens are compared
    with those of AutoTokenizer. Models of this library go onto `mesh`, by default one device. `ids`
    are those of `import_hf`. Returns figures, ready for JSON. Raises InputError if an absolute
    difference (except the default attention's) exceeds `tolerance`, a token id differs, or torch
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
    tokens = _tokens(config.vocab_size, tokenizer, batch=batch, length=length, seed=seed)
    here = _outputs(model, tokens)
    del model
    eager, _ = _transformers_outputs(path, tokens, attn_implementation="eager")
    # The settings of config.json that folding the attention scale would change.
    folded = config_to_hf(family(config.model_type).fold_attention_scale(config)[0])
    foldable = {k: v for k, v in config_to_hf(config).items() if v != folded[k]}
    report: dict[str, Any] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "jax": jax.__version__,
        "foldable_settings": foldable,
        "texts_with_equal_ids": texts,
        "rows": tokens.shape[0],
        "length": tokens.shape[1],
        "tolerance": tolerance,
        "largest_output": float(np.abs(eager).max()),
        "eager": _within(tolerance, path, here, eager, "those that transformers computes"),
    }
    if run is not None:
        model, _ = _load(run, mesh)
        if tokens.max() >= model.config.vocab_size:
            raise InputError(f"{run} has a vocabulary of {model.config.vocab_size} only")
        trained = _outputs(model, tokens)
        del model
        report["run"] = _within(tolerance, path, here, trained, f"those of {run}")
    default, attention = _transformers_outputs(path, tokens)
    report["default"] = {"attention": attention, **_difference(here, default), "ignores": []}
    if not report["default"]["max"] <= tolerance:  # nan is no agreement
        if foldable:
            without = {name: folded[name] for name in foldable}
            other, _ = _transformers_outputs(path, tokens, attn_implementation="eager", **without)
            if _difference(default, other)["max"] <= tolerance:
                report["default"]["ignores"] = sorted(foldable)
        warnings.warn(_warning(report), RuntimeWarning, stacklevel=2)
    return report


def compare_ids(tokenizer: Tokenizer, path: str | Path) -> int:
    """Return how many texts have the ids of transformers' AutoTokenizer of the directory `path`.

    They are `PROBE` and texts with each added token of either side. Raises InputError for the first
    that differs.
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
    return len(texts)


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


def _outputs(model: Any, tokens: np.ndarray) -> np.ndarray:
    # GPU and TPU would multiply in TF32 or bfloat16, which hides differences of the weights.
    with jax.default_matmul_precision("highest"):
        return np.asarray(_forward(model, tokens))


@jax.jit
def _forward(model, tokens_BxL):
    if isinstance(model, Scorer):
        return model(model.trunk.hidden(tokens_BxL)[:, -1])
    return model(tokens_BxL)


def _transformers_outputs(
    path: str | Path, tokens: np.ndarray, **options: Any
) -> tuple[np.ndarray, str]:
    """The outputs that transformers computes, and the name of its attention."""
    torch, transformers = _peers()
    head = read_head(path)
    loader = {
        None: transformers.AutoModelForCausalLM,
        CHOICE: transformers.AutoModel,  # transformers has no class for choices
        CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    }[head and head.kind]
    model = loader.from_pretrained(path, **options).float().eval()
    with torch.no_grad():
        result = model(torch.from_numpy(tokens.astype(np.int64)))
        if head is not None and head.kind == CHOICE:
            files = TensorFiles(path, model_config(path))
            weight, bias = (files.read(f"score.{name}") for name in ("weight", "bias"))
            state_BxD = result.last_hidden_state[:, -1].numpy()
            outputs = (state_BxD @ weight.T + bias)[:, 0]
        else:
            outputs = result.logits.numpy()
    return outputs, str(getattr(model.config, "_attn_implementation", "unknown"))


def _tokens(size: int, tokenizer: Tokenizer | None, *, batch, length, seed) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, size, (batch, length))
    if tokenizer is not None:
        text = np.resize(tokenizer.encode(TEXT).ids, (1, length))  # repeated as needed
        tokens = np.concatenate([tokens, text])
        # transformers scores the last token that is not padding.
        tokens[tokens == (tokenizer.token_to_id(PAD) or 0)] = 0
    return tokens.astype(np.int32)


def _difference(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    if a.shape != b.shape:
        raise InputError(f"got outputs of shape {b.shape}; expected {a.shape}")
    difference = np.abs(a.astype(np.float32) - b)
    figures: dict[str, Any] = {"max": float(difference.max()), "mean": float(difference.mean())}
    if difference.ndim == 3:
        means = difference.mean(axis=(0, 2))
        figures["mean_per_position"] = [float(f"{value:.3g}") for value in means]
    return figures


def _within(tolerance: float, path, here: np.ndarray, other: np.ndarray, whose: str) -> dict:
    difference = _difference(here, other)
    if not difference["max"] <= tolerance:  # so that nan is an error too
        got = f"the outputs of {path} differ by {difference['max']:.3g} from {whose}"
        raise InputError(f"{got}; expected at most {tolerance:g}")
    return difference


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
