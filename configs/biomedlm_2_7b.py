"""BioMedLM 2.7B: the pre-training run of Bolton et al. 2024 (arXiv 2403.18421).

Reproduces the published run: 300 B tokens (8.67 passes over 34.6 B) in 286,102 steps of
1024 x 1024. It took 6.25 days on 128 A100-40GB. Not published, and so set here to the usual values
of that month's MosaicML configs: the final learning-rate fraction, the gradient clip, the dropout
of pre-training (the released config says 0.1; fused attention needs attention_dropout=0), the
separator between documents (chosen by build-tokens), and the seed.

    biomedlm pretrain --config=configs/biomedlm_2_7b.py --config.data.path=TOKENS --workdir=RUN
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = ConfigDict(
        {
            "vocab_size": 28_896,
            "context_length": 1_024,
            "layers": 32,
            "width": 2_560,
            "heads": 20,
            "mlp_width": 10_240,
            "scale_attn_by_inverse_layer_idx": True,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "embedding_dropout": 0.0,  # not published for pre-training; 0.1 in the released config
            "attention_dropout": 0.0,
            "residual_dropout": 0.0,
            "eos_token_id": 28_895,
            "compute_dtype": "auto",  # bfloat16 on TPU and GPU
            # The published run summed gradients in float32. Planned for v5e:16x16, that takes the
            # exchanges that compute waits for from 5.69 to 10.53 GiB a step (docs/benchmarks.md).
            "reduce_dtype": "compute",
            "attention": "auto",
            "remat": "query,key,value,attention,residual,norm,mlp_input",
            "unroll": 1,
            "vocab_multiple": 128,  # 28,896 -> 28,928
        }
    )
    config.data = ConfigDict({"path": "", "seed": 17})
    # 32 shards of the state, repeated over the other devices: the best of 18 meshes planned for 256
    # chips of v5e (docs/benchmarks.md). Fewer than 32 devices: mesh.fsdp=8, say.
    config.mesh = ConfigDict({"data": -1, "fsdp": 32, "tensor": 1})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1.6e-4,
            "warmup_steps": 100,
            "final_lr_fraction": 0.1,  # not published
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1e-8,
            "weight_decay": 1.6e-5,  # decoupled: a step multiplies by 1 - lr_t / lr_0 * 1.6e-5
            "clip_norm": 1.0,  # not published
        }
    )
    config.training = ConfigDict(
        {
            "steps": 286_102,  # 300e9 / (1024 * 1024)
            "batch_size": 1_024,  # rows of 1,024 tokens
            "accumulation": 1,
            "loss_chunks": 1,
            "seed": 17,
            "evaluate_every": 1_000,
            "evaluate_batches": 32,
        }
    )
    config.checkpoint = ConfigDict({"every": 1_000, "keep": 5})  # 31 GB each
    config.logging = ConfigDict({"every": 10, "tensorboard": True})
    return config.lock()
