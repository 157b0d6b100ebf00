"""The second family beside transformers: logits, gradients, counts, shardings and configs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import mostly_slow
from peers import make_peer, random_model, read_by_transformers, tensors_of

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import (
    abstract_model,
    config_from_hf,
    config_to_hf,
    family,
    make_config,
)
from biomedlm_jax.model.language_model import parameter_count
from biomedlm_jax.model.llama import (
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    rope_frequencies,
)
from biomedlm_jax.training.loss import next_token_loss

torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
transformers = pytest.importorskip("transformers", reason="transformers is in the extra `dev`")

SMALL = {"vocab_size": 131, "context_length": 16_384, "layers": 2, "width": 48, "heads": 4}
SMALL |= {"mlp_width": 72}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_context_length": 16,
}
# Few models that have many switches each: every one is a program to compile.
CONFIGS = {
    "llama, biases, tied": LlamaConfig(
        **SMALL | {"layers": 1},
        key_value_heads=2,
        head_dim=18,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rms_norm_epsilon=1e-6,
    ),
    "llama3, one key/value head": LlamaConfig(
        **SMALL | {"layers": 3}, key_value_heads=1, head_dim=72, rope_theta=5e5, **LLAMA3
    ),
    "llama, theta of Lucie": LlamaConfig(**SMALL | {"vocab_size": 256}, rope_theta=2e7),
    "mistral, window": MistralConfig(
        **SMALL, key_value_heads=2, head_dim=80, rope_theta=1e6, sliding_window=7
    ),
    "mistral without a window, tied": MistralConfig(
        **SMALL, key_value_heads=1, sliding_window=None, tie_word_embeddings=True
    ),
    "qwen2, window": Qwen2Config(
        **SMALL, key_value_heads=2, sliding_window=5, tie_word_embeddings=True
    ),
    "qwen2": Qwen2Config(**SMALL, key_value_heads=4, head_dim=18),
    "qwen3, window, biases, tied": Qwen3Config(
        **SMALL,
        key_value_heads=2,
        head_dim=18,
        attention_bias=True,
        sliding_window=9,
        tie_word_embeddings=True,
    ),
}
LENGTH = 40


@functools.cache
def model_of(name):
    return random_model(CONFIGS[name], seed=[*CONFIGS].index(name))


@pytest.fixture
def peer_of(tmp_path):
    """A function: a model and changes of its config.json -> transformers' model."""
    numbers = iter(range(9))
    return lambda model, **changes: make_peer(model, tmp_path / str(next(numbers)), **changes)


def tokens_of(config, *, rows=2, length=LENGTH):
    return np.random.default_rng(3).integers(0, config.vocab_size, (rows, length))


@jax.jit
def logits_at(model, tokens_BxL, positions_BxL):
    return model.logits(model.hidden(tokens_BxL, positions_BxL=positions_BxL))


def theirs_at(peer, tokens, positions):
    ids = torch.from_numpy(np.broadcast_to(positions, tokens.shape).copy())
    with torch.no_grad():  # with a mask it looks for no packed rows in the ids
        mask = torch.ones_like(ids)
        out = peer(torch.from_numpy(tokens), position_ids=ids, attention_mask=mask)
    return out.logits.numpy()


def with_config(model, **changes):
    """The model, whose name of its function only is another: for transformers."""
    model = jax.tree.map(lambda leaf: leaf, model)
    model.config = dataclasses.replace(model.config, **changes)
    return model


# Each position id once, and ids that are far apart: a frequency's last bit would be seen.
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name, peer_of):
    model, tokens = model_of(name), tokens_of(CONFIGS[name])
    peer = peer_of(model)
    for positions_L in (np.arange(LENGTH), 1_000 + 227 * np.arange(LENGTH)):
        positions = np.broadcast_to(positions_L, tokens.shape)
        ours, theirs = logits_at(model, tokens, positions), theirs_at(peer, tokens, positions)
        assert ours.shape == (*tokens.shape, model.config.vocab_size)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
        assert theirs.std() > 1


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.sliding_window])
def test_a_window_changes_the_logits_behind_it_only(name, peer_of):
    model, tokens = model_of(name), tokens_of(CONFIGS[name])
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    ours, window = logits_at(model, tokens, positions), model.config.sliding_window
    theirs = theirs_at(peer_of(with_config(model, sliding_window=None)), tokens, positions)
    difference_L = np.abs(ours - theirs).max(axis=(0, 2))
    assert difference_L[:window].max() < 1e-4
    assert difference_L[window:].min() > 0.1


