"""A 10.6M-parameter GPT for two CPU cores: real articles, BioMedLM's vocabulary and architecture.

1,000 steps of 4 x 256 tokens are 1.0 M tokens. What it reaches on full-text articles, and how long
it takes, stands in docs/benchmarks.md.

    biomedlm pretrain --config=configs/gpt_cpu.py --config.data.path=TOKENS --workdir=RUN
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = ConfigDict(
        {
            "vocab_size": 28_896,
            "context_length": 256,
            "layers": 4,
            "width": 256,
            "heads": 4,
            "mlp_width": 1_024,
            "scale_attn_by_inverse_layer_idx": True,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "embedding_dropout": 0.0,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "eos_token_id": 28_895,
            "compute_dtype": "float32",
            "reduce_dtype": "float32",
            "attention": "auto",
            "remat": "none",
            "unroll": 1,
            "vocab_multiple": 128,
        }
    )
    config.data = ConfigDict({"path": "", "seed": 17})
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-3,
            "warmup_steps": 100,
            "final_lr_fraction": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-8,
            "weight_decay": 1e-4,  # decoupled; 0.1 in the terms of torch's AdamW
            "clip_norm": 1.0,
        }
    )
    config.training = ConfigDict(
        {
            "steps": 1_000,
            "batch_size": 4,  # rows of 256 tokens
            "accumulation": 1,
            "loss_chunks": 1,
            "seed": 17,
            "evaluate_every": 100,
            "evaluate_batches": 32,
        }
    )
    config.checkpoint = ConfigDict({"every": 200, "keep": 2})
    config.logging = ConfigDict({"every": 10, "tensorboard": True})
    return config.lock()
