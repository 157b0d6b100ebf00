import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.finetuning.losses import choice_loss, question_loss, target_loss
from biomedlm_jax.finetuning.shuffling import ShuffledQuestions, ShuffledTexts
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.interop.weights import hf_tensor_map, tensor_reader
from biomedlm_jax.model.families import make_config, make_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.model.heads import HEADS, score_layer
from biomedlm_jax.model.language_model import leaf_name
from biomedlm_jax.model.lora import Adapter
from biomedlm_jax.qa.packing import Prompt, one_prompt_per_option
from biomedlm_jax.training.state import accumulate_gradients, init_state, jit_step, train_step

CONFIG = GPT2Config(
    vocab_size=300,
    context_length=64,
    layers=2,
    width=64,
    heads=4,
    initializer_range=0.2,
    embedding_dropout=0.0,
    attention_dropout=0.0,
    residual_dropout=0.0,
)
EIGHT = (2, 2, 2)
# Added to all options or keys alike, so their gradients are zero but for rounding.
NO_EFFECT = {"choice": ("key.bias", "ln_f.bias", "score.bias"), "classification": ("key.bias",)}


def some_prompts(kind, count=8, seed=0, low=3, high=40):
    """Questions with two to five options each, or texts without."""
    rng = np.random.default_rng(seed)

    def text(low, high):
        return rng.integers(0, 300, rng.integers(low, high)).tolist()

    def branches(q):
        return [text(1, 9) for _ in range(2 + q % 4)] if kind == "choice" else [[]]

    prompts = [Prompt(text(low, high), branches(q), q) for q in range(count)]
    classes = [len(p.branches) if kind == "choice" else 3 for p in prompts]
    return prompts, [int(rng.integers(n)) for n in classes]


def whole_batch(kind, prompts, labels, *, multiple=8, parts=1):
    data = ShuffledQuestions(
        prompts, labels, batch_size=len(labels), multiple=multiple, parts=parts, kind=kind, seed=0
    )
    return data.batch(0)


def scorer(kind):
    trunk = make_model(CONFIG, key=jax.random.key(0))
    score = score_layer(CONFIG, kind, 1 if kind == "choice" else 3, key=jax.random.key(1))
    return HEADS[kind](trunk, score)


@functools.cache
def compiled(parts=1):
    return jax.jit(accumulate_gradients(jax.value_and_grad(question_loss), parts))


def loss_and_gradient(model, batch, parts=1):
    return compiled(parts)(model, batch, dropout_key=None if parts == 1 else jax.random.key(0))


def assert_same_gradients(one, other):
    leaves = jax.tree_util.tree_leaves_with_path(other)
    largest = max(float(jnp.abs(leaf).max()) for _, leaf in leaves)
    for (path, b), a in zip(leaves, jax.tree.leaves(one), strict=True):
        name = leaf_name(path)
        effect = not any(part in name for part in NO_EFFECT[other.kind])
        scale = float(jnp.abs(b).max()) if effect else largest
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=1e-5, err_msg=name)


def by_torch(kind, model, prompts, labels, directory):
    """Loss, gradients of GPT-2's tensors and of the score layer: one padded row per option."""
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    from transformers import GPT2Model

    gpt = GPT2Model.from_pretrained(
        export_hf(model.trunk, None, directory), attn_implementation="eager", dtype=torch.float32
    ).eval()
    kernel = np.asarray(model.score.kernel[...])
    score = torch.nn.Linear(*kernel.shape, bias=kind == "choice")
    score.weight.data = torch.tensor(kernel.T.copy())
    if kind == "choice":
        score.bias.data = torch.tensor(np.asarray(model.score.bias[...]))
    rows = [p.prefix + branch for p in prompts for branch in p.branches]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    states = gpt(ids, attention_mask=mask).last_hidden_state
    scores = score(states[torch.arange(len(rows)), lengths - 1])
    if kind == "choice":
        of_questions = torch.split(scores[:, 0], [len(p.branches) for p in prompts])
    else:
        of_questions = list(scores)
    each = [
        torch.nn.functional.cross_entropy(of[None], torch.tensor([label]))
        for of, label in zip(of_questions, labels, strict=True)
    ]
    loss = torch.stack(each).mean()
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in gpt.named_parameters()}
    return loss.item(), grads, score.weight.grad.numpy().T


