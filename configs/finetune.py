"""Fine-tuning runs: `--config=configs/finetune.py:VARIANT`.

Questions (a head that scores options or classes); BioMedLM's published figures (arXiv 2403.18421):
    medqa        50.3 % of the test split; 54.7 % after medmcqa, whose run is then --model
    medmcqa      57.3 % of the dev split; files with no cop 0 and none 4 need task.label_base
    pubmedqa     74.4 % of the test split; 450 to learn, 50 to check; task.fold chooses the tenth;
                 task.train_path=ori_pqaa.json learns from the 211,269 artificial ones instead
    bioasq       95.7 % of the test split of BLURB's yes/no questions
    small_world  the quickstart's questions: no published figure
Optimizer, warmup ratio and decay are the published ones. The published code's rows are
task.row_format=released: the longer text loses its end, and rows to classify have no marks. The
default, keep_end, has the marks of the paper and cuts the start: the request stays. Learning rate,
epochs and batch size are not published: sweep over them (BioLinkBERT took 6 epochs of MedQA, 23 of
PubMedQA).

Text (answers and summaries):
    meqsum       summaries of consumer health questions, 1,000 pairs, no official split
    medquad      answers to consumer health questions, 16,359 pairs, split by `focus`
Format and decoding are the published ones; learning rate, epochs and batch size are not published.
They are for 1,024 positions; a smaller model needs smaller data.*_tokens.

Instructions as published, with `instruct`'s value where nothing is; the data is not here:
    pmc_llama        stage 2 of PMC-LLaMA (arXiv 2304.14454), after configs/pmc_llama_13b.py:
                     learning rate 2e-5, 3 epochs, Alpaca's template, rows of 2,048; 202 M tokens
    mmedins_llama_3  MMedIns-Llama 3 (arXiv 2408.12547), after configs/mmed_llama_3_8b.py: headers
                     of Llama 3; 5 M examples of 122 tasks. Learning rate, epochs, batch and length
                     are not published
    llama2_medtuned  Llama2-MedTuned (arXiv 2401.00579): 3 epochs, prompts like Alpaca's, 200,252
                     examples; build-instructions makes such ones. The others are not published

Chats and instructions:
    instruct       every parameter; learning rate 2e-5, 3 epochs (PMC-LLaMA's), batches of 128,
                   warmup 3 %, linear decay to 0, no weight decay (Self-BioRAG's; its rows were not
                   packed: a batch here has several times as many conversations)
    instruct_lora  the same with low-rank factors: rank 16, alpha 32, learning rate 2e-4
    instruct_lora_one_chip
                   for 7B on one v5e chip of 16 GB: frozen weights in bfloat16 (exact for weights
                   that are published so), 16 rows of 1,024 tokens one by one. The compiled step of
                   Llama 2 7B needs 14.65 GiB (pretrain.py:llama_2_7b_lora). No dev answers are
                   decoded: a copy of the weights for decoding has no room. The model is merged in
                   the host's memory (27 GB)
data.format is messages, alpaca or pairs, and is never guessed. data.template is that of the
tokenizer, or one of alpaca, chatml, human, llama2, llama3, zephyr, or a .jinja file. The loss is on
the assistant's tokens and the stop token. Several files: data.train, data.weights (how often an
epoch has an example) and data.caps (examples of an epoch). `--show_mask` prints what is learned.
Published scores of such models depend on their data, which is not here: no figure is reproduced.
Every parameter of a 7B model is 81 GB of state in float32; its factors need the weights alone: 27
GB in float32, 13.5 GB in bfloat16 (lora.frozen_dtype).

    biomedlm finetune --config=configs/finetune.py:medqa --config.task.path=DIR --model=RUN \\
        --workdir=FINETUNED
    biomedlm finetune --config=configs/finetune.py:meqsum --config.data.train=meqsum.jsonl \\
        --model=RUN --workdir=FINETUNED
    biomedlm finetune --config=configs/finetune.py:instruct --config.data.train=chats.jsonl \\
        --config.data.format=messages --config.data.template=zephyr --model=RUN \\
        --workdir=FINETUNED
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "medqa") -> ConfigDict:
    variants = {
        "medqa": medqa,
        "medmcqa": medmcqa,
        "pubmedqa": pubmedqa,
        "bioasq": bioasq,
        "small_world": small_world,
        "meqsum": meqsum,
        "medquad": medquad,
        "pmc_llama": pmc_llama,
        "mmedins_llama_3": mmedins_llama_3,
        "llama2_medtuned": llama2_medtuned,
        "instruct": instruct,
        "instruct_lora": instruct_lora,
        "instruct_lora_one_chip": instruct_lora_one_chip,
    }
    if variant not in variants:
        raise ValueError(f"got the variant {variant!r}; choose one of {', '.join(variants)}")
    config = shared()
    variants[variant](config)
    return config.lock()


def shared() -> ConfigDict:
    return ConfigDict(
        {
            "recipe": "questions",  # or text, chat
            "model": {
                "compute_dtype": "auto",  # bfloat16 on TPU and GPU, float32 on CPU
                "reduce_dtype": "float32",
                "attention": "auto",
                "remat": "none",
                "unroll": 1,
                "embedding_dropout": 0.1,  # the published model's own
                "attention_dropout": 0.1,
                "residual_dropout": 0.1,
            },
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
            "optimizer": {
                "schedule": "linear",
                "learning_rate": 1e-5,
                "warmup_steps": placeholder(int),  # instead of warmup_ratio
                "warmup_ratio": 0.5,
                "final_lr_fraction": 0.0,
                "beta1": 0.9,
                "beta2": 0.999,
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "decoupled": False,
                "clip_norm": 1.0,
            },
            "training": {
                "epochs": 6,
                "batch_size": 32,  # questions; of text: packed rows
                "accumulation": 1,
                "loss_chunks": 1,
                "seed": 1,
            },
            "lora": {
                "rank": 0,  # 0: every parameter is trained
                "alpha": 16.0,
                "frozen_dtype": "float32",  # of the frozen matrices; or bfloat16
            },
            "checkpoint": {"every": 500, "minutes": 0.0, "keep": 1, "keep_every": 0},
            "logging": {"every": 10, "trackers": ("tensorboard",)},  # wandb, mlflow, trackio
            "faults": {
                "skipped_in_a_row": 10,
                "spike": "log",  # off, log, skip (the update) or stop (the run)
                "spike_deviations": 6.0,
                "hang_minutes": 30.0,
            },
            "sweep": {"learning_rates": (), "seeds": ()},
        }
    )


def questions(config: ConfigDict, task: str) -> None:
    config.task = ConfigDict(
        {
            "name": task,
            "path": "",  # a file or directory
            "train_path": "",  # of the training questions; empty: the same
            "format": "",  # of the files; empty: the task's own
            "train_split": "train",
            "dev_split": "dev",
            "fold": 0,
            "on_error": "raise",  # "skip" leaves bad questions out and counts them
            "label_base": "auto",  # number of the first option in the files: 0, 1
            "twins": "keep",  # questions with two equal options; or "skip"
            "row_format": "keep_end",  # of a long text; "released" (published) keeps the start
            "max_length": 512,  # tokens of a question with one option
        }
    )


def medqa(config: ConfigDict) -> None:
    questions(config, "medqa")


def medmcqa(config: ConfigDict) -> None:
    questions(config, "medmcqa")
    config.task.on_error = "skip"
    config.training.epochs = 3


def pubmedqa(config: ConfigDict) -> None:
    questions(config, "pubmedqa")
    config.training.epochs = 23


def bioasq(config: ConfigDict) -> None:
    questions(config, "bioasq")
    config.training.epochs = 23


def small_world(config: ConfigDict) -> None:
    questions(config, "jsonl:quickstart/questions")
    config.task.max_length = 128
    config.model.update(compute_dtype="float32", embedding_dropout=0.0)
    config.model.update(attention_dropout=0.0, residual_dropout=0.0)
    config.optimizer.update(learning_rate=1e-3, warmup_ratio=0.3)
    config.training.epochs = 10
    config.logging.every = 20


def text(config: ConfigDict) -> None:
    config.recipe = "text"
    config.data = ConfigDict(
        {
            "train": "",  # JSONL, or the stem of a .source and a .target file
            "dev": "",  # empty: a part of train
            "source_field": "source",
            "target_field": "target",
            "group_field": "",  # empty: equal sources stay together
            "dev_fraction": 0.1,
            "source_tokens": 510,
            "target_tokens": 510,
            "row_tokens": 1_024,  # 510 + separator + 510 + end, and two to spare
        }
    )
    config.optimizer.learning_rate = 2e-5
    config.training.update(epochs=10, batch_size=8, seed=17)
    config.evaluation = ConfigDict(
        {
            "examples": 32,  # decoded after each epoch but the last
            "final_examples": 0,  # decoded at the end; 0: all, -1: none
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


def meqsum(config: ConfigDict) -> None:
    text(config)


def medquad(config: ConfigDict) -> None:
    text(config)
    config.data.update(source_field="question", target_field="answer", group_field="focus")
    config.data.dev_fraction = 0.02
    config.training.epochs = 3
    config.evaluation.update(examples=16, final_examples=200)


def pmc_llama(config: ConfigDict) -> None:
    instruct(config)
    config.data.update(format=("alpaca",), template="alpaca", row_tokens=2_048)


def mmedins_llama_3(config: ConfigDict) -> None:
    instruct(config)
    config.data.update(template="llama3", row_tokens=2_048)  # length not published: our choice


def llama2_medtuned(config: ConfigDict) -> None:
    instruct(config)
    config.data.update(format=("alpaca",), template="alpaca")


def instruct(config: ConfigDict) -> None:
    config.recipe = "chat"
    config.data = ConfigDict(
        {
            "train": (),  # JSON lines, a JSON array or parquet
            "format": (),  # messages, alpaca or pairs: of all files, or of each of train
            "weights": (),  # of each of train: how often an epoch has an example; empty: once
            "caps": (),  # of each of train: examples of an epoch, before the weight; 0: all
            "dev": (),  # empty: a part of each of train
            "dev_fraction": 0.02,
            "source_field": "source",  # of format pairs
            "target_field": "target",
            "group_field": "",  # empty: equal first messages stay together
            "on_error": "raise",  # "skip" leaves bad lines out and counts them
            "template": "",  # empty: the tokenizer's own
            "date": "",  # YYYY-MM-DD, for a template that prints the date
            "added_tokens": (),  # of the template, that the tokenizer lacks
            "masked_spans": (),  # markers, begin and end: what is between them is not learned
            "row_tokens": 1_024,
        }
    )
    config.model.update(embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    config.optimizer.update(learning_rate=2e-5, warmup_ratio=0.03)
    config.training.update(epochs=3, batch_size=128, seed=17)
    config.evaluation = ConfigDict(
        {
            "examples": 16,  # decoded after each epoch but the last
            "final_examples": 100,  # decoded at the end; 0: all, -1: none
            "batch_size": 8,
        }
    )
    config.generation = ConfigDict({"max_new_tokens": 256})


def instruct_lora(config: ConfigDict) -> None:
    instruct(config)
    config.lora.update(rank=16, alpha=32.0)
    config.optimizer.learning_rate = 2e-4


def instruct_lora_one_chip(config: ConfigDict) -> None:
    instruct_lora(config)
    config.lora.frozen_dtype = "bfloat16"
    config.model.update(remat="full", reduce_dtype="compute")
    config.training.update(batch_size=16, accumulation=16, loss_chunks=4)
    config.evaluation.update(examples=0, final_examples=-1)
