"""Pre-training runs: `--config=configs/pretrain.py:VARIANT`.

biomedlm_2_7b  the published run (Bolton et al. 2024, arXiv 2403.18421): 300 B tokens (8.67 passes
               over 34.6 B) in 286,102 steps of 1024 x 1024; it took 6.25 days on 128 A100-40GB.
               Not published, and set here to that month's MosaicML defaults: the final
               learning-rate fraction, the gradient clip, the dropout of pre-training (0.1 in the
               released config; fused attention needs 0), the separator between documents (chosen
               by build-tokens) and the seed.
biomedlm_2_7b_fast
               the same run, but the devices sum the gradients of matrix products in bfloat16
               (model.reduce_dtype=compute), not in float32 as published. The collectives that a
               step waits for shrink from 10.14 to 5.31 GiB (v5e:16x16, docs/benchmarks.md).
gpt_125m       one GPU or a small TPU slice: the size of the paper's tokenizer ablation (table 4),
               whose optimizer settings are not published; the rate is GPT-3's for this size (arXiv
               2005.14165, table 2.1). 20,000 steps of 256 x 1024 tokens are 5.2 B tokens.
               Four v5e chips need --config.training.accumulation=16.
gpt_cpu        10.6 M parameters for two CPU cores: real articles, BioMedLM's vocabulary. 1,000
               steps of 4 x 256 tokens are 1.0 M tokens; docs/benchmarks.md has the result.
continued      more steps from the weights of --init=DIR, whose family and architecture it takes.
               The learning rate warms up again, to a tenth of BioMedLM's, and is then constant, so
               that a finished run can get more steps with a larger --config.training.steps. Neither
               value is published.
tiny           trains in seconds, for tests and a first look; rows of any length and vocabulary.
llama_2_7b     Llama 2 7B's shape with 256 rows of 2,048 tokens, for the planner: a comparison with
               MaxText's compiled step (docs/benchmarks.md). Its optimizer is BioMedLM's.
llama_2_7b_lora
               the same shape with low-rank factors of rank 16 beside frozen bfloat16 weights, and
               16 rows of 1,024 tokens one by one: 14.65 GiB, planned, of one v5e chip's 15.75.
               Learning rate and rank are not published. To train one, --init=DIR of a 7B Llama.
llama_cpu, llama_tiny
               the same sizes with Llama's layers, and two query heads for each key.

    biomedlm pretrain --config=configs/pretrain.py:gpt_cpu --config.data.path=TOKENS --workdir=RUN
    biomedlm pretrain --config=configs/pretrain.py:continued --init=DIR \\
        --config.data.mixture=domain=TOKENS:99,general=OTHER_TOKENS:1 --workdir=RUN

Other continued runs: biomedgpt_lm_7b.py, meditron_7b.py, mmed_llama_3_8b.py and pmc_llama_13b.py.
Vocabulary size, end-of-text id and row length come from the token rows unless they are set. With
--init=DIR what the model group leaves unset comes from DIR, and a contradiction is an error.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

GPT2_ONLY = ("scale_attn_by_inverse_layer_idx", "layer_norm_epsilon")
OF_WEIGHTS = ("initializer_range", "vocab_multiple")  # that a run starts from


def get_config(variant: str = "gpt_cpu") -> ConfigDict:
    variants = {
        "biomedlm_2_7b": biomedlm_2_7b,
        "biomedlm_2_7b_fast": biomedlm_2_7b_fast,
        "gpt_125m": gpt_125m,
        "gpt_cpu": gpt_cpu,
        "continued": continued,
        "tiny": tiny,
        "llama_2_7b": llama_2_7b,
        "llama_2_7b_lora": llama_2_7b_lora,
        "llama_cpu": llama_cpu,
        "llama_tiny": llama_tiny,
    }
    if variant not in variants:
        raise ValueError(f"got the variant {variant!r}; choose one of {', '.join(variants)}")
    config = shared()
    variants[variant](config)
    return config.lock()


def shared() -> ConfigDict:
    """What the variants have in common; BioMedLM's architecture."""
    return ConfigDict(
        {
            "model": {
                "model_type": "gpt2",
                "vocab_size": placeholder(int),  # None: as in the token rows
                "context_length": placeholder(int),
                "eos_token_id": placeholder(int),
                "layers": placeholder(int),
                "width": placeholder(int),
                "heads": placeholder(int),
                "mlp_width": placeholder(int),  # None: 4 * width
                "scale_attn_by_inverse_layer_idx": True,
                "layer_norm_epsilon": 1e-5,
                "initializer_range": 0.02,
                "embedding_dropout": 0.0,
                "attention_dropout": 0.0,
                "residual_dropout": 0.0,
                "compute_dtype": "auto",  # bfloat16 on TPU and GPU, float32 on CPU
                "reduce_dtype": "float32",  # of gradient sums; compute: as compute_dtype
                "attention": "auto",
                "remat": "none",
                "unroll": 1,
                "vocab_multiple": 128,  # 28,896 -> 28,928
            },
            "data": {
                "path": "",
                "mixture": "",  # instead of path: NAME=DIR:WEIGHT,NAME=DIR:WEIGHT
                "seed": 17,
            },
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
            "optimizer": {
                "schedule": "cosine",
                "learning_rate": 1e-3,
                "warmup_steps": 100,
                "warmup_ratio": placeholder(float),  # instead of warmup_steps
                "final_lr_fraction": 0.1,
                "beta1": 0.9,
                "beta2": 0.95,
                "epsilon": 1e-8,
                "weight_decay": 1e-4,  # a step multiplies by 1 - lr_t / lr_0 * weight_decay
                "decoupled": True,
                "clip_norm": 1.0,
            },
            "training": {
                "steps": 1_000,
                "batch_size": 4,  # rows
                "accumulation": 1,
                "loss_chunks": 1,
                "seed": 17,
                "evaluate_every": 100,
                "evaluate_batches": 32,
                "evaluate_sources": "first",  # of a mixture; all: a validation loss for each
                "from_weights": False,  # True: refuse to begin without --init
            },
            "lora": {
                "rank": 0,  # 0: every parameter is trained
                "alpha": 16.0,
                "frozen_dtype": "float32",  # of the frozen matrices; or bfloat16
            },
            "checkpoint": {"every": 200, "minutes": 0.0, "keep": 2, "keep_every": 0},
            "logging": {"every": 10, "trackers": ("tensorboard",)},  # wandb, mlflow, trackio
            "faults": {
                "skipped_in_a_row": 10,
                "spike": "log",  # off, log, skip (the update) or stop (the run)
                "spike_deviations": 6.0,
                "hang_minutes": 30.0,
            },
        }
    )