def scaled(factor, low, high, original):
    values = (float(factor), float(low), float(high), original)
    return {"rope_type": "llama3", **dict(zip([*LLAMA3][1:], values, strict=True))}


# Of Llama 1 to 3.2, Mistral, Qwen, Lucie; heads of 18 are in other tests.
RELEASED = [(1e4, 128), (1e4, 80), (5e5, 128), (5e5, 64), (2e7, 128), (1e6, 64), (1e4, 18)]
SCALED = [(8, 1, 4, 8_192), (32, 1, 4, 8_192), (4, 1, 2, 32)]


@pytest.mark.parametrize("scaling", [None, *SCALED], ids=str)
def test_frequencies_are_those_of_transformers_to_the_bit(scaling):
    def both(theta, K):
        rope = {} if scaling is None else scaled(*scaling)
        shape = {"width": 4 * K, "heads": 4, "head_dim": K, "context_length": 2**17}
        config = LlamaConfig(**shape, rope_theta=theta, **rope)
        theirs = transformers.LlamaConfig(**config_to_hf(config))
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
        return rope_frequencies(config), rotary.inv_freq.numpy()

    for theta, K in RELEASED:
        ours, theirs = both(theta, K)
        np.testing.assert_array_equal(ours, theirs)
    # torch's power is not always the nearest number: then it is the next one, in few places.
    ours, theirs = map(np.concatenate, zip(*(both(1e6, K) for K in range(2, 258, 8)), strict=True))
    np.testing.assert_allclose(ours, theirs, rtol=2.4e-7 if scaling is None else 1e-6)
    assert np.mean(ours != theirs) < 0.02


LLAMA3_8B = LlamaConfig(
    vocab_size=128_256,
    context_length=8_192,
    key_value_heads=8,
    mlp_width=14_336,
    rope_theta=5e5,
)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LlamaConfig(), 6_738_415_616),
        (LLAMA3_8B, 8_030_261_248),
        (MistralConfig(), 7_241_732_096),
        (Qwen2Config(), 7_615_616_512),
        (Qwen3Config(), 8_190_735_360),
    ],
    ids=["Llama 2 7B", "Llama 3 8B", "Mistral 7B", "Qwen2 7B", "Qwen3 8B"],
)
def test_released_shapes_have_exactly_their_number_of_parameters(config, count, tmp_path):
    assert parameter_count(abstract_model(config)) == count
    theirs = read_by_transformers(config, tmp_path)
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(theirs)
    assert sum(parameter.numel() for parameter in peer.parameters()) == count


@jax.jit
def loss_and_gradients(model, tokens_BxL):
    with jax.numpy_rank_promotion("allow"):  # the loss is not of this folder
        return jax.value_and_grad(next_token_loss)(model, tokens_BxL)


@pytest.mark.parametrize("name", ["llama, biases, tied", "qwen3, window, biases, tied"])
def test_loss_and_gradients_are_those_of_torch(name, peer_of):
    model, tokens = model_of(name), tokens_of(CONFIGS[name], rows=4)
    loss, gradients = loss_and_gradients(model, tokens)
    peer, ids = peer_of(model), torch.from_numpy(tokens)
    expected = peer(ids, labels=ids).loss
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    parameters, ours = dict(peer.named_parameters()), tensors_of(gradients)
    assert parameters.keys() == ours.keys()
    for tensor, gradient in ours.items():
        theirs = parameters[tensor].grad.numpy()
        atol = 1e-4 * np.abs(theirs).max()
        np.testing.assert_allclose(gradient.numpy(), theirs, rtol=0, atol=atol, err_msg=tensor)


DEVICES = ("llama, biases, tied", "qwen3, window, biases, tied")


