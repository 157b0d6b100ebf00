import dataclasses
import functools
import json
import runpy
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.corpus.batches import Batches
from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.interop.huggingface import export_directory, load
from biomedlm_jax.interop.initial import initial_weights
from biomedlm_jax.model.families import abstract_model, make_config, make_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.model.language_model import map_parameters, named_leaves, parameter_count
from biomedlm_jax.model.llama import LlamaConfig
from biomedlm_jax.model.lora import Adapter, matrices_in
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.loss import next_token_loss
from biomedlm_jax.training.metrics import read_metrics
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.pretrain import PretrainSettings, pretrain
from biomedlm_jax.training.provenance import weights_hash
from biomedlm_jax.training.saved_steps import steps
from biomedlm_jax.training.state import init_state, jit_step, train_step


def test_what_the_config_leaves_unset_comes_from_the_token_rows(finished):
    model = json.loads((finished / "config.json").read_text())["model"]
    assert (model["vocab_size"], model["context_length"], model["eos_token_id"]) == (300, 32, 299)


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("model", "heads", 7, "model.heads=7, which does not divide"),
        ("model", "context_length", 64, "64"),
        ("model", "vocab_size", 200, "200"),
        ("mesh", "data", 3, "mesh data=3"),
        ("mesh", "tensor", 8, "does not divide the model's heads of 4"),
        ("training", "batch_size", 12, "batch_size=12; expected a multiple"),
        ("training", "batch_size", 80_000, "80000"),
        ("training", "steps", 0, "at least 1"),
        ("optimizer", "learning_rate", float("nan"), "got optimizer.learning_rate=nan"),
        ("optimizer", "warmup_steps", 12, "set --config.optimizer.warmup_steps=1"),
        ("training", "evaluate_batches", 0, "evaluate_batches=0; expected at least 1, or -1"),
        ("training", "evaluate_batches", -5, "evaluate_batches=-5; expected at least 1, or -1"),
        ("lora", "rank", 2, "got lora.rank=2 without --init; .*: add --init=DIR, or set"),
        ("training", "loss_chunks", 5, "loss_chunks=5; expected a divisor"),
        ("data", "path", "nowhere", "nowhere"),
        ("data", "path", "", "empty config.data.path"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    config, tmp_path, group, name, value, message
):
    config[group][name] = value
    with pytest.raises(InputError, match=message):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_or_missing_key(config, tmp_path):
    with config.unlocked():
        config.training.stepz = 3
    with pytest.raises(ValueError, match=r"got config.training.stepz, which is unknown"):
        pretrain(config, tmp_path / "run")
    with config.unlocked():
        del config.training.stepz
        del config.optimizer.beta1
    with pytest.raises(ValueError, match=r"config.optimizer lacks beta1"):
        pretrain(config, tmp_path / "run")