def biomedlm_2_7b(config: ConfigDict) -> None:
    config.model.update(vocab_size=28_896, context_length=1_024, eos_token_id=28_895)
    config.model.update(layers=32, width=2_560, heads=20)
    config.model.remat = "query,key,value,attention,residual,norm,mlp_input"
    # 32 shards of the state, replicated over the other devices: for 256 chips of v5e the best of 18
    # planned meshes with bfloat16 sums, within 1.4 % of the best with float32 sums
    # (docs/benchmarks.md). Fewer than 32 devices: mesh.fsdp=8, say.
    config.mesh.update(data=-1, fsdp=32)
    config.optimizer.update(learning_rate=1.6e-4, weight_decay=1.6e-5)
    config.training.update(steps=286_102, batch_size=1_024, evaluate_every=1_000)  # 300e9 tokens
    config.checkpoint.update(every=1_000, keep=5)  # 31 GB each


def biomedlm_2_7b_fast(config: ConfigDict) -> None:
    biomedlm_2_7b(config)
    config.model.reduce_dtype = "compute"


def gpt_125m(config: ConfigDict) -> None:
    config.model.update(vocab_size=28_896, context_length=1_024, eos_token_id=28_895)
    config.model.update(layers=12, width=768, heads=12)
    config.optimizer.update(learning_rate=6e-4, warmup_steps=500, weight_decay=6e-5)
    config.training.update(steps=20_000, batch_size=256, evaluate_every=1_000)
    config.checkpoint.update(every=1_000, keep=5)


def gpt_cpu(config: ConfigDict) -> None:
    config.model.update(layers=4, width=256, heads=4)


def continued(config: ConfigDict) -> None:
    with config.ignore_type():  # None, or absent: as in the model of --init, of any family
        config.model.model_type = placeholder(str)
    for name in (*GPT2_ONLY, *OF_WEIGHTS):
        del config.model[name]
    config.optimizer.update(schedule="constant", learning_rate=1.6e-5, weight_decay=1.6e-6)
    config.optimizer.final_lr_fraction = 1.0
    config.training.from_weights = True


def llama(*, learning_rate: float, steps: int, **architecture) -> ConfigDict:
    """What the runs have in common that continue a Llama, whose ids come from its weights."""
    config = shared()
    with config.ignore_type():
        for name in (*GPT2_ONLY, *OF_WEIGHTS):
            del config.model[name]
        config.model.update(model_type="llama", rope_type="default", tie_word_embeddings=False)
        config.model.update(architecture)
    # What the backward pass keeps for BioMedLM; full needs less memory and recomputes more.
    config.model.remat = "query,key,value,attention,residual,norm,mlp_input"
    config.optimizer.update(learning_rate=learning_rate, decoupled=False)
    config.training.update(steps=steps, evaluate_every=1_000, from_weights=True)
    config.checkpoint.update(every=1_000, keep=3)
    return config


def tiny(config: ConfigDict) -> None:
    config.model.update(layers=2, width=64, heads=4, compute_dtype="float32")
    config.optimizer.update(learning_rate=3e-3, warmup_steps=5, weight_decay=3e-4)
    config.training.update(steps=40, batch_size=8, evaluate_every=20, evaluate_batches=-1)
    config.checkpoint.update(every=10, keep=3)
    config.logging.every = 5


def llama_2_7b(config: ConfigDict) -> None:
    config.model.update(vocab_size=32_000, context_length=2_048, eos_token_id=2)
    config.model.update(layers=32, width=4_096, heads=32, mlp_width=11_008, reduce_dtype="compute")
    config.model.remat = "query,key,value,attention,residual,norm,mlp_input"
    _to_llama(config)
    config.model.key_value_heads = 32
    config.mesh.update(data=-1, fsdp=32)
    config.optimizer.update(learning_rate=1.6e-4, weight_decay=1.6e-5)
    config.training.batch_size = 256


def llama_2_7b_lora(config: ConfigDict) -> None:
    llama_2_7b(config)
    config.model.update(context_length=1_024, remat="full")
    config.lora.update(rank=16, alpha=32.0, frozen_dtype="bfloat16")
    config.mesh.update(data=1, fsdp=-1)
    config.optimizer.update(learning_rate=2e-4, weight_decay=0.0, decoupled=False)
    config.training.update(batch_size=16, accumulation=16, loss_chunks=4)


def llama_cpu(config: ConfigDict) -> None:
    gpt_cpu(config)
    _to_llama(config)


def llama_tiny(config: ConfigDict) -> None:
    tiny(config)
    _to_llama(config)


def _to_llama(config: ConfigDict) -> None:
    for name in GPT2_ONLY:
        del config.model[name]
    config.model.model_type = "llama"
    config.model.key_value_heads = config.model.heads // 2
