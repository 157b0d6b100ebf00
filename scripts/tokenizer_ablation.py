"""Compare language models of equal training FLOPs with a domain tokenizer and a general one.

    python scripts/tokenizer_ablation.py --source=text:articles.jsonl.gz --general=gpt2=gpt2/ \
        --steps=600 --seeds=0,1,2 --out=ablation

1. build-corpus leaves exact and near copies out; --heldout documents, those with the smallest
   hashes of their text, are held out, so the choice depends on nothing else.
2. The domain tokenizer is trained on the other documents. Beside it and the general one, NAME=DIR,
   there is NAME_cut: the general one's first merges, as many as give the domain one's size.
3. Each tokenizer has its token rows of the same documents, and for each seed a model of the same
   layers, width and schedule. --match states what is equal to the domain model's run: the training
   FLOPs (6 x matmul parameters, the output head included, + attention), the bytes of text, or the
   steps. The other two then differ, as does the number of parameters: the table of the vocabulary.
4. With --learning_rates of several values, each tokenizer has the best one of runs of
   --tuning_steps, by bits per byte of validation rows, which are of other documents than the
   held-out ones.
5. Each model scores the first --heldout_bytes of each held-out document, cut before a space, in
   rows of the training length: bits per byte of text. All tokens of a text are scored once; a row
   begins with the last token of the row before. Intervals: 95 % percentile bootstrap, 10,000
   resamples of documents, and of documents and seeds.

Everything is written to --out, the figures to MATCH.json, MATCH.md and MATCH.png. The same command
resumes, also with more seeds or with another --match; other data or models need another --out. Each
process has one thread.
"""

import argparse
import hashlib
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from biomedlm_jax.corpus.corpus_builder import build_corpus
from biomedlm_jax.corpus.documents import Document, read_documents
from biomedlm_jax.corpus.huggingface_tokenizer import byte_level
from biomedlm_jax.corpus.packer import plain_text_tokenizer, split_of
from biomedlm_jax.corpus.sources import parse_sources
from biomedlm_jax.corpus.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    special_id,
    train_tokenizer,
)
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.files import read_json, write_json, write_text
from biomedlm_jax.qa.statistics import Interval, bootstrap

ROOT = Path(__file__).resolve().parents[1]
DOMAIN = "domain"
VALIDATION = 0.02  # of the training documents
TUNING_SEED = 1_000
SCORED_ROWS = 16  # in a call of the model
MATCHES = ("flops", "text", "steps")
# Settings on which tokenizers, token rows and runs depend, but not the names of their directories.
FIXED = ("source", "general", "vocab_size", "variant", "layers", "width", "heads", "length")
FIXED += ("warmup_ratio", "validation_batches", "heldout", "heldout_bytes")


def cut_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE of `vocab_size` entries: the first merges of a larger one.

    It is what the same training would have given with that size.
    """
    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in state["merges"]]
    made = {left + right for left, right in merges}
    letters = [entry for entry in state["vocab"] if entry not in made and len(entry) == 1]
    entries, kept = dict.fromkeys(sorted(letters, key=state["vocab"].get)), []
    for left, right in merges:
        if len(entries) == vocab_size - 1:
            break
        entries[left + right] = None
        kept.append((left, right))
    if len(entries) < vocab_size - 1:
        raise SystemExit(f"the general tokenizer has fewer than {vocab_size} entries")
    ids = {entry: number for number, entry in enumerate([*entries, END_OF_TEXT])}
    cut = byte_level(models.BPE(vocab=ids, merges=kept))
    cut.add_special_tokens([END_OF_TEXT])
    return cut


def digest(text: str) -> str:
    """Return the SHA-256 of a text, which orders the documents."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def beginning(text: str, size: int) -> str:
    """Return the first `size` bytes of a text at most, cut before a space or a new line."""
    if len(text.encode("utf-8")) <= size:
        return text
    head = text.encode("utf-8")[: size + 1].decode("utf-8", "ignore")
    end = max(head.rfind(" "), head.rfind("\n"))
    return head[:end] if end > 0 else head[:-1]