@pytest.mark.parametrize("kind", ["choice", "classification"])
def test_loss_and_gradients_are_those_of_torch_with_one_row_per_option(kind, tmp_path):
    model = scorer(kind)
    prompts, labels = some_prompts(kind)
    expected, grads, score = by_torch(kind, model, prompts, labels, tmp_path / "hf")
    loss, gradient = loss_and_gradient(model, whole_batch(kind, prompts, labels))
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)
    read = tensor_reader(gradient.trunk)
    assert set(grads) == set(hf_tensor_map(model.trunk))
    largest = max(np.abs(theirs).max() for theirs in grads.values())
    for name, theirs in grads.items():
        scale = largest if name in NO_EFFECT[kind] else np.abs(theirs).max()
        np.testing.assert_allclose(read(name) / scale, theirs / scale, atol=1e-5, err_msg=name)
    scale = np.abs(score).max()
    np.testing.assert_allclose(gradient.score.kernel[...] / scale, score / scale, atol=1e-5)
    if kind == "choice":  # a bias of all options cancels
        np.testing.assert_allclose(gradient.score.bias[...], 0, atol=1e-6)
    assert not np.asarray(gradient.trunk.wte[CONFIG.vocab_size :]).any()


def test_shared_rows_have_the_gradients_of_one_row_per_option():
    model = scorer("choice")
    prompts, labels = some_prompts("choice")
    shared = loss_and_gradient(model, whole_batch("choice", prompts, labels))
    alone = loss_and_gradient(model, whole_batch("choice", one_prompt_per_option(prompts), labels))
    np.testing.assert_allclose(shared[0], alone[0], rtol=0, atol=1e-5)
    assert_same_gradients(shared[1], alone[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "parts"),
    [pytest.param("classification", 8, 2, marks=pytest.mark.slow), ("choice", 32, 8)],
)
def test_accumulation_changes_no_number(kind, count, parts):
    model = scorer(kind)
    # Short questions: a part of the batch has fewer places for answers than the batch questions.
    low, high = (3, 40) if parts == 2 else (3, 5)
    prompts, labels = some_prompts(kind, count, low=low, high=high)
    if parts == 8 and kind == "choice":
        prompts = [p._replace(branches=[b[:3] for b in p.branches[:2]]) for p in prompts]
        labels = [label % 2 for label in labels]
    whole = loss_and_gradient(model, whole_batch(kind, prompts, labels))
    batch = whole_batch(kind, prompts, labels, multiple=parts, parts=parts)
    summed = loss_and_gradient(model, batch, parts)
    np.testing.assert_allclose(summed[0], whole[0], rtol=0, atol=1e-5)
    assert_same_gradients(summed[1], whole[1])


def steps(mesh_sizes, kind, lora: bool):
    """Losses of three steps, and what was trained after them."""
    devices = jax.devices() if np.prod(mesh_sizes) == 8 else jax.devices()[:1]
    data, fsdp, tensor = mesh_sizes
    mesh = meshes.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)
    # An epsilon at which rounding of a gradient that should be zero does not become a step.
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3, eps=1e-3))

    def start():
        model = scorer(kind)
        if not lora:
            return model
        key = jax.random.key(2)
        adapter = Adapter(model, added=3, rank=4, alpha=8.0, key=key)
        for factors in adapter.lora.factors.values():  # as if trained already: no zeros
            b = 0.05 * jax.random.normal(key, factors["b"].shape)
            factors["b"] = factors["b"].replace(b)
        return adapter

    def make():
        return init_state(start(), tx)

    def spread(make):
        shardings = jax.tree.map(lambda x: x.sharding, meshes.abstract_sharded(make, mesh))
        return jax.device_put(jax.jit(make)(), shardings)

    def loss_fn(model, batch, *frozen, dropout_key):
        return question_loss(model.view(*frozen) if lora else model, batch)

    prompts, labels = some_prompts(kind, 24)
    batches = ShuffledQuestions(prompts, labels, batch_size=8, multiple=8, kind=kind, seed=3)
    with jax.set_mesh(mesh):
        state = spread(make)
        frozen = (spread(lambda: scorer(kind).trunk),) if lora else ()
        abstract = meshes.abstract_sharded(make, mesh)
        update = jit_step(train_step, abstract=abstract, tx=tx, seed=0, loss_fn=loss_fn)
        layout, losses = meshes.sharding(mesh, "batch", None), []
        for step in range(3):
            batch = jax.tree.map(lambda a: meshes.place(a, layout), batches.batch(step))
            state, metrics = update(state, batch, *frozen)
            losses.append(float(metrics["loss"]))
    return losses, jax.tree.map(np.asarray, state.model)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "lora"), [("choice", False), ("classification", True)])
def test_many_devices_compute_what_one_does(kind, lora):
    expected, model = steps((1, 1, 1), kind, lora)
    losses, ours = steps(EIGHT, kind, lora)
    assert len(set(expected)) == 3
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_scores_of_any_size_have_a_loss_and_a_gradient():
    prompts, labels = some_prompts("choice", 4)
    batch = whole_batch("choice", prompts, labels, multiple=1)
    for size in (0.0, 80.0, 3e4, 1e30):
        scores = size * jax.random.normal(jax.random.key(0), batch.rows.target_BxE.shape)
        loss, gradient = jax.value_and_grad(choice_loss)(scores, batch)
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[batch.rows.question_BxE < 0].any()
    uniform = choice_loss(jnp.zeros(batch.rows.target_BxE.shape), batch)
    np.testing.assert_allclose(uniform, np.mean([np.log(len(p.branches)) for p in prompts]))


