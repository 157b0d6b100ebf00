"""The decoder beside the full forward pass: caches in place, shardings, abstract shapes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.decoder import (
    abstract_cache,
    abstract_decoder,
    cache_bytes,
    decode_step,
    make_cache,
    make_decoder,
)
from biomedlm_jax.generation.decoding import decode
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.gpt2 import GPT2Config


def test_each_step_has_the_logits_of_the_full_forward_pass(random_model):
    model = random_model()
    decoder, tokens_BxL = make_decoder(model), np.arange(2 * 12).reshape(2, 12) % 60
    expected_BxLxV = np.asarray(model(jnp.asarray(tokens_BxL)))
    cache, step = make_cache(model.config, 2, 12), jax.jit(decode_step)
    for i in range(12):
        visible = jnp.broadcast_to(jnp.arange(12) <= i, (2, 1, 12))
        positions = jnp.full((2, 1), i)
        logits, cache = step(decoder, cache, tokens_BxL[:, i : i + 1], positions, i, visible)
        np.testing.assert_allclose(logits[:, 0], expected_BxLxV[:, i], rtol=2e-4, atol=2e-4)


def test_a_call_flattens_arrays_and_no_modules(pairs):
    decoder = pairs["scaled"][1]
    structure = jax.tree.structure(decoder)
    assert structure.num_nodes == structure.num_leaves + 2  # the decoder and its list


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("scaled", {"data": 8}, marks=pytest.mark.slow),
        pytest.param("scaled", {"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param("scaled", {"tensor": 4, "data": 2}, marks=pytest.mark.slow),
        pytest.param("scaled", {"fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
        ("window", {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
    ids=str,
)
def test_sharded_is_unsharded(pairs, prompts_of, name, sizes):
    sizes = {"data": 1, "fsdp": 1, **sizes}
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = meshes.make_mesh(**sizes, devices=devices)
    model, decoder, _ = pairs[name]
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract_model(model.config, mesh))
    sharded = make_decoder(jax.device_put(model, layout))
    prompts = prompts_of(9, 23, 14)
    expected = decode(decoder, prompts, max_new_tokens=12).rows
    assert decode(sharded, prompts, max_new_tokens=12).rows == expected
    kernel = jax.tree.leaves(sharded.model.blocks[0].mlp)[-1]
    assert len(kernel.sharding.device_set) == mesh.size


@pytest.mark.parametrize(("name", "rows"), [("scaled", 1), ("scaled", 2), ("window", 2)])
def test_the_cache_has_exactly_its_size_and_is_updated_in_place(pairs, prompts_of, name, rows):
    _, decoder, _ = pairs[name]
    config = decoder.config
    tokens, lengths = decoding.align(prompts_of(*(9, 12)[:rows]), rows=rows)
    keys = decoding.row_keys(0, np.arange(rows), 1)
    state = decoding._begin(decoder, tokens, lengths, np.zeros(rows, bool), keys, None, 32)
    buffers = jax.tree.leaves(state.cache)
    assert sum(b.nbytes for b in buffers) == rows * cache_bytes(config, 16 + 32)
    width = config.width if name == "scaled" else config.width // 2  # of two heads of four
    assert cache_bytes(config, 48) == 2 * config.layers * 48 * width * 4
    where = [b.unsafe_buffer_pointer() for b in buffers]
    after = decoding._loop(decoder, state, 30, Strategy().rules(), None)
    assert all(b.is_deleted() for b in buffers), "the loop did not take the cache's buffers"
    assert [b.unsafe_buffer_pointer() for b in jax.tree.leaves(after.cache)] == where
    # All that the compiled loop allocates beside its arguments is less than one layer's cache.
    compiled = decoding._loop.lower(decoder, after, 30, Strategy().rules(), None).compile()
    memory, total = compiled.memory_analysis(), rows * cache_bytes(config, 48)
    assert memory.alias_size_in_bytes >= total
    assert memory.temp_size_in_bytes < total / config.layers
    # Nor does it copy a cache, which an array of its shape and dtype would betray.
    shapes = {",".join(map(str, b.shape)) for b in jax.tree.leaves(after.cache)}
    copied = re.findall(r"f32\[([\d,]+)\]\S* copy\(", compiled.as_text())
    assert not shapes & set(copied)


def test_bfloat16_decodes(random_model, prompts_of):
    model = random_model(compute_dtype="bfloat16")
    decoder = make_decoder(model)
    assert decoder.model.blocks[0].mlp.c_fc.kernel[...].dtype == jnp.bfloat16
    assert make_cache(model.config, 1, 16)[0][0].dtype == jnp.bfloat16
    result = decode(decoder, prompts_of(9), max_new_tokens=8, strategy=Strategy()).rows
    assert len(result[0]) == 8


def test_the_step_lowers_from_abstract_arguments_at_full_size():
    config = GPT2Config(compute_dtype="bfloat16")
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    decoder, cache = abstract_decoder(config, mesh), abstract_cache(config, 8, 1024, mesh)
    assert sum(x.size * 2 for x in jax.tree.leaves(cache)) == 8 * cache_bytes(config, 1024)
    shapes = jax.ShapeDtypeStruct
    arguments = [shapes((8, 1), jnp.int32), shapes((8, 1), jnp.int32), shapes((), jnp.int32)]
    with jax.set_mesh(mesh):
        lowered = jax.jit(decode_step, donate_argnums=1).lower(
            decoder, cache, *arguments, shapes((8, 1, 1024), jnp.bool_)
        )
    assert lowered.out_info[0].shape == (8, 1, 28_896)
