"""Tokenise documents and pack them into rows of token ids, ready to train on.

    biomedlm build-tokens --input=corpus/ --tokenizer=tokenizer/ --out=tokens/

The documents, <|endoftext|> after each, are joined and cut into rows of --length ids. --out then
holds the rows as a TFDS dataset (ArrayRecord), the tokenizer, and a manifest of counts and hashes.
"""

import json
from pathlib import Path

import absl.flags as absl
from rich.console import Console

from biomedlm_jax.corpus import documents, tokenizer, tokens

FLAGS = absl.FlagValues()
_INPUT = "files, directories or globs, by commas or in repeated flags; " + documents.KNOWN
absl.DEFINE_multi_string("input", None, _INPUT, FLAGS, required=True)
absl.DEFINE_string("text_field", "text", "text of a JSON line: meta.text, title,body", FLAGS)
absl.DEFINE_list("subsets", [], "keep only JSON lines of these subsets, by commas", FLAGS)
absl.DEFINE_string("subset_field", "meta.pile_set_name", "subset of a JSON line", FLAGS)
absl.DEFINE_enum("on_error", "raise", documents.ON_ERROR, "stop at a bad line or skip it", FLAGS)
absl.DEFINE_string("tokenizer", None, "directory or tokenizer.json", FLAGS, required=True)
absl.DEFINE_string("out", None, "directory to write", FLAGS, required=True)
absl.DEFINE_integer("length", 1024, "ids in a row, the model's context", flag_values=FLAGS)
absl.DEFINE_float("validation_fraction", 0.005, "share of documents, by a hash", flag_values=FLAGS)
absl.DEFINE_enum("separator", "eos", tokens.SEPARATORS, "what follows a document", FLAGS)
absl.DEFINE_bool("overwrite", False, "replace the token rows in --out", FLAGS)
absl.DEFINE_string("json", None, "file to write the manifest to, as well", FLAGS)


def run(flags: absl.FlagValues) -> None:
    """Build, and say what came out; meanwhile, on standard error, how far it is."""
    skipped, console = documents.Skipped(), Console(stderr=True)
    paths = [path for paths in flags.input for path in paths.split(",")]
    reading = {n: flags[n].value for n in ("text_field", "subsets", "subset_field", "on_error")}
    names = "length", "validation_fraction", "separator", "overwrite"

    def show(splits: dict) -> None:
        (status.update if console.is_terminal else console.print)(_table(splits))

    with console.status("starting") as status:
        manifest = tokens.build_tokens(
            documents.read_documents(paths, skipped=skipped, **reading),
            tokenizer.load_tokenizer(flags.tokenizer),
            flags.out,
            inputs=documents.input_files(paths),
            skipped=skipped,
            progress=show,
            **{name: flags[name].value for name in names},
        )
    if flags.json:
        Path(flags.json).write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"{_table(manifest['splits'])}\nskipped     {skipped}\nwrote       {flags.out}")


def _table(splits: dict) -> str:
    row = "{documents:,} documents, {text_bytes:,} bytes, {tokens:,} tokens, {rows:,} rows"
    return "\n".join(f"{name:10}  {row.format(**split)}" for name, split in splits.items())