def prepare(options: argparse.Namespace) -> None:
    """Build the corpus, the two parts, the tokenizers and the token rows, unless they are there."""
    out = options.out
    if not (out / "corpus").exists():
        workers = max(1, options.workers)
        build_corpus(parse_sources(options.source), out / "corpus", workers=workers)
    texts = sorted((d.text for d in read_documents([out / "corpus"])), key=digest)
    heldout, training = texts[: options.heldout], texts[options.heldout :]
    if not training:
        raise SystemExit(f"got {len(texts)} documents; lower --heldout={options.heldout}")
    heads = [beginning(text, options.heldout_bytes) for text in heldout]
    settings = {name: getattr(options, name) for name in FIXED}
    facts = {
        "settings": settings,
        "documents": len(texts),
        "training_documents": len(training),
        "training_bytes": sum(len(text.encode("utf-8")) for text in training),
        "heldout_documents": len(heads),
        "heldout_bytes": sum(len(head.encode("utf-8")) for head in heads),
        "heldout_sha256": [digest(head) for head in heads],
    }
    if (out / "split.json").exists() and (old := read_json(out / "split.json")) != facts:
        others = [n for n in FIXED if old.get("settings", {}).get(n) != settings[n]]
        what = f"--{others[0]}" if others else "split of the documents"
        raise SystemExit(f"{out} was made with another {what}; choose another --out")
    write_json(out / "heldout.json", {"texts": heads})
    write_json(out / "split.json", facts)
    for name in options.tokenizers:
        folder = out / "tokenizers" / name
        if not (folder / "complete").exists():
            if name == DOMAIN:
                seen = (
                    text
                    for text in training
                    if split_of(text.encode("utf-8"), validation_fraction=VALIDATION) == "train"
                )
                tokenizer = train_tokenizer(seen, vocab_size=options.vocab_size)
            elif name == options.general_name:
                tokenizer = load_tokenizer(options.general_path)
            else:
                tokenizer = cut_tokenizer(load_tokenizer(options.general_path), options.vocab_size)
            save_tokenizer(tokenizer, folder, overwrite=True)
            (folder / "complete").touch()
        if not (out / "tokens" / name).exists():
            build_tokens(
                (Document(text, f"training:{n}") for n, text in enumerate(training)),
                load_tokenizer(folder),
                out / "tokens" / name,
                length=options.length,
                validation_fraction=VALIDATION,
            )
        print(f"{name}: token rows are ready", flush=True)


