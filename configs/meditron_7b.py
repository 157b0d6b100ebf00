"""Meditron-7B: Llama-2-7B, continued on GAP-Replay with 1 % general text (arXiv 2311.16079).

Published: 48.1 B tokens (guidelines, abstracts, papers and 0.4 B of general text against
forgetting), 1,600 rows of 2,048 tokens, AdamW with betas 0.9 and 0.95, epsilon 1e-5, decay 0.1,
clip 1, 3e-4 with a warmup of 2,000 steps and a cosine to 1e-6 (training script; the paper has a
tenth of the maximum). The shape is Llama-2-7B's. The released tokenizer has
17 tokens more than the embedding has rows: use Llama 2's own.

Not published, and our choice where the code says so: the exact proportions. The mixture is 99 rows
of medical text to 1 of general text; published are 0.4 of 48.1 B tokens, shuffled together.

    biomedlm build-tokens --input=MEDICAL --tokenizer=LLAMA --length=2048 --out=tokens/medical
    biomedlm build-tokens --input=GENERAL --tokenizer=LLAMA --length=2048 --out=tokens/general
    biomedlm pretrain --config=configs/meditron_7b.py --init=LLAMA --workdir=RUN

Rows elsewhere: --config.data.mixture=medical=DIR:99,general=DIR:1. The start and `biomedlm inspect`
print the passes over each.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

llama = runpy.run_path(str(Path(__file__).with_name("pretrain.py")))["llama"]


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"got the variant {variant!r}; this config has none")
    config = llama(
        learning_rate=3e-4,
        steps=48_100_000_000 // (1_600 * 2_048),  # 14,678
        vocab_size=32_000,
        layers=32,
        width=4_096,
        heads=32,
        key_value_heads=32,
        mlp_width=11_008,
        rms_norm_epsilon=1e-5,
        rope_theta=10_000.0,
        context_length=4_096,  # Llama 2's; the rows have 2,048
    )
    # 99 to 1: our choice
    config.data.mixture = "medical=tokens/medical:99,general=tokens/general:1"
    config.training.update(batch_size=1_600, evaluate_sources="all")
    config.optimizer.update(
        schedule="cosine",
        warmup_steps=2_000,
        final_lr_fraction=1 / 300,  # 1e-6
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-5,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    return config.lock()
