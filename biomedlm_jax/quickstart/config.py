"""Configs of the quickstart's runs: a model of some 0.6 M parameters on the synthetic corpus."""

import dataclasses

from ml_collections import ConfigDict

from biomedlm_jax.finetuning.config import EpochSteps, QuestionSettings, SweepSettings, TaskSettings
from biomedlm_jax.training.config import (
    CheckpointSettings,
    FaultSettings,
    LoggingSettings,
    LoRASettings,
    MeshSettings,
    OptimizerSettings,
)
from biomedlm_jax.training.pretrain import PretrainSettings, PretrainSteps, TokenSettings

# 20 families are tested, and fewer than 20 would make intervals over families too narrow.
FAMILIES = 60
VOCAB_SIZE = 1_536  # most names are one token
LENGTH = 128
EPOCHS = 10  # of fine-tuning
# Two layers with an initializer_range of 0.05 learn the facts in fewer and cheaper updates than
# four layers with GPT-2's 0.02.
SHAPE = {"layers": 2, "width": 128, "heads": 4, "initializer_range": 0.05}
MODELS = {
    "gpt2": {"model_type": "gpt2", **SHAPE, "scale_attn_by_inverse_layer_idx": True}
    | dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0),
    "llama": {"model_type": "llama", **SHAPE, "key_value_heads": 2},
}


def pretraining_config(tokens: str, *, steps: int, family: str = "gpt2") -> ConfigDict:
    """Return the config of pre-training a model of `MODELS` on the token rows in `tokens`."""
    settings = PretrainSettings(
        model=MODELS[family],
        data=TokenSettings(path=tokens, seed=0),
        mesh=MeshSettings(),
        optimizer=OptimizerSettings(
            schedule="cosine",
            learning_rate=6e-3,
            warmup_steps=min(50, steps // 4),
            final_lr_fraction=0.1,
            beta2=0.95,
        ),
        training=PretrainSteps(
            steps=steps, batch_size=8, seed=0, evaluate_every=max(1, steps // 4)
        ),
        lora=LoRASettings(),
        checkpoint=CheckpointSettings(every=steps, keep=1),
        logging=LoggingSettings(every=max(1, steps // 20)),
        faults=FaultSettings(),
    )
    return ConfigDict(dataclasses.asdict(settings))


def finetuning_config(task: str, *, epochs: int = EPOCHS) -> ConfigDict:
    """Return the config of fine-tuning on the questions of `task`.

    A test checks that it equals configs/finetune.py:small_world.
    """
    settings = QuestionSettings(
        recipe="questions",
        model={},
        task=TaskSettings(
            name=task,
            path="",
            format="",
            train_split="train",
            dev_split="dev",
            fold=0,
            on_error="raise",
            row_format="keep_end",
            max_length=LENGTH,
        ),
        mesh=MeshSettings(),
        optimizer=OptimizerSettings(learning_rate=1e-3, warmup_ratio=0.3),
        training=EpochSteps(epochs=epochs, batch_size=32, seed=1),
        lora=LoRASettings(),
        checkpoint=CheckpointSettings(every=500, keep=1),
        logging=LoggingSettings(every=20),
        faults=FaultSettings(),
        sweep=SweepSettings(),
    )
    return ConfigDict(dataclasses.asdict(settings))