def test_a_directory_of_another_run_is_left_alone(config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    config.optimizer.learning_rate = 1e-2
    with pytest.raises(ValueError, match=r"optimizer.learning_rate=0.003 \(now 0.01\)"):
        pretrain(config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and holds no run"):
        pretrain(config, tmp_path / "papers")


def test_a_wrong_end_of_text_is_refused_at_once(config, tmp_path):
    config.model.eos_token_id = 7
    with pytest.raises(ValueError, match="299"):
        pretrain(config, tmp_path / "run")


def test_rows_of_another_tokenizer_do_not_touch_the_run(config, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "config.json").read_text()
    texts = [f"quite another corpus of {i * 7919} words and figures" for i in range(200)]
    documents = [Document(text, text) for text in texts]
    other = train_tokenizer(iter(texts), vocab_size=300)
    build_tokens(documents, other, tmp_path / "other", length=32, validation_fraction=0.1)
    config.data.path = str(tmp_path / "other")
    with pytest.raises(ValueError, match="the token rows have tokenizer_hash="):
        pretrain(config, run)
    assert (run / "config.json").read_text() == before


@pytest.mark.slow
def test_bits_per_byte_are_of_the_rows_that_were_evaluated(config, tokenizer, tmp_path):
    config.training.evaluate_batches = 1
    metrics = pretrain(config, tmp_path / "run")
    rows = np.stack(list(Rows(config.data.path, "validation")))
    size = min(len(rows), config.training.batch_size)
    chosen = rows[[i * len(rows) // size for i in range(size)]]
    end, symbols = tokenizer.token_to_id("<|endoftext|>"), tokenizer.id_to_token
    text_bytes = sum(len(symbols(i)) for i in chosen[:, 1:].ravel().tolist() if i != end)
    bits = metrics["validation_loss"] / np.log(2) * chosen[:, 1:].size
    assert metrics["bits_per_byte"] == pytest.approx(bits / text_bytes, rel=1e-6)


@pytest.fixture
def continued(config):
    """The variant whose architecture is that of the weights, with the tiny run's other groups."""
    path = Path(__file__).parents[2] / "configs" / "pretrain.py"
    result = runpy.run_path(str(path))["get_config"]("continued")
    for group in ("data", "training", "checkpoint", "logging"):
        result[group].update(config[group])
    result.optimizer.update(learning_rate=3e-3, warmup_steps=0)
    result.checkpoint.keep = 5  # a thread deletes steps, while tests copy the run
    return result


def leaves(run: Path) -> list[np.ndarray]:
    return jax.tree.leaves(jax.tree.map(np.asarray, load(run)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("run", marks=pytest.mark.slow), "hugging_face"])
def test_the_first_step_from_weights_is_one_made_by_hand(continued, finished, tmp_path, kind):
    source, run = finished, tmp_path / "run"
    if kind == "hugging_face":
        source = export_directory(finished, tmp_path / "release", max_shard_size="5GB")
    continued.training.update(steps=1, evaluate_every=0, seed=5)
    pretrain(continued, run, init=initial_weights(source))

    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        model, _ = load(source, mesh=mesh, residual_dropout=0.0)
        rows = {"batch_size": 8, "sharding": meshes.sharding(mesh, "batch", "length")}
        tokens = next(Batches(continued.data.path, **rows, seed=continued.data.seed))
        decay = continued.optimizer.weight_decay / 3e-3
        adamw = optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=decay)
        tx = optax.chain(optax.clip_by_global_norm(1.0), adamw)

        @jax.jit
        def step(model, moments):
            loss, gradient = jax.value_and_grad(next_token_loss)(model, tokens)
            updates, moments = tx.update(gradient, moments, model)
            return loss, optax.apply_updates(model, updates), moments

        loss, expected, _ = step(model, tx.init(model))

        # Bits depend on how XLA fuses: equal ones need the same program.
        make = functools.partial(init_state, tx=tx)
        abstract = meshes.abstract_sharded(make, mesh, model)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state = jax.jit(make, out_shardings=shardings)(model)
        kept = {"tx": tx, "seed": 5, "loss_fn": next_token_loss}
        same, metrics = jit_step(train_step, abstract=abstract, **kept)(state, tokens)
    assert read_metrics(run)[0]["loss"] == float(metrics["loss"])
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    results = leaves(run), jax.tree.leaves(same.model), jax.tree.leaves(expected)
    for mine, bits, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, bits)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
    record = json.loads((run / "run.json").read_text())
    assert record["started_from"]["weights"] == weights_hash(model)
    assert record["started_from"]["path"] == str(source)
    started_from = {name: record["started_from"][name] for name in ("path", "weights")}
    config = json.loads((run / "config.json").read_text())
    assert config["started_from"] == started_from
    assert config["model"]["layers"] == 2


@pytest.mark.slow
def test_a_run_from_weights_resumes_without_them(continued, finished, tmp_path):
    source, whole = shutil.copytree(finished, tmp_path / "source"), tmp_path / "whole"
    pretrain(continued, whole, init=initial_weights(source))
    part, new = (shutil.copytree(whole, tmp_path / name) for name in ("part", "new"))
    for step in (8, 12):
        shutil.rmtree(part / "checkpoints" / str(step))
    shutil.rmtree(new / "checkpoints")
    other = save_finetuned(tmp_path / "other", *load(source, step=6))
    with pytest.raises(ValueError, match=r"holds a run with weights=\w{12} \(now \w{12}\)"):
        pretrain(continued, part, init=initial_weights(other))
    shutil.rmtree(source)
    assert pretrain(continued, part)["step"] == 12
    for a, b in zip(leaves(whole), leaves(part), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("run.json", "config.json"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(ValueError, match=r"has no checkpoint yet; give --init=.*source again"):
        pretrain(continued, new)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    config, continued, finished, tokenizer, tmp_path
):
    init, run = initial_weights(finished), tmp_path / "run"
    with pytest.raises(ValueError, match=r"got no model.layers; .* start from weights with --init"):
        pretrain(continued, run)
    config.model.layers = 3
    with pytest.raises(ValueError, match=r"got model.layers=3, and the .* layers=2; set"):
        pretrain(config, run, init=init)
    texts = [f"quite another corpus of {i * 7919} words and figures" for i in range(200)]
    other = train_tokenizer(iter(texts), vocab_size=300)
    documents = [Document(text, text) for text in texts]
    rows = {"validation_fraction": 0.1}
    build_tokens(documents, other, tmp_path / "other", length=32, **rows)
    build_tokens(documents, tokenizer, tmp_path / "long", length=64, **rows)
    continued.data.path = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"have another tokenizer .* build them again with"):
        pretrain(continued, run, init=init)
    continued.data.path = str(tmp_path / "long")
    with pytest.raises(ValueError, match="have length=64, but the model has length=32"):
        pretrain(continued, run, init=init)
    assert not run.exists()


@pytest.mark.slow
def test_the_model_of_a_run_with_lora_is_the_merged_one(continued, finished, tmp_path):
    source, run = shutil.copytree(finished, tmp_path / "source"), tmp_path / "run"
    for step in (8, 12):  # what is left has much to learn
        shutil.rmtree(source / "checkpoints" / str(step))
    continued.lora.update(rank=2, alpha=6.0)
    continued.optimizer.learning_rate = 0.01
    metrics, base = pretrain(continued, run, init=initial_weights(source)), load(source)[0]
    for step in steps(run):
        model, _ = load(run, step=step)
        item = run / "checkpoints" / str(step) / "trained"
        factors = ocp.PyTreeCheckpointer().restore(item)["lora"]["factors"]
        layers, before = named_leaves(model.blocks), named_leaves(base.blocks)
        assert {f"{name}.kernel" for name in factors} < {*layers}
        for name, kernel in layers.items():
            expected = before[name]
            if (of := factors.get(name.removesuffix(".kernel"))) and name.endswith(".kernel"):
                a, b = (np.asarray(of[f]["value"], np.float64) for f in "ab")
                assert a.shape[-1] == b.shape[-2] == 2
                assert np.abs(b).max() > 1e-3
                expected = np.asarray(expected) + 6.0 / 2 * a @ b
            np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(model.wte[...], base.wte[...])
        np.testing.assert_array_equal(model.wpe[...], base.wpe[...])
    rows = np.stack(list(Rows(continued.data.path, "validation")))
    loss, loss_before = (float(next_token_loss(one, rows)) for one in (model, base))
    assert metrics["validation_loss"] == pytest.approx(loss, 1e-5)
    assert loss < loss_before


@pytest.mark.slow
def test_the_factors_of_a_run_with_lora_are_those_of_steps_made_by_hand(
    continued, finished, tmp_path
):
    run, rate = tmp_path / "run", 3e-3
    continued.lora.update(rank=2, alpha=6.0)
    continued.training.update(steps=3, evaluate_every=0, seed=5)
    pretrain(continued, run, init=initial_weights(finished))

    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        model, _ = load(finished, mesh=mesh, residual_dropout=0.0)
        key = jax.random.fold_in(jax.random.key(5), 1)
        start = Adapter(model, added=0, rank=2, alpha=6.0, key=key).lora.factors
        factors = {name: {f: ab[f][...] for f in "ab"} for name, ab in start.items()}

        def loss_of(factors, tokens):
            def add(name, variable):
                if (of := name.removesuffix(".kernel")) == name:
                    return variable
                return variable.replace(variable[...] + 3.0 * factors[of]["a"] @ factors[of]["b"])

            return next_token_loss(model.with_blocks(map_parameters(add, model.blocks)), tokens)

        decay = continued.optimizer.weight_decay / rate
        adamw = optax.adamw(rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=decay)
        tx = optax.chain(optax.clip_by_global_norm(1.0), adamw)
        moments, losses = tx.init(factors), []
        rows = {"batch_size": 8, "sharding": meshes.sharding(mesh, "batch", "length")}
        batches = Batches(continued.data.path, **rows, seed=continued.data.seed)
        for _ in range(3):
            loss, gradient = jax.jit(jax.value_and_grad(loss_of))(factors, next(batches))
            updates, moments = tx.update(gradient, moments, factors)
            factors = optax.apply_updates(factors, updates)
            losses.append(float(loss))
    lines = [line["loss"] for line in read_metrics(run) if "loss" in line]
    np.testing.assert_allclose(lines, losses, rtol=1e-5)
    saved = ocp.PyTreeCheckpointer().restore(run / "checkpoints" / "3" / "trained")
    for name, pair in factors.items():
        for f in "ab":
            trained = saved["lora"]["factors"][name][f]["value"]
            np.testing.assert_allclose(trained, pair[f], rtol=0, atol=rate / 100)


@pytest.mark.slow
def test_a_run_with_lora_resumes_with_the_weights_it_started_from(continued, finished, tmp_path):
    init, whole = initial_weights(finished), tmp_path / "whole"
    continued.lora.rank = 2
    expected = pretrain(continued, whole, init=init)
    part = shutil.copytree(whole, tmp_path / "part")
    for step in (8, 12):
        shutil.rmtree(part / "checkpoints" / str(step))
    with pytest.raises(ValueError, match=r"weights LoRA reads again; give --init=.*run again"):
        pretrain(continued, part)
    assert pretrain(continued, part, init=init) == expected
    for a, b in zip(leaves(whole), leaves(part), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (part / "run.json").read_bytes() == (whole / "run.json").read_bytes()
    continued.lora.rank = 4
    with pytest.raises(ValueError, match=r"holds a run with lora.rank=2 \(now 4\)"):
        pretrain(continued, part, init=init)


@pytest.mark.slow
def test_a_run_with_lora_freezes_its_weights_in_bfloat16(continued, finished, tmp_path):
    """It computes what a float32 run computes from the rounded weights, and resumes exactly."""
    base, tokenizer = load(finished)
    kept = matrices_in(jax.eval_shape(lambda: base), "bfloat16")
    narrow = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), base, kept)
    rounded = jax.tree.map(lambda leaf: leaf.astype("float32"), narrow)
    save_finetuned(tmp_path / "rounded", rounded, tokenizer)
    exact, init = initial_weights(tmp_path / "rounded"), initial_weights(finished)
    continued.lora.rank = 2
    expected = pretrain(continued, tmp_path / "float32", init=exact)
    continued.lora.frozen_dtype = "bfloat16"
    runs, read = [tmp_path / name for name in ("float32", "run", "exact")], []

    def reading(abstract):
        read.append(init.read(abstract))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(read[0])} == {"float32", "bfloat16"}
        return read[0]

    pairs = zip(*map(jax.tree.leaves, (base, rounded)), strict=True)
    count = sum(int((a != b).sum()) for a, b in pairs)
    lossy = dataclasses.replace(init, read=reading)
    with pytest.warns(RuntimeWarning, match=rf"bfloat16 rounds {count:,} of .* numbers of .*run"):
        results = pretrain(continued, runs[1], init=lossy)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "bfloat16 rounds")
        pretrain(continued, runs[2], init=exact)
    assert results["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-6)
    losses = [[line["loss"] for line in read_metrics(run) if "loss" in line] for run in runs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert losses[2] == losses[1]
    for a, b in zip(leaves(runs[0]), leaves(runs[1]), strict=True):  # merged, in float32
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-5)  # a hundredth of the rate
    hashes = {json.loads((r / "run.json").read_text())["started_from"]["weights"] for r in runs}
    assert hashes == {weights_hash(rounded)}

    part = shutil.copytree(runs[1], tmp_path / "part")
    for step in (8, 12):
        shutil.rmtree(part / "checkpoints" / str(step))
    assert pretrain(continued, part, init=exact) == results
    for a, b in zip(leaves(runs[1]), leaves(part), strict=True):
        np.testing.assert_array_equal(a, b)
    continued.lora.frozen_dtype = "float32"
    with pytest.raises(ValueError, match=r"with lora.frozen_dtype='bfloat16' \(now 'float32'\)"):
        pretrain(continued, part, init=exact)


@pytest.mark.slow
def test_a_run_of_constant_rate_gets_more_steps(continued, finished, tmp_path, capsys):
    init, whole, parts = initial_weights(finished), tmp_path / "whole", tmp_path / "parts"
    pretrain(continued, whole, init=init)
    continued.training.steps = 5
    pretrain(continued, parts, init=init)
    continued.training.steps = 12
    assert pretrain(continued, parts)["step"] == 12
    line = "5 steps become 12; with schedule=constant the learning rate goes from 0.003 at step 5"
    assert f"{line} to 0.003 at the next, and ends at 0.003" in capsys.readouterr().err
    for a, b in zip(leaves(whole), leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    (change,) = json.loads((parts / "run.json").read_text())["history"]
    assert (change["steps_before"], change["steps"], change["after_step"]) == (5, 12, 5)
    continued.training.steps = 8
    with pytest.raises(ValueError, match=r"training.steps=12 \(now 8\)"):
        pretrain(continued, parts)


@pytest.mark.slow
def test_a_run_whose_rate_would_change_needs_permission(config, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    config.training.steps = 24
    with pytest.raises(ValueError, match=r"from 0.000434 at step 12 to 0.00219 .*allow .* --ext"):
        pretrain(config, run)
    with pytest.raises(ValueError, match=r"got --extend, and .* holds no run"):
        pretrain(config, tmp_path / "none", extend=True)
    assert pretrain(config, run, extend=True)["step"] == 24
    line = "12 steps become 24; with schedule=cosine the learning rate goes from 0.000434 at step"
    assert line in capsys.readouterr().err
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(run) if "loss" in line}
    after = 3e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi * 7 / 19)) / 2)  # 5 steps were the warmup
    assert (rates[12], rates[13]) == (pytest.approx(4.34e-4, 1e-2), pytest.approx(after, 1e-5))
    pretrain(config, run, extend=True)  # the same command: nothing is left to do
    assert len(json.loads((run / "run.json").read_text())["history"]) == 1
    assert steps(run)[-1] == 24


