"""The quickstart's questions: 30 invented diseases, four options, a model of about 1M parameters.

Reproduces no published figure: it shows in a minute on two cores what fine-tuning does. These are
the values that `biomedlm quickstart` itself tunes with; optimizer, warmup and format are the
published ones, and the rest is sized for a world of this size.

    biomedlm finetune --config=configs/finetune_small_world.py --model=quickstart/run \
        --workdir=quickstart/tuned
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
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
            "name": "jsonl:quickstart/questions",
            "path": "",
            "train_split": "train",
            "dev_split": "dev",
            "fold": 0,
            "on_error": "raise",
            "row_format": "paper",
            "max_length": 128,  # tokens of a question with one option
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
    config.training = ConfigDict(
        {
            "epochs": 8,
            "batch_size": 32,  # questions
            "accumulation": 1,
            "seed": 1,
        }
    )
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0})  # rank 0: every parameter is trained
    config.checkpoint = ConfigDict({"every": 500, "keep": 1})
    config.logging = ConfigDict({"every": 20, "tensorboard": True})
    config.sweep = ConfigDict({"learning_rates": (), "seeds": ()})
    return config.lock()
