"""BioMedGPT-LM-7B: Llama-2-7B-chat, continued on papers of PubMed Central (arXiv 2308.09442).

Published (model card): the learning rate 2e-5, 192 rows of 2,048 tokens, 5 epochs, 26 B tokens of
5.5 M papers of S2ORC that have a PMC or PubMed id; MedMCQA 51.4, PubMedQA 76.1 after fine-tuning.
The shape is that of its config.json, rms_norm_eps 1e-6 included. Llama-2-7B-chat's file may have
1e-5: the run is refused then, until --config.model.rms_norm_epsilon=1e-5 is set.

Not published, and our choice where the code says so: schedule, warmup, final rate, decay, betas,
epsilon, gradient clip, the separator between papers, the hardware, and whether 26 B tokens are one
epoch, as we read it, or all five.

    biomedlm build-tokens --input=PAPERS --tokenizer=LLAMA --length=2048 --out=TOKENS
    biomedlm pretrain --config=configs/biomedgpt_lm_7b.py --init=LLAMA --config.data.path=TOKENS \\
        --workdir=RUN

192 rows divide over 64, 96 or 192 devices, or over 256 with --config.mesh.tensor=4.
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
        steps=5 * 26_000_000_000 // (192 * 2_048),  # 330,607; whose epochs: our reading
        vocab_size=32_000,
        context_length=4_096,  # of the model; the rows have 2,048
        layers=32,
        width=4_096,
        heads=32,
        key_value_heads=32,
        mlp_width=11_008,
        rms_norm_epsilon=1e-6,
        rope_theta=10_000.0,
    )
    config.training.batch_size = 192
    config.optimizer.update(
        schedule="cosine",  # not published: our choice
        warmup_steps=None,
        warmup_ratio=0.03,  # not published: our choice
        final_lr_fraction=0.0,  # not published: our choice
        beta1=0.9,  # not published: our choice
        beta2=0.999,  # not published: our choice
        epsilon=1e-8,  # not published: our choice
        weight_decay=0.0,  # not published: our choice
        clip_norm=1.0,  # not published: our choice
    )
    return config.lock()