@pytest.mark.slow
def test_a_model_with_more_vocabulary_than_its_tokenizer_is_continued(
    continued, tokenizer, tmp_path
):
    sizes = {"vocab_size": 310, "eos_token_id": 299, "context_length": 32}
    config = GPT2Config(**sizes, layers=1, width=32, heads=2)
    model = make_model(config, key=jax.random.key(0))
    source = save_finetuned(tmp_path / "source", model, tokenizer)
    continued.training.update(steps=1, evaluate_every=0)
    pretrain(continued, tmp_path / "run", init=initial_weights(source))
    assert load(tmp_path / "run")[0].config.architecture() == config.architecture()


@pytest.fixture(scope="session")
def general(tmp_path_factory, tokenizer) -> Path:
    """Token rows of other sentences than the dataset's."""
    path = tmp_path_factory.mktemp("data") / "general"
    texts = [f"the house by the river had {i * 7919} windows and a garden." for i in range(40)]
    documents = (Document(text, text) for text in texts)
    build_tokens(documents, tokenizer, path, length=32, validation_fraction=0.3)
    return path


@pytest.fixture
def mixed(config, dataset, general):
    """The tiny run on both, 3 to 1."""
    config.data.update(path="", mixture=f"domain={dataset}:3,general={general}:1")
    config.training.evaluate_sources = "all"
    config.checkpoint.keep = 5  # a thread deletes steps, while tests copy the run
    return config


