r"""Answer consumer health questions: MedQuAD, 16,359 pairs.

2,066 questions repeat with other answers, so the split keeps each `focus` (a disease or a drug) on
one side. The format and the decoding are those published for BioMedLM (arXiv 2403.18421 and the
original repository); learning rate, epochs and batch size are choices of this project.

    biomedlm finetune-longform --config=configs/longform_medquad.py --model=RUN --workdir=OUT \
        --config.data.train=medquad.jsonl.gz
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict(
        {
            "train": "",
            "dev": "",  # empty: a part of train
            "source_field": "question",
            "target_field": "answer",
            "group_field": "focus",  # empty: equal sources stay together
            "dev_fraction": 0.02,
            "source_tokens": 510,
            "target_tokens": 510,
            "row_tokens": 1_024,  # 510 + separator + 510 + end, and two to spare
        }
    )
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 2e-5,
            "warmup_ratio": 0.5,  # as the original fine-tuning scripts have it
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        }
    )
    config.training = ConfigDict(
        {
            "epochs": 3,
            "batch_size": 8,  # rows, each with several examples
            "loss_chunks": 1,
            "seed": 17,
        }
    )
    config.checkpoint = ConfigDict({"every": 500, "keep": 1})
    config.logging = ConfigDict({"every": 10, "tensorboard": True})
    config.evaluation = ConfigDict(
        {
            "examples": 16,  # decoded after each epoch but the last
            "final_examples": 200,  # decoded at the end; 0: all
            "batch_size": 8,
        }
    )
    config.generation = ConfigDict(
        {
            "beams": 5,
            "no_repeat_ngram_size": 6,
            "length_penalty": -0.5,
            "min_length": 5,
            "max_new_tokens": 400,
        }
    )
    return config.lock()