def run_config(options: argparse.Namespace, name: str, steps: int, rate: float, seed: int):
    """Return the pre-training config of a run."""
    config = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"](options.variant)
    config.data.update(path=str(options.out / "tokens" / name), seed=seed)
    for field in ("layers", "width", "heads"):
        if getattr(options, field):
            config.model[field] = getattr(options, field)
    warmup = round(steps * options.warmup_ratio)
    config.optimizer.update(learning_rate=rate, warmup_steps=warmup)
    config.training.update(steps=steps, batch_size=options.batch_size, seed=seed)
    config.training.update(evaluate_every=steps, evaluate_batches=options.validation_batches)
    config.checkpoint.update(every=max(50, steps // 4), keep=1)
    config.logging.update(every=max(1, steps // 40), trackers=())
    return config


def run_folder(options, name: str, steps: int, rate: float, seed: int) -> Path:
    """Return the directory of a run."""
    return options.out / "runs" / f"{name}-{steps}x{options.batch_size}-lr{rate:g}-seed{seed}"


def is_done(options: argparse.Namespace, name: str, steps: int, rate: float, seed: int) -> bool:
    """Return whether a run is trained and, unless it tries a learning rate, scored."""
    last = "bits.json" if seed < TUNING_SEED else "validation.json"
    return (run_folder(options, name, steps, rate, seed) / last).exists()


def train_and_score(options, name: str, steps: int, rate: float, seed: int) -> None:
    """Train or resume one model; write its validation figures and, untuned, its bits."""
    from biomedlm_jax import load, pretrain

    workdir = run_folder(options, name, steps, rate, seed)
    if not (workdir / "validation.json").exists():
        figures = pretrain(run_config(options, name, steps, rate, seed), workdir)
        if "bits_per_byte" not in figures:  # finished by a call that was killed after its last step
            lines = (workdir / "metrics.jsonl").read_text().splitlines()
            figures = next(one for one in map(json.loads, lines) if "bits_per_byte" in one)
        write_json(workdir / "validation.json", figures)
    if seed < TUNING_SEED:
        model, tokenizer = load(workdir)
        heads = read_json(options.out / "heldout.json")["texts"]
        bits = document_bits(model, tokenizer, heads, options.length)
        write_json(workdir / "bits.json", {"bits": bits})


def document_bits(model, tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[float]:
    """Return the bits of each text: -log2 of the probability of its tokens after end of text.

    A row has `length` ids, of which the first is context. The padding after a text is not scored.
    """
    import jax
    import jax.numpy as jnp

    from biomedlm_jax.training.loss import token_log_probabilities

    @jax.jit
    def score(model, tokens_BxL):
        x_BxLxD = model.hidden(tokens_BxL)
        return token_log_probabilities(model, x_BxLxD[:, :-1], tokens_BxL[:, 1:])[0]

    end = special_id(tokenizer, "eos_token")
    rows, owners, sizes = [], [], []
    for number, encoding in enumerate(
        plain_text_tokenizer(tokenizer).encode_batch(list(texts), add_special_tokens=False)
    ):
        ids = [end, *encoding.ids]
        for start in range(0, len(ids) - 1, length - 1):
            row = ids[start : start + length]
            rows.append(row + [end] * (length - len(row)))
            owners.append(number)
            sizes.append(len(row) - 1)
    bits = np.zeros(len(texts))
    for start in range(0, len(rows), SCORED_ROWS):
        part = rows[start : start + SCORED_ROWS]
        padded = part + [part[0]] * (SCORED_ROWS - len(part))
        scores = np.asarray(score(model, jnp.asarray(padded, jnp.int32)), np.float64)
        for place, row_scores in enumerate(scores[: len(part)]):
            where = start + place
            bits[owners[where]] -= row_scores[: sizes[where]].sum() / math.log(2)
    return bits.tolist()


def sizes(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return parameters, FLOPs of a token, bytes of text of a token and steps of each model."""
    from biomedlm_jax.model.families import abstract_model
    from biomedlm_jax.model.language_model import parameter_count
    from biomedlm_jax.training.metrics import flops_per_token
    from biomedlm_jax.training.pretrain import fill_config_from_manifest

    figures: dict[str, dict[str, float]] = {}
    for name in options.tokenizers:
        manifest = read_json(options.out / "tokens" / name / "manifest.json")
        config = run_config(options, name, 1, 1.0, 0).model
        model = abstract_model(fill_config_from_manifest(config.to_dict(), manifest))
        train = manifest["splits"]["train"]
        figures[name] = {
            "vocab_size": manifest["vocab_size"],
            "parameters": parameter_count(model),
            "flops_per_token": flops_per_token(model, options.length),
            "bytes_per_token": train["text_bytes"] / train["tokens"],
            "training_tokens": train["tokens"],
        }
    first = figures[DOMAIN]
    measure = {"flops": "flops_per_token", "text": "bytes_per_token", "steps": "vocab_size"}
    for one in figures.values():
        field = measure[options.match]
        ratio = 1 if options.match == "steps" else first[field] / one[field]
        one["steps"] = max(1, round(options.steps * ratio))
        tokens = one["steps"] * options.batch_size * options.length
        one["tokens"], one["flops"] = tokens, tokens * one["flops_per_token"]
        one["text_bytes"], one["passes"] = (
            tokens * one["bytes_per_token"],
            tokens / one["training_tokens"],
        )
    return figures


def run_all(
    options: argparse.Namespace,
    runs: Sequence[tuple[str, int, float, int]],
    report: Callable[[], None] = lambda: None,
) -> None:
    """Train and score what is not done yet, in --workers processes of one thread each.

    `report` is called after each run.
    """
    waiting = [run for run in runs if not is_done(options, *run)]
    environment = {**os.environ, "PJRT_NPROC": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.getenv('PYTHONPATH', '')}"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.out / "compiled"))
    (options.out / "logs").mkdir(exist_ok=True)
    active: dict[subprocess.Popen, tuple[tuple, float]] = {}
    try:
        while waiting or active:
            while waiting and len(active) < options.workers:
                run = waiting.pop(0)
                log = (options.out / "logs" / f"{run_folder(options, *run).name}.log").open("a")
                chosen = [f"--run={','.join(map(str, run))}", *sys.argv[1:]]
                command = [sys.executable, str(ROOT / "scripts" / Path(__file__).name), *chosen]
                with log:
                    process = subprocess.Popen(
                        command, stdout=log, stderr=log, env=environment, start_new_session=True
                    )
                active[process] = (run, time.monotonic())
            time.sleep(0.2)
            for process in [one for one in active if one.poll() is not None]:
                run, began = active.pop(process)
                name = run_folder(options, *run).name
                if process.returncode:
                    raise SystemExit(f"{name} failed; see {options.out / 'logs' / name}.log")
                seconds = time.monotonic() - began
                print(f"{name}: {seconds:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
                report()
    finally:  # each saves a checkpoint and ends
        for process in active:
            process.terminate()
        for process in active:
            process.wait()


def tuned_rates(options, figures: Mapping, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the learning rate of each tokenizer and the validation figures of those tried."""
    rates = options.learning_rates
    chosen: dict[str, dict[str, Any]] = {name: {"rate": rates[0]} for name in names}
    if len(rates) == 1:
        return chosen
    scale = options.tuning_steps / options.steps
    steps = {name: max(1, round(figures[name]["steps"] * scale)) for name in names}
    runs = [(name, steps[name], rate, TUNING_SEED) for rate in rates for name in names]
    run_all(options, runs)
    for name, of_name in chosen.items():
        of_name["tuning_steps"] = steps[name]
        tried = of_name["tried"] = {
            f"{run[2]:g}": read_json(run_folder(options, *run) / "validation.json")["bits_per_byte"]
            for run in runs
            if run[0] == name
        }
        of_name["rate"] = float(min(tried, key=tried.__getitem__))
        print(f"{name}: bits per byte by learning rate: {tried}", flush=True)
    return chosen


def summary(
    bits: Mapping[str, np.ndarray], bytes_N: np.ndarray, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return bits per byte of each tokenizer, from bits [seeds, documents], beside the domain's.

    The difference is other - domain: above 0, the domain tokenizer is better.
    """
    report: dict[str, dict[str, Any]] = {}
    first_SxN = bits[DOMAIN]
    for name, bits_SxN in bits.items():
        seeds = len(bits_SxN)
        of_seeds = (bits_SxN.sum(1) / bytes_N.sum()).tolist()
        columns = np.column_stack([*bits_SxN, *first_SxN, bytes_N])
        rng = np.random.default_rng(seed + 1)

        def ratio(sums_RxF, n_R, *, of_first: bool, resample: bool, seeds=seeds, rng=rng):
            parts = sums_RxF[:, :seeds], sums_RxF[:, seeds:-1] * of_first
            means = []
            for part in parts:
                weights = np.full(part.shape, 1 / part.shape[1])
                if resample:
                    n = part.shape[1]
                    weights = rng.multinomial(n, np.full(n, 1 / n), len(part)) / n
                means.append((part * weights).sum(1))
            return (means[0] - means[1]) / sums_RxF[:, -1]

        def interval(of_first: bool, resample: bool, columns=columns, ratio=ratio) -> Interval:
            def statistic(sums_RxF, n_R):
                resampled = resample and len(sums_RxF) > 1
                return ratio(sums_RxF, n_R, of_first=of_first, resample=resampled)

            return bootstrap(columns, statistic, None, seed)

        report[name] = {
            "bits_per_byte": interval(False, False)._asdict(),
            "of_seeds": of_seeds,
        }
        if name != DOMAIN:
            report[name]["difference"] = interval(True, False)._asdict()
            report[name]["difference_of_documents_and_seeds"] = interval(True, True)._asdict()
            by_document = bits_SxN.mean(0) > first_SxN.mean(0)
            report[name]["documents_better_with_domain"] = int(by_document.sum())
    return report


def write_report(options, figures: Mapping, rates: Mapping, seeds: Sequence[int]) -> None:
    """Write MATCH.json, MATCH.md and MATCH.png of the tokenizers in `rates`; print the table."""
    heads = read_json(options.out / "heldout.json")["texts"]
    bytes_N = np.array([len(head.encode("utf-8")) for head in heads])
    bits: dict[str, np.ndarray] = {}
    for name, of_name in rates.items():
        runs = [(name, figures[name]["steps"], of_name["rate"], seed) for seed in seeds]
        folders = [run_folder(options, *run) for run in runs]
        bits[name] = np.array([read_json(folder / "bits.json")["bits"] for folder in folders])
    report = summary(bits, bytes_N)
    split = {k: v for k, v in read_json(options.out / "split.json").items() if "sha" not in k}
    content = {
        "match": options.match,
        "seeds": seeds,
        "split": split,
        "models": {name: {**figures[name], **rates[name], **report[name]} for name in bits},
    }
    write_json(options.out / f"{options.match}.json", content)
    table = markdown(content)
    write_text(options.out / f"{options.match}.md", table)
    print(table, flush=True)
    plot(content, bits, bytes_N, options.out / f"{options.match}.png")


def markdown(content: Mapping[str, Any]) -> str:
    """Return the table."""
    lines = [
        "| tokenizer | entries | parameters | steps | tokens | text | TFLOPs | learning rate | "
        "bits per byte (seeds) | more than domain |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    for name, one in content["models"].items():
        value = one["bits_per_byte"]
        seeds = ", ".join(f"{x:.3f}" for x in one["of_seeds"])
        other = ""
        if "difference" in one:
            pair = one["difference"], one["difference_of_documents_and_seeds"]
            value_, (a, b) = pair[0]["value"], ((p["low"], p["high"]) for p in pair)
            other = (
                f"{value_:+.3f} ({a[0]:+.3f} to {a[1]:+.3f}; seeds too: {b[0]:+.3f} to {b[1]:+.3f})"
            )
        lines.append(
            f"| {name} | {one['vocab_size']:,} | {one['parameters'] / 1e6:.1f} M | {one['steps']:,}"
            f" | {one['tokens'] / 1e6:.2f} M | {one['text_bytes'] / 1e6:.2f} MB | "
            f"{one['flops'] / 1e12:,.1f} | {one['rate']:g} | {value['value']:.3f} "
            f"({value['low']:.3f} to {value['high']:.3f}; {seeds}) | {other} |"
        )
    return "\n".join(lines) + "\n"


def plot(content, bits: Mapping[str, np.ndarray], bytes_N: np.ndarray, path: Path) -> None:
    """Draw bits per byte of each seed, and the differences of the documents."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(bits)
    equal = content["match"].replace("flops", "FLOPs")
    for place, name in enumerate(names):
        one = content["models"][name]
        interval = one["bits_per_byte"]
        error = [[interval["value"] - interval["low"]], [interval["high"] - interval["value"]]]
        left.errorbar([place], [interval["value"]], error, fmt="D", color=f"C{place}", capsize=4)
        spread = place + np.linspace(0.12, 0.24, len(one["of_seeds"]))
        left.plot(spread, one["of_seeds"], "o", color=f"C{place}", alpha=0.5, markersize=4)
        if name != DOMAIN:
            differences = (bits[name].mean(0) - bits[DOMAIN].mean(0)) / bytes_N
            right.hist(differences, bins=40, alpha=0.6, color=f"C{place}", label=f"{name} - domain")
    left.set_xticks(range(len(names)), names)
    left.set(ylabel="bits per byte, held-out documents", xlim=(-0.5, len(names) - 0.3))
    left.set_title(f"mean and 95 % interval; each seed (equal {equal})", fontsize=9)
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set(xlabel="difference of bits per byte", ylabel="documents")
    right.set_title("right of 0: better with the domain tokenizer", fontsize=9)
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def numbers(kind: type):
    """Return a reader of numbers with commas between them."""
    return lambda text: [kind(part) for part in text.split(",")]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", action="append", required=True, help="as build-corpus's; repeatable")
    add("--general", required=True, help="NAME=DIR of a general byte-level BPE, such as GPT-2's")
    add("--out", type=Path, required=True, help="directory of everything that is written")
    add("--steps", type=int, default=600, help="steps of the domain model")
    add("--seeds", type=numbers(int), default=[0, 1, 2], help="seeds of weights and of the order")
    add("--match", choices=MATCHES, default="flops", help="what is equal in all runs")
    add("--vocab_size", type=int, default=28_896, help="entries of the domain tokenizer")
    add("--variant", default="gpt_cpu", help="variant of configs/pretrain.py")
    for name in ("layers", "width", "heads"):
        add(f"--{name}", type=int, default=0, help="0: the variant's")
    add("--length", type=int, default=256, help="tokens of a row")
    add("--batch_size", type=int, default=4, help="rows of a step")
    add("--learning_rates", type=numbers(float), default=[1e-3], help="peaks; the best is chosen")
    add("--tuning_steps", type=int, default=150, help="steps of a run that tries a learning rate")
    add("--warmup_ratio", type=float, default=0.1, help="share of the steps with a rising rate")
    add("--validation_batches", type=int, default=32, help="of the figure that chooses the rate")
    add("--heldout", type=int, default=200, help="documents held out")
    add(
        "--heldout_bytes", type=int, default=3_000, help="of each held-out document, from its start"
    )
    add("--workers", type=int, default=2, help="processes")
    add("--no_cut", action="store_true", help="without the general tokenizer cut to --vocab_size")
    add("--run", help=argparse.SUPPRESS)  # of a process: one run
    options = parser.parse_args(arguments)
    options.general_name, _, options.general_path = options.general.partition("=")
    if not options.general_path or options.general_name == DOMAIN:
        parser.error(f"got --general={options.general}; expected NAME=DIR, such as gpt2=gpt2/")
    options.tokenizers = [DOMAIN, options.general_name]
    options.tokenizers += [] if options.no_cut else [f"{options.general_name}_cut"]
    return options


def main() -> None:
    """Prepare, run and report."""
    options = parse()
    if options.run:
        name, steps, rate, seed = options.run.split(",")
        train_and_score(options, name, int(steps), float(rate), int(seed))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(options)
    figures = sizes(options)
    # Seed by seed, and the cut tokenizer last, so that a part is a whole comparison.
    names, rates, written = options.tokenizers, {}, []

    def run_of(name: str, seed: int) -> tuple[str, int, float, int]:
        return name, int(figures[name]["steps"]), rates[name]["rate"], seed

    def report() -> None:
        done = [
            seed
            for seed in options.seeds
            if all(is_done(options, *run_of(name, seed)) for name in rates)
        ]
        if done and written[-1:] != [(done, [*rates])]:
            write_report(options, figures, rates, done)
            written.append((done, [*rates]))

    for group in (names[:2], names[2:]):
        rates |= tuned_rates(options, figures, group)
        runs = [run_of(name, seed) for seed in options.seeds for name in group]
        run_all(options, runs, report)
        report()


if __name__ == "__main__":
    main()