@pytest.mark.slow
def test_a_run_on_a_mixture_resumes_to_the_same_bits(mixed, general, tmp_path, capsys):
    whole, part = tmp_path / "whole", tmp_path / "part"
    metrics = pretrain(mixed, whole)
    lines = capsys.readouterr().err.splitlines()
    assert "12 steps of 8 x 32 tokens from 2 sources" in lines
    size = len(Rows(general, "train"))
    line = f"general: 25 % of the rows, 24 rows, {24 / size:.2f} passes over {size} rows ("
    assert [one for one in lines if one.startswith(line)]
    shutil.copytree(whole, part)
    for step in (8, 12):
        shutil.rmtree(part / "checkpoints" / str(step))
    shutil.copytree(general, tmp_path / "moved")
    mixed.data.mixture = mixed.data.mixture.replace(str(general), str(tmp_path / "moved"))
    assert pretrain(mixed, part) == metrics
    for a, b in zip(leaves(whole), leaves(part), strict=True):
        np.testing.assert_array_equal(a, b)

    # One loss for each source, of its own validation rows; the run's is the first's.
    model = load(whole)[0]
    domain = mixed.data.mixture.removeprefix("domain=").partition(":")[0]
    for name, path in {"domain": domain, "general": general}.items():
        rows = np.stack(list(Rows(path, "validation")))
        loss = float(next_token_loss(model, rows))
        assert metrics[f"validation_loss/{name}"] == pytest.approx(loss, 1e-5)
    assert metrics["validation_loss"] == metrics["validation_loss/domain"]

    started_from = json.loads((whole / "run.json").read_text())["started_from"]
    manifests = [json.loads((Path(p) / "manifest.json").read_text()) for p in (domain, general)]
    expected = {
        f"{number}": {"rows": manifest["fingerprint"], "weight": weight}
        for number, manifest, weight in zip((1, 2), manifests, (3, 1), strict=True)
    }
    assert started_from["sources"] == expected
    kept = json.loads((whole / "sources.json").read_text())["sources"]
    assert [source["manifest"] for source in kept] == manifests
    mixed.data.mixture = mixed.data.mixture.replace(":3,", ":2,")
    with pytest.raises(InputError, match=r"holds a run with sources.1.weight=3 \(now 2\); resume"):
        pretrain(mixed, whole)


