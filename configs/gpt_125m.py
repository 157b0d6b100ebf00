"""A 125M-parameter GPT for one GPU or a small TPU slice.

The size of the tokenizer ablation of Bolton et al. 2024 (table 4), whose optimizer settings are
not published: the rate is GPT-3's for this size (arXiv 2005.14165, table 2.1). 20,000 steps of
256 x 1024 tokens are 5.2 B tokens.

    biomedlm pretrain --config=configs/gpt_125m.py --config.data.path=TOKENS --workdir=RUN
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = ConfigDict(
        {
            "vocab_size": 28_896,
            "context_length": 1_024,
            "layers": 12,
            "width": 768,
            "heads": 12,
            "mlp_width": 3_072,
            "scale_attn_by_inverse_layer_idx": True,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "embedding_dropout": 0.0,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "eos_token_id": 28_895,
            "compute_dtype": "auto",  # bfloat16 on TPU and GPU
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
            "learning_rate": 6e-4,
            "warmup_steps": 500,
            "final_lr_fraction": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-8,
            "weight_decay": 6e-5,  # decoupled; 0.1 in the terms of torch's AdamW
            "clip_norm": 1.0,
        }
    )
    config.training = ConfigDict(
        {
            "steps": 20_000,
            "batch_size": 256,  # rows of 1,024 tokens
            "accumulation": 1,
            "loss_chunks": 1,
            "seed": 17,
            "evaluate_every": 1_000,
            "evaluate_batches": 32,
        }
    )
    config.checkpoint = ConfigDict({"every": 1_000, "keep": 5})
    config.logging = ConfigDict({"every": 10, "tensorboard": True})
    return config.lock()
