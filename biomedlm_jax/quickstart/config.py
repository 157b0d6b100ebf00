"""The quickstart's run: a GPT of about 1M parameters that reads the small world on two cores."""

from ml_collections import ConfigDict

# Few enough diseases and steps enough that the facts are learned by heart: at 60 diseases and 800
# steps of twice the size the loss had fallen as nicely, and the model recalled hardly any.
DISEASES = 60
EPOCHS = 8  # of fine-tuning
VOCAB_SIZE = 2_048
LENGTH = 128


def get_config(tokens: str, *, steps: int) -> ConfigDict:
    """The run's config for the token rows in `tokens`: 4 x 128 tokens a step."""
    config = ConfigDict()
    config.model = ConfigDict(
        {
            "vocab_size": VOCAB_SIZE,
            "context_length": LENGTH,
            "layers": 4,
            "width": 128,
            "heads": 4,
            "mlp_width": 512,
            "scale_attn_by_inverse_layer_idx": True,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "embedding_dropout": 0.0,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "eos_token_id": VOCAB_SIZE - 1,
            "compute_dtype": "float32",
            "reduce_dtype": "float32",
            "attention": "auto",
            "remat": "none",
            "unroll": 1,
            "vocab_multiple": 128,
        }
    )
    config.data = ConfigDict({"path": tokens, "seed": 0})
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 3e-3,
            "warmup_steps": 20,
            "final_lr_fraction": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-8,
            "weight_decay": 3e-4,
            "clip_norm": 1.0,
        }
    )
    config.training = ConfigDict(
        {
            "steps": steps,
            "batch_size": 4,
            "accumulation": 1,
            "loss_chunks": 1,
            "seed": 0,
            "evaluate_every": max(1, steps // 4),
            "evaluate_batches": -1,
        }
    )
    config.checkpoint = ConfigDict({"every": max(1, steps // 2), "keep": 1})
    config.logging = ConfigDict({"every": max(1, steps // 20), "tensorboard": True})
    return config.lock()


def get_finetuning_config(task: str, *, epochs: int = EPOCHS) -> ConfigDict:
    """The fine-tuning's config for the questions of `task`: configs/finetune_small_world.py."""
    config = ConfigDict()
    config.model = ConfigDict(
        {
            "compute_dtype": "float32",
            "attention": "auto",
            "remat": "none",
            "unroll": 1,
            "embedding_dropout": 0.0,
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
        }
    )
    config.task = ConfigDict(
        {
            "name": task,
            "path": "",
            "train_split": "train",
            "dev_split": "dev",
            "fold": 0,
            "on_error": "raise",
            "row_format": "paper",
            "max_length": LENGTH,
        }
    )
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-3,
            "warmup_ratio": 0.5,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        }
    )
    config.training = ConfigDict({"epochs": epochs, "batch_size": 32, "accumulation": 1, "seed": 1})
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0})
    config.checkpoint = ConfigDict({"every": 500, "keep": 1})
    config.logging = ConfigDict({"every": 20, "tensorboard": True})
    config.sweep = ConfigDict({"learning_rates": (), "seeds": ()})
    return config.lock()
