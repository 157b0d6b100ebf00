"""Tokenise documents and pack them into rows of token ids for pre-training.

    biomedlm build-tokens --input=corpus/ --tokenizer=tokenizer/ --out=tokens/

The documents, with the tokenizer's end of text after each, are concatenated and cut into rows of
--length ids. Llamas are usually trained with --separator=bos_eos.
--out holds the rows (TFDS, ArrayRecord), the tokenizer, and a manifest of counts and hashes.
A build that was interrupted continues when the command is run again.
"""

import os
import time

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus import documents, tokenizer, tokens
from biomedlm_jax.corpus.progress import Remaining, progress_line
from biomedlm_jax.errors import counted

FLAGS = Flags("input", "out", "json")
FLAGS.define("tokenizer", None, "Directory of a tokenizer, or a tokenizer.json.", required=True)
FLAGS.define("length", 1024, "Token ids in a row: the model's context length.")
FLAGS.define("validation_fraction", 0.005, "Fraction of the documents for validation.")
separator = "The eos token after each document, the bos token before it as well, or nothing."
FLAGS.define("separator", "eos", separator, choices=tokens.SEPARATORS)
FLAGS.define("workers", 0, "Processes; 0: one for each core. The result is the same.", least=0)
FLAGS.define_engine()


def run(options: Flags) -> None:
    """Build and print a summary; report progress on standard error."""
    start, skipped, remaining = time.monotonic(), documents.Skipped(), Remaining()

    def report(state: tokens.Progress) -> None:
        elapsed, splits = time.monotonic() - start, state.counts
        total = {name: sum(split[name] for split in splits.values()) for name in splits["train"]}
        done, size, text = state.done_bytes, state.all_bytes, total["text_bytes"] / 1e6
        line = f"{elapsed:.0f} s  read {done / 1e6:,.1f} of {size / 1e6:,.1f} MB, "
        line += f"{counted(total['documents'], 'document')}, {text:,.1f} MB of text, "
        line += f"{counted(total['tokens'], 'token')}, {text / elapsed:.1f} MB/s"
        rows = f", {counted(total['rows'], 'row')} written" if done >= size else ""
        show(line + (rows or remaining.text(done, size)))

    with progress_line() as show:
        manifest = tokens.build_tokens_from_files(
            options.paths(),
            tokenizer.load_tokenizer(options.tokenizer),
            options.out,
            reader=documents.DocumentReader(**options.reading()),
            workers=options.workers or os.cpu_count() or 1,
            beam=options.beam_flags(),
            skipped=skipped,
            progress=report,
            **options.pick("length", "separator", "validation_fraction", "overwrite"),
        )
    options.write_json(manifest)
    for name, split in manifest["splits"].items():
        cells = (counted(split[f"{what}s"], what) for what in ("document", "token", "row"))
        there, ids, rows = cells
        print(f"{name:10}  {there}, {counted(split['text_bytes'], 'byte')}, {ids}, {rows}")
    print(f"skipped     {skipped}")
    for file in manifest["inputs"]:
        if "copy_of" in file:
            print(f"copy        {file['path']} has the content of {file['copy_of']}; both are read")
    for token, count in manifest["special_text"].items():
        print(
            f"special     {counted(count, 'time')} the text spells {token}; encoded as plain text"
        )
    print(f"wrote       {options.out} in {time.monotonic() - start:.0f} s")
