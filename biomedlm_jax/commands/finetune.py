"""Fine-tune on questions, texts or chats; the same command resumes a run.

    biomedlm finetune --config=configs/finetune.py:medqa --config.task.path=DIR --model=RUN \\
        --workdir=FINETUNED
    biomedlm finetune --config=configs/finetune.py:meqsum --config.data.train=FILE --model=RUN \\
        --workdir=FINETUNED
    biomedlm finetune --config=configs/finetune.py:instruct --config.data.train=FILE \\
        --config.data.format=messages --model=RUN --workdir=FINETUNED

--model is a run or a Hugging Face directory; the head of a fine-tuned model is trained further.
The finished model is FINETUNED/model. Every command accepts FINETUNED as --model. With
--config.sweep.seeds or --config.sweep.learning_rates, --workdir has one run for each. Several
processes are started as for `biomedlm pretrain`.
"""

import contextlib

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError

FLAGS = Flags("config", "model", "processes", "faults")
WORKDIR = "Directory of the run; resumes the run that it contains. --show_mask needs none."
FLAGS.define("workdir", None, WORKDIR)
MASK = "Print the tokens of the first examples, those in the loss coloured, and end."
FLAGS.define("show_mask", False, MASK)


def run(options: Flags) -> None:
    """Fine-tune until the last epoch, or until Ctrl-C, which saves first."""
    if options.show_mask:
        from rich.console import Console

        from biomedlm_jax.finetuning.mask_view import show_masks

        show_masks(options.config, options.model, Console(highlight=False, soft_wrap=True))
        return
    if not options.workdir:
        raise InputError("--workdir is required.")
    import jax

    from biomedlm_jax.finetuning.finetune import finetune_all
    from biomedlm_jax.training.replay import Replayed

    results = []
    with options.multiprocess_run(), contextlib.suppress(Replayed):
        given = options.pick("fallback", "replay")
        results = finetune_all(options.config, options.model, options.workdir, **given)
    for result in results if jax.process_index() == 0 else ():
        if "dev_accuracy" in result:
            figures = f"best dev accuracy {result['dev_accuracy']:.1f} % after epoch "
            print(f"{result['workdir']}: {figures}{result['epoch']}")
        else:
            figures = f"dev loss {result['dev_loss']:.3f}"
            if "rougeL" in result:
                figures += f", ROUGE-L {result['rougeL']['mean']:.1f}"
            print(f"{result['workdir']}: {figures}; see report.json and predictions.jsonl")