@pytest.mark.parametrize("name", mostly_slow(DEVICES, DEVICES[1:]))
def test_eight_devices_compute_what_one_does(name):
    model, tokens = model_of(name), tokens_of(CONFIGS[name], rows=4)
    loss, gradients = loss_and_gradients(model, tokens)
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract_model(model.config, mesh))
    place = meshes.sharding(mesh, "batch", "length")
    with jax.set_mesh(mesh):
        step = jax.jit(loss_and_gradients, out_shardings=(None, layout))
        result = step(jax.device_put(model, layout), jax.device_put(tokens, place))
    np.testing.assert_allclose(result[0], loss, rtol=1e-6)
    assert not result[1].layers.self_attn.k_proj.kernel[...].sharding.is_fully_replicated
    for ours, theirs in zip(*map(jax.tree.leaves, (result[1], gradients)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def without_entries(config):
    return dataclasses.replace(config, hf_entries="{}")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_round_trips_in_the_styles_of_transformers_4_and_5(name, tmp_path):
    config = CONFIGS[name]
    entries = config_to_hf(config)
    assert config_from_hf(entries) == make_config(config.to_json()) == config
    four = {k: v for k, v in entries.items() if k != "rope_parameters"}
    five = {k: v for k, v in entries.items() if k not in ("rope_theta", "rope_scaling")}
    assert config_from_hf(four) == config_from_hf(five) == config
    for number, style in enumerate((entries, four, five)):
        theirs = read_by_transformers(config, tmp_path / str(number), **style)
        again = config_from_hf(theirs.to_dict())
        assert without_entries(again) == config
        assert not {*json.loads(again.hf_entries)} & {*entries}


REQUIRED = {
    "vocab_size": 131,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "intermediate_size": 96,
}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_a_config_does_not_state_is_what_transformers_assumes(model_type):
    minimal = {"model_type": model_type, **REQUIRED}
    theirs = transformers.AutoConfig.for_model(**minimal).to_dict()
    expected = without_entries(config_from_hf(theirs))
    assert without_entries(config_from_hf(minimal)).architecture() == expected.architecture()


LLAMA_31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
SHAPE = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}


@pytest.mark.parametrize(
    ("entries", "config"),
    [
        (
            {
                "model_type": "llama",
                **SHAPE,
                "vocab_size": 128256,
                "num_hidden_layers": 32,
                "intermediate_size": 14336,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-05,
                "rope_scaling": LLAMA_31,
                "rope_theta": 500000.0,
                "bos_token_id": 128000,
                "eos_token_id": [128001, 128008, 128009],
                "pretraining_tp": 1,
            },
            dataclasses.replace(
                LLAMA3_8B,
                context_length=131_072,
                bos_token_id=128_000,
                eos_token_id=128_001,
                more_eos_token_ids=(128_008, 128_009),
                **scaled(8, 1, 4, 8_192),
                hf_entries='{"pretraining_tp": 1}',
            ),
        ),
        (
            {
                "model_type": "mistral",
                **SHAPE,
                "vocab_size": 32000,
                "num_hidden_layers": 32,
                "intermediate_size": 14336,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-05,
                "rope_theta": 10000.0,
                "sliding_window": 4096,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            MistralConfig(bos_token_id=1, eos_token_id=2),
        ),
        (
            {
                "model_type": "qwen2",
                "vocab_size": 152064,
                "hidden_size": 3584,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "intermediate_size": 18944,
                "max_position_embeddings": 32768,
                "max_window_layers": 28,
                "use_sliding_window": False,
                "sliding_window": 131072,
                "rope_theta": 1000000.0,
                "bos_token_id": 151643,
                "eos_token_id": 151645,
            },
            Qwen2Config(bos_token_id=151_643, eos_token_id=151_645),
        ),
    ],
    ids=["Llama 3.1 8B", "Mistral 7B v0.1", "Qwen2 7B"],
)
def test_released_configs_are_read(entries, config):
    assert config_from_hf(entries) == config


THREE = {"rope_type": "llama3", **{k: v for k, v in LLAMA_31.items() if k != "rope_type"}}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"rope_theta": 1e6},
            "has rope_theta=1000000.0 and rope_parameters.rope_theta=10000.0, one setting; remove",
        ),
        (
            {"rope_scaling": THREE},
            "'rope_original_context_length': 8192} and rope_parameters={'rope_type': 'default'}, "
            "one setting; remove the wrong one",
        ),
        (
            {"rope_scaling": {**THREE, "type": "linear"}},
            "has rope_scaling of type 'llama3'; the known types are default, llama3",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "has rope_scaling of type 'linear'; the known types are default, llama3",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "has rope_parameters of type 'yarn'; the known types are default, llama3",
        ),
        (
            {"rope_scaling": {"factor": 2.0}},
            "has rope_scaling of type default with unknown factor; it has none",
        ),
        (
            {"rope_scaling": {k: v for k, v in THREE.items() if k != "factor"}},
            "of type llama3 with no factor; it has factor, low_freq_factor, high_freq_factor",
        ),
        (
            {"rope_scaling": {**THREE, "beta_fast": 1}},
            "of type llama3 with unknown beta_fast; it has factor",
        ),
        ({"rope_scaling": [1]}, "config.json has rope_scaling of type list; expected an object"),
        ({"rope_theta": "10000"}, "has rope_theta='10000' and rope_parameters.rope_theta=10000.0"),
        ({"hidden_act": "gelu"}, "has hidden_act='gelu'; this library computes hidden_act='silu'"),
        ({"partial_rotary_factor": 0.5}, "has partial_rotary_factor=0.5; this library computes"),
        (
            {"quantization_config": {"bits": 4}},
            "has quantization_config={'bits': 4} (quantized weights; save the model in float32",
        ),
        ({"num_key_value_heads": 3}, "model.key_value_heads=3, which does not divide"),
        ({"head_dim": 19}, "got model.head_dim=19; expected an even number"),
        ({"rms_norm_eps": 0.0}, "got model.rms_norm_epsilon=0.0; expected above 0"),
    ],
    ids=str,
)
def test_configs_of_other_functions_are_refused(entries, message):
    written = config_to_hf(LlamaConfig(**SMALL))
    if "rope_parameters" in entries:
        del written["rope_theta"], written["rope_scaling"]
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        config_from_hf({**written, **entries})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
            | {"layer_types": None},
            "has layers of full_attention and sliding_attention; here a window is of all layers or",
        ),
        ({"layer_types": ["chunked_attention"] * 2}, "has layers of chunked_attention; here a"),
        (
            {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True},
            "has layers of full_attention and sliding_attention",
        ),
    ],
    ids=str,
)
def test_windows_of_some_layers_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf({**config_to_hf(Qwen2Config(**SMALL, key_value_heads=2)), **entries})


