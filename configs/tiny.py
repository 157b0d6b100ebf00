"""A GPT that trains in seconds, for tests and for a first look.

biomedlm pretrain --config=configs/tiny.py --config.data.path=TOKENS --workdir=RUN
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = ConfigDict(
        {
            "vocab_size": 512,
            "context_length": 32,
            "layers": 2,
            "width": 64,
            "heads": 4,
            "mlp_width": 256,
            "scale_attn_by_inverse_layer_idx": True,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "embedding_dropout": 0.0,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "eos_token_id": 511,
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
            "learning_rate": 3e-3,
            "warmup_steps": 5,
            "final_lr_fraction": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-8,
            "weight_decay": 3e-4,  # decoupled; 0.1 in the terms of torch's AdamW
            "clip_norm": 1.0,
        }
    )
    config.training = ConfigDict(
        {
            "steps": 40,
            "batch_size": 8,  # rows of 32 tokens
            "accumulation": 1,
            "loss_chunks": 1,
            "seed": 17,
            "evaluate_every": 20,
            "evaluate_batches": -1,
        }
    )
    config.checkpoint = ConfigDict({"every": 10, "keep": 3})
    config.logging = ConfigDict({"every": 5, "tensorboard": True})
    return config.lock()