def test_a_mixture_that_cannot_be_trained_on_is_refused(
    mixed, dataset, general, tokenizer, tmp_path
):
    run = tmp_path / "run"
    mixed.data.path = str(dataset)
    with pytest.raises(
        InputError, match=r"got config.data.path=.* and config.data.mixture=.*; set"
    ):
        pretrain(mixed, run)
    documents = [Document(f"a garden of {i} roses", f"{i}") for i in range(40)]
    build_tokens(documents, tokenizer, tmp_path / "all", length=32, validation_fraction=0)
    mixed.data.update(path="", mixture=f"domain={dataset}:3,general={tmp_path}/all:1")
    with pytest.raises(InputError, match=r"/all has no validation rows; build it with --validat"):
        pretrain(mixed, run)
    mixed.training.evaluate_sources = "some"
    with pytest.raises(InputError, match="evaluate_sources='some'; expected one of first, all"):
        pretrain(mixed, run)
    assert not run.exists()


def test_a_rotary_model_continues_on_shorter_rows_and_warms_up_again(
    continued, tokenizer, tmp_path, capsys
):
    sizes = {"vocab_size": 300, "eos_token_id": 299, "layers": 1, "width": 32, "heads": 2}
    shape = {"key_value_heads": 1, "mlp_width": 64, "context_length": 64}
    config = LlamaConfig(**sizes, **shape)
    model = make_model(config, key=jax.random.key(0))
    source = save_finetuned(tmp_path / "source", model, tokenizer)
    continued.training.update(steps=4, evaluate_every=0, from_weights=True)
    continued.optimizer.update(learning_rate=4e-3, warmup_steps=2)
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"from_weights=True\) without --init=DIR; add it, or set"):
        pretrain(set_model(continued, config), run)
    pretrain(continued, run, init=initial_weights(source))
    line = f"starting from the weights of {source}; the learning rate warms up again, to 0.004 "
    assert f"{line}after 2 steps, and ends at 0.004 (constant)" in capsys.readouterr().err
    rates = [line["learning_rate"] for line in read_metrics(run) if "loss" in line]
    assert rates == pytest.approx([0, 2e-3, 4e-3, 4e-3])
    assert load(run)[0].config.architecture() == config.architecture()
    short = save_finetuned(tmp_path / "short", *reshaped(config, tokenizer, context_length=16))
    with pytest.raises(InputError, match="have length=32, but the model has length=16"):
        pretrain(continued, tmp_path / "other", init=initial_weights(short))