@pytest.mark.parametrize(
    ("entries", "window"),
    [
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, 9),
        ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}, None),
        ({"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 0}, None),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4_096),
        ({"sliding_window": 9}, None),
    ],
    ids=str,
)
def test_the_window_of_qwen_is_the_one_that_transformers_computes(entries, window):
    written = config_to_hf(Qwen2Config(**SMALL, key_value_heads=2))
    for name in ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"):
        del written[name]
    assert config_from_hf({**written, **entries}).sliding_window == window
    theirs = transformers.AutoConfig.for_model(**written, **entries)
    sliding = {*theirs.layer_types} == {"sliding_attention"}
    assert (theirs.sliding_window if sliding else None) == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"key_value_heads": 3},
            "model.key_value_heads=3, .* model.heads=4; choose one of .1, 2, 4",
        ),
        ({"width": 50}, "got model.heads=4, which does not divide model.width=50"),
        ({"head_dim": 7}, "got model.head_dim=7; expected an even number"),
        ({"sliding_window": 8}, "got model.sliding_window=8; expected one of None"),
        ({"rope_type": "yarn"}, "got model.rope_type='yarn'; expected one of default, llama3"),
        ({"rope_factor": 2.0}, "model.rope_factor=2.0 with model.rope_type=default; expected None"),
        (
            {"rope_type": "llama3"},
            "rope_factor=None with model.rope_type=llama3; expected a number",
        ),
        (
            {**LLAMA3, "rope_high_freq_factor": 1.0},
            "rope_high_freq_factor=1.0, 1.0; expected the first below the second",
        ),
        ({"rope_theta": 0.0}, "got model.rope_theta=0.0; expected above 0"),
    ],
    ids=str,
)
def test_settings_that_contradict_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (MistralConfig, {"attention_bias": True}, "attention_bias=True; expected one of False"),
        (MistralConfig, {"mlp_bias": True}, "mlp_bias=True; expected one of False"),
        (Qwen2Config, {"attention_bias": False}, "attention_bias=False; expected one of True"),
        (Qwen3Config, {"mlp_bias": True}, "mlp_bias=True; expected one of False"),
    ],
)
def test_switches_that_a_model_type_does_not_have_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**{**SMALL, "key_value_heads": 2, **changes})


def test_a_config_without_its_sizes_is_refused():
    with pytest.raises(ValueError, match="lacks vocab_size, hidden_size, num_hidden_layers, num_"):
        config_from_hf({"model_type": "llama"})


def test_more_tokens_than_positions_are_refused():
    config = LlamaConfig(**SMALL | {"context_length": 8})
    with pytest.raises(ValueError, match="got 9 tokens; expected at most the model's 8 positions"):
        jax.eval_shape(abstract_model(config), jnp.zeros((1, 9), jnp.int32))


def test_each_model_type_has_its_own_row():
    for config in CONFIGS.values():
        assert family(config.model_type).config is type(config)