def some_texts(count=12):
    rng = np.random.default_rng(1)

    def text(low, high):
        return rng.integers(0, 300, rng.integers(low, high)).tolist()

    return [Prompt(text(2, 20), [text(1, 15)], i) for i in range(count)]


def by_torch_of_texts(model, prompts, directory):
    """The mean loss of the targets' tokens, one unpadded row per text."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2LMHeadModel

    peer = GPT2LMHeadModel.from_pretrained(
        export_hf(model, None, directory), attn_implementation="eager", dtype=torch.float32
    ).eval()
    sums, count = 0.0, 0
    for prompt in prompts:
        ids = torch.tensor([prompt.prefix + prompt.branches[0]])
        labels = ids.clone()
        labels[:, : len(prompt.prefix)] = -100
        size = len(prompt.branches[0])
        sums, count = sums + peer(ids, labels=labels).loss * size, count + size
    loss = sums / count
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in peer.named_parameters()}


def test_the_loss_of_texts_is_that_of_torch_with_one_row_per_text(tmp_path):
    model, prompts = make_model(CONFIG, key=jax.random.key(0)), some_texts()
    expected, grads = by_torch_of_texts(model, prompts, tmp_path / "hf")
    for parts, chunks in ((1, 1), (2, 3)):
        data = ShuffledTexts(prompts, row_length=64, batch_size=16, parts=parts)
        assert data.steps_per_epoch == 1
        grad_fn = jax.value_and_grad(functools.partial(target_loss, chunks=chunks))
        update = jax.jit(accumulate_gradients(grad_fn, parts))
        key = None if parts == 1 else jax.random.key(0)
        loss, gradient = update(model, data.batch(0), dropout_key=key)
        np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)
        read = tensor_reader(gradient)
        largest = max(np.abs(theirs).max() for theirs in grads.values())
        for name, theirs in grads.items():
            ours = read(name.removeprefix("transformer."))
            np.testing.assert_allclose(ours / largest, theirs / largest, atol=1e-5, err_msg=name)


def masked_chats(count=10):
    """Chats of one to three answers, and which tokens behind the first question are learned."""
    rng = np.random.default_rng(2)
    prompts, masks = [], []
    for i in range(count):
        mask = [True] * int(rng.integers(1, 8))
        for _ in range(i % 3):
            mask += [False] * int(rng.integers(1, 6)) + [True] * int(rng.integers(1, 6))
        branch = rng.integers(0, 300, len(mask)).tolist()
        prompts.append(Prompt(rng.integers(0, 300, rng.integers(1, 12)).tolist(), [branch], i))
        masks.append(mask)
    return prompts, masks


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_packed_chats_are_learned_as_by_torch_with_one_row_per_chat(family, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    sizes = {"vocab_size": 300, "context_length": 64, "layers": 2, "width": 64, "heads": 4}
    more = {"key_value_heads": 2, "mlp_width": 96} if family == "llama" else {}
    rates = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    fields = {"model_type": family, "initializer_range": 0.2, **sizes, **more, **rates}
    model, (prompts, masks) = make_model(make_config(fields), key=jax.random.key(0)), masked_chats()
    peer = AutoModelForCausalLM.from_pretrained(
        export_hf(model, None, tmp_path / "hf"), attn_implementation="eager", dtype=torch.float32
    ).eval()
    total, count = 0.0, sum(map(sum, masks))
    for prompt, mask in zip(prompts, masks, strict=True):
        ids = torch.tensor([[*prompt.prefix, *prompt.branches[0]]])
        learned = torch.tensor([[False] * len(prompt.prefix) + mask])
        labels = torch.where(learned, ids, -100)
        total = total + peer(ids, labels=labels).loss * sum(mask)
    (total / count).backward()
    grads = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    packed = ShuffledTexts(prompts, row_length=64, batch_size=8, masks=masks)
    alone = ShuffledTexts(prompts, row_length=64, batch_size=10, masks=masks, apart=True)
    assert packed.rows < 8
    update = jax.jit(jax.value_and_grad(target_loss))
    for data in (packed, alone):
        loss, gradient = update(model, data.batch(0))
        np.testing.assert_allclose(loss, total.item() / count, rtol=0, atol=1e-5)
        read = tensor_reader(gradient)
        largest = max(np.abs(theirs).max() for theirs in grads.values())
        for name, theirs in grads.items():
            ours = read(name.removeprefix("transformer.").removeprefix("model."))
            np.testing.assert_allclose(ours / largest, theirs / largest, atol=1e-5, err_msg=name)
