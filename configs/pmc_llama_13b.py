"""PMC-LLaMA-13B, stage 1: Llama 13B, continued on papers and textbooks (arXiv 2304.14454).

Published (training script): AdamW, the learning rate 2e-5 with a cosine, a warmup of 3 % of the
steps, no decay, bfloat16, 128 rows of 512 tokens; 4.8 M papers and 30,000 books (paper). The shape
is Llama 13B's. Stage 2, on instructions, is configs/finetune.py:pmc_llama.

Different here: the published reader takes one random window of 512 tokens of each text in each
epoch. Token rows are texts one after the other, cut every 512 tokens, so that a pass over them
reads every text to its end. The steps are those of 5 published epochs, one window a text.

Not published, and our choice where the code says so: the number of epochs, of which the script has
30 and the paper 5 and 10 in two places; betas, epsilon and gradient clip (transformers' defaults).

    biomedlm build-tokens --input=PAPERS --tokenizer=LLAMA --length=512 --out=TOKENS
    biomedlm pretrain --config=configs/pmc_llama_13b.py --init=LLAMA --config.data.path=TOKENS \\
        --workdir=RUN
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

llama = runpy.run_path(str(Path(__file__).with_name("pretrain.py")))["llama"]


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"got the variant {variant!r}; this config has none")
    config = llama(
        learning_rate=2e-5,
        steps=5 * 4_830_000 // 128,  # 188,671; 5 epochs: our choice
        vocab_size=32_000,  # stage 2 adds one, for padding
        context_length=2_048,  # of the model; the rows have 512
        layers=40,
        width=5_120,
        heads=40,
        key_value_heads=40,
        mlp_width=13_824,
        rms_norm_epsilon=1e-6,
        rope_theta=10_000.0,
    )
    config.training.batch_size = 128
    config.optimizer.update(
        schedule="cosine",
        warmup_steps=None,
        warmup_ratio=0.03,
        final_lr_fraction=0.0,
        beta1=0.9,  # not published: our choice
        beta2=0.999,  # not published: our choice
        epsilon=1e-8,  # not published: our choice
        weight_decay=0.0,
        clip_norm=1.0,  # not published: our choice
    )
    return config.lock()
