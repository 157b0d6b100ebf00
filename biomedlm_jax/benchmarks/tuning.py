"""Fine-tuning steps on the same questions: shared prefixes, a row per option, and torch.

The peer is transformers' GPT-2 with a linear head and torch's AdamW on the rows of the original
code: a row per option, padded to the longest of the batch.
"""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.model.heads import CHOICE
from biomedlm_jax.qa.losses import TunedBatch, batch_loss
from biomedlm_jax.qa.packing import LAST, lay_out, separate, size
from biomedlm_jax.qa.rows import ADDED_TOKENS, PAPER, add_tokens, choice_prompts
from biomedlm_jax.qa.setup import Head
from biomedlm_jax.qa.shuffling import Shuffled
from biomedlm_jax.qa.tasks import Example
from biomedlm_jax.qa.tuned import with_head
from biomedlm_jax.training.state import TrainState, compile_step, train_step

SEED, LEARNING_RATE, CLIP_NORM = 0, 1e-5, 1.0


def tuning_sides(
    gpt: GPT,
    tokenizer: Tokenizer,
    release: Path,
    examples: list[Example],
    steps: int,
    batch_size: int,
    max_length: int,
) -> dict[str, Callable[[], list[float]]]:
    """Training steps on the same batches of questions; each call returns their losses."""
    grown = add_tokens(tokenizer, CHOICE)
    prompts = choice_prompts(grown, examples, row_format=PAPER, max_length=max_length).prompts
    labels = [example.label for example in examples]
    data = Shuffled(prompts, labels, batch_size=batch_size, multiple=1, kind=CHOICE, seed=SEED)
    # The order of Shuffled's first epoch; equal losses of the sides say that it is.
    order = np.random.default_rng([SEED, 0]).permutation(len(examples))
    chosen = [order[i * batch_size : (i + 1) * batch_size] for i in range(steps)]
    one_each = [separate(prompts[i]._replace(question=q) for q, i in enumerate(c)) for c in chosen]
    gold = [[labels[i] for i in c] for c in chosen]
    head = Head(CHOICE, "medqa", PAPER, max_length)
    added = len(ADDED_TOKENS[CHOICE])
    model = with_head(gpt, head, added=added, key=jax.random.key(SEED))
    return {
        "shared prefix": _ours(model, data.batch, steps),
        "one row per option": _ours(
            model, lambda step: one_row_per_option(one_each[step], gold[step]), steps
        ),
        "transformers + torch": _torch(model, release, one_each, gold),
    }


def one_row_per_option(prompts, gold: list[int]) -> TunedBatch:
    """Each option in a row of its own, as long as the batch's longest."""
    rows = lay_out(
        prompts,
        [[i] for i in range(len(prompts))],
        batch_size=len(prompts),
        length=max(size(prompt, LAST) for prompt in prompts),
        sources=1,
        answers=1,
        read=LAST,
    )
    gold_BxE = (rows.option_BxE == np.array(gold)[rows.question_BxE]).astype(np.int32)
    return TunedBatch(rows, gold_BxE, np.full(gold_BxE.shape, 1 / len(gold), np.float32))


def _ours(model, batch_of: Callable[[int], TunedBatch], steps: int):
    mesh = meshes.make_mesh()
    tx = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM), optax.adamw(LEARNING_RATE, weight_decay=0.0)
    )
    layout = meshes.sharding(mesh, "batch", None)
    model = jax.tree.map(jax.numpy.copy, model)  # the step reuses its buffers
    with jax.set_mesh(mesh):
        state = jax.jit(lambda m: TrainState(jax.numpy.int32(0), m, tx.init(m)))(model)
        update = compile_step(train_step, abstract=state, tx=tx, seed=SEED, loss_of=batch_loss)

    def run() -> list[float]:
        nonlocal state
        losses = []
        with jax.set_mesh(mesh):
            for step in range(steps):
                batch = jax.tree.map(lambda a: meshes.place(a, layout), batch_of(step))
                state, metrics = update(state, batch)
                losses.append(metrics["loss"])
        return [float(loss) for loss in losses]

    return run


def _torch(model, release: Path, one_each, gold: list[list[int]]):
    import torch
    from transformers import GPT2Model

    torch.set_num_threads(os.cpu_count())
    gpt = GPT2Model.from_pretrained(
        release, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, use_cache=False
    ).train()
    width, vocab_size = model.gpt.config.width, model.gpt.config.vocab_size
    gpt.resize_token_embeddings(vocab_size, mean_resizing=False)
    head = torch.nn.Linear(width, 1)
    with torch.no_grad():
        gpt.wte.weight.copy_(torch.tensor(np.asarray(model.gpt.wte[:vocab_size])))
        head.weight.copy_(torch.tensor(np.asarray(model.score.kernel[...]).T))
        head.bias.copy_(torch.tensor(np.asarray(model.score.bias[...])))
    parameters = [*gpt.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def learn(prompts, labels) -> float:
        texts = [prompt.prefix + prompt.branches[0] for prompt in prompts]
        lengths = torch.tensor([len(text) for text in texts])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in texts], batch_first=True)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        states = gpt(ids, attention_mask=mask.long()).last_hidden_state
        last = states[torch.arange(len(texts)), lengths - 1]
        scores = head(last).view(len(labels), -1)
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(labels))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return lambda: [learn(p, labels) for p, labels in zip(one_each, gold, strict=True)]
