"""Score a model on biomedical questions and write a report with intervals.

    biomedlm evaluate --model=RUN --task=medqa --path=DIR --split=dev --out=REPORT
    biomedlm evaluate --model=RUN --harness_tasks=NAME --harness_directory=DIR --out=RESULTS

A language model is scored by option letters and by option texts; a fine-tuned model by its head.
REPORT gets items.jsonl, report.json, report.md and a plot for each way of scoring. The second form
runs tasks of lm-evaluation-harness (extra `harness`) whose YAML files are in DIR. All devices work;
several processes are started as for `biomedlm pretrain`.
"""

from absl import flags

from biomedlm_jax.commands import joining

FLAGS = flags.FlagValues()
SEEDS = "Run or Hugging Face directory. Repeated: one model fine-tuned with several seeds."
flags.DEFINE_multi_string("model", None, SEEDS, flag_values=FLAGS)
for name, meaning in (
    ("task", "medqa, medmcqa, pubmedqa, bioasq, mmlu, mmlu:SUBJECT or jsonl:FILE."),
    ("path", "The task's file, or the directory of its files."),
    ("format", "Format of the files, such as questions, where their names do not decide it."),
    ("split", "Split to score; default: the one in the file's name, or the task's last one."),
    ("baseline", "Another model's report on the same questions, for a paired test."),
    ("harness_directory", "Directory of the YAML files of --harness_tasks."),
    ("out", "Directory to write the report to."),
):
    flags.DEFINE_string(name, None, meaning, flag_values=FLAGS)
MODES = ["auto", "letter", "option", "classifier"]
flags.DEFINE_enum("mode", "auto", MODES, "What is scored; auto: all that fit.", flag_values=FLAGS)
SHOTS = "Answered questions before each question (letter)."
flags.DEFINE_integer("shots", 0, SHOTS, 0, flag_values=FLAGS)
flags.DEFINE_integer("fold", 0, "Fold of PubMedQA, 0 to 9.", 0, flag_values=FLAGS)
flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "Bad questions.", flag_values=FLAGS)
flags.DEFINE_integer("batch_tokens", 4096, "Tokens per device and batch.", 64, flag_values=FLAGS)
flags.DEFINE_list("harness_tasks", [], "Tasks to run instead of --task.", flag_values=FLAGS)
flags.DEFINE_bool("overwrite", False, "Replace the report in --out.", flag_values=FLAGS)
joining.define_mesh_flags(FLAGS)
joining.define_flags(FLAGS)
flags.mark_flags_as_required(["model", "out"], flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Evaluate and print the table of results."""
    if bool(options.task) == bool(options.harness_tasks):
        raise ValueError("give either --task, or --harness_tasks and --harness_directory")
    import jax

    from biomedlm_jax.mesh import make_mesh
    from biomedlm_jax.qa import report
    from biomedlm_jax.qa.evaluation import evaluate

    with joining.joined(options):
        common = {"batch_tokens": options.batch_tokens, "overwrite": options.overwrite}
        common["mesh"] = make_mesh(data=options.data, fsdp=options.fsdp, tensor=options.tensor)
        if options.harness_tasks:
            from biomedlm_jax.qa.harness import evaluate_tasks

            tasks = {"tasks": options.harness_tasks, "task_directory": options.harness_directory}
            evaluate_tasks(options.model, options.out, **tasks, **common)
            text = ""
        else:
            names = ("task", "path", "split", "mode", "shots", "fold", "on_error", "baseline")
            given = {name: options[name].value for name in names}
            given["format"] = options.format or ""
            summaries = evaluate(options.model, options.out, **given, **common)
            text = report.markdown(*summaries) if len(summaries) == 1 else report.table(summaries)
        if jax.process_index() == 0:
            print(f"{text}\nwrote {options.out}".lstrip())
