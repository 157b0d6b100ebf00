"""MMed-Llama-3-8B: Llama-3-8B, continued on the multilingual MMedC (arXiv 2402.13963).

Published: 25.5 B tokens of MMedC in six languages, 3 epochs; MedQA 65.4, MedMCQA 63.5, PubMedQA
80.1 after fine-tuning on English questions (model card). The shape is that of its config.json. The
training scripts are those of the same authors' InternLM model: 2e-5 with a cosine, a warmup of 1 %
of the steps, decay 0.01, clip 1, 512 rows of 2,048 tokens.

Not published for Llama 3, and our choice where the code says so: all of that, taken over from the
InternLM scripts, and the final rate, betas and epsilon. The tokens were counted with another
tokenizer than Llama 3's.

    biomedlm build-tokens --input=MMEDC --tokenizer=LLAMA3 --length=2048 --out=TOKENS
    biomedlm pretrain --config=configs/mmed_llama_3_8b.py --init=LLAMA3 \\
        --config.data.path=TOKENS --workdir=RUN

One directory of token rows for each language, with --config.data.mixture in place of
--config.data.path and --config.training.evaluate_sources=all, gives each language's loss. The
published proportions are those of the corpus.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

llama = runpy.run_path(str(Path(__file__).with_name("pretrain.py")))["llama"]


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"got the variant {variant!r}; this config has none")
    config = llama(
        learning_rate=2e-5,  # not published: our choice, InternLM's
        steps=3 * 25_500_000_000 // (512 * 2_048),  # 72,956; whose tokens: our reading
        vocab_size=128_256,
        context_length=8_192,  # of the model; the rows have 2,048
        layers=32,
        width=4_096,
        heads=32,
        key_value_heads=8,
        mlp_width=14_336,
        rms_norm_epsilon=1e-5,
        rope_theta=500_000.0,
    )
    config.training.batch_size = 512  # not published: our choice, InternLM's
    config.optimizer.update(
        schedule="cosine",  # not published: our choice, InternLM's
        warmup_steps=None,
        warmup_ratio=0.01,  # not published: our choice, InternLM's
        final_lr_fraction=0.0,  # not published: our choice
        beta1=0.9,  # not published: our choice
        beta2=0.999,  # not published: our choice
        epsilon=1e-8,  # not published: our choice
        weight_decay=0.01,  # not published: our choice, InternLM's
        clip_norm=1.0,  # not published: our choice, InternLM's
    )
    return config.lock()