def set_model(config, model):
    """A copy of a run's config with an explicit model."""
    config = config.copy_and_resolve_references().unlock()
    config.model = {"model_type": "llama", **model.architecture()}
    return config


def reshaped(config, tokenizer, **changes):
    config = dataclasses.replace(config, **changes)
    return make_model(config, key=jax.random.key(0)), tokenizer


@pytest.mark.parametrize(
    ("name", "parameters", "rows", "warmup", "peak", "last", "tokens"),
    [
        ("biomedgpt_lm_7b", 6_738_415_616, 192, 9_919, 2e-5, 0.0, 5 * 26.0e9),
        ("pmc_llama_13b", 13_015_864_320, 128, 5_661, 2e-5, 0.0, 5 * 4.83e6 * 512),
        ("mmed_llama_3_8b", 8_030_261_248, 512, 730, 2e-5, 0.0, 3 * 25.5e9),
        ("meditron_7b", 6_738_415_616, 1_600, 2_000, 3e-4, 1e-6, 48.1e9),
    ],
)
def test_the_recipes_have_the_published_figures(name, parameters, rows, warmup, peak, last, tokens):
    path = Path(__file__).parents[2] / "configs" / f"{name}.py"
    settings = read_settings(PretrainSettings, runpy.run_path(str(path))["get_config"]())
    model = make_config({k: value for k, value in settings.model.items() if value is not None})
    assert parameter_count(abstract_model(model)) == parameters
    steps, batch_size = settings.training.steps, settings.training.batch_size
    assert (batch_size, settings.training.from_weights) == (rows, True)
    length = 512 if name == "pmc_llama_13b" else 2_048
    assert steps * batch_size * length == pytest.approx(tokens, rel=1e-4)
    _, schedule = make_optimizer(settings.optimizer, steps=steps)
    assert float(schedule(0)) == 0.0
    assert float(schedule(warmup)) == pytest.approx(peak)
    assert float(schedule(warmup - 1)) < peak
    assert float(schedule(steps)) == pytest.approx(last, abs=1e-9)
    if name == "meditron_7b":
        shares = {source.name: source.weight for source in settings.data.sources}
        assert shares == {"medical": 99, "general": 1}
    with pytest.raises(ValueError, match="got the variant 'x'; this config has none"):
        runpy.run_path(str(path))["get_config"]("x")
