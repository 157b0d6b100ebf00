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
from biomedlm_jax.corpus.progress import progress_line

FLAGS = Flags("input", "out", "json")
FLAGS.define("tokenizer", None, "Directory of a tokenizer, or a tokenizer.json.", required=True)
FLAGS.define("length", 1024, "Token ids in a row: the model's context length.")
FLAGS.define("validation_fraction", 0.005, "Fraction of the documents for validation.")
separator = "The eos token after each document, the bos token before it as well, or nothing."
FLAGS.define("separator", "eos", separator, choices=tokens.SEPARATORS)
FLAGS.define("workers", 0, "Processes; 0: one for each core. The result is the same.", least=0)
FLAGS.define_engine()
LINE = "{documents:,} documents, {text_bytes:,} bytes, {tokens:,} tokens, {rows:,} rows"


def run(options: Flags) -> None:
    """Build and print a summary; report progress on standard error."""
    start, skipped = time.monotonic(), documents.Skipped()

    def report(splits: dict[str, dict[str, int]]) -> None:
        elapsed = time.monotonic() - start
        total = {name: sum(split[name] for split in splits.values()) for name in splits["train"]}
        megabytes = total["text_bytes"] / 1e6
        line = f"{elapsed:.0f} s  {total['documents']:,} documents, {megabytes:,.1f} MB, "
        line += f"{total['tokens']:,} tokens, {megabytes / elapsed:.1f} MB/s"
        show(line)

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
        print(f"{name:10}  {LINE.format(**split)}")
    print(f"skipped     {skipped}")
    for file in manifest["inputs"]:
        if "copy_of" in file:
            print(f"copy        {file['path']} has the content of {file['copy_of']}; both are read")
    for token, count in manifest["special_text"].items():
        print(f"special     {count:,} times the text spells {token}; encoded as plain text")
    print(f"wrote       {options.out} in {time.monotonic() - start:.0f} s")
