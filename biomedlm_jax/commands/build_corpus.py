"""Build a corpus of documents from the files of NLM and other publishers.

    biomedlm build-corpus --source=medline:baseline/,updatefiles/ --source=pmc:oa/ --out=corpus/
    biomedlm build-corpus --source=pile=text:pile/ --subsets='PubMed Abstracts' --out=corpus/

--out holds the documents (JSON lines: id, text, source, license, pmid, pmcid, doi, year), a
manifest with every count, and a list of all records that were left out, each with a reason.
build-tokens and train-tokenizer read the directory as --input. Versions, copies and near copies of
a document are left out, and an abstract whose article is there. A build that was interrupted
continues when the command is run again.
"""

import os
import time
from typing import Any

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus import corpus_builder, corpus_settings, filters, normalisation, sources
from biomedlm_jax.corpus.progress import Remaining, progress_line
from biomedlm_jax.errors import InputError, counted

FLAGS = Flags("out", "json")
SOURCE = (
    f"Files of one format: {sources.FORM}. PATHs are files, directories or globs, in the order in "
    "which NLM published them: of one PMID, the newest version stays. medline is PubMed's XML, pmc "
    "JATS XML or tar files of it, text JSON lines, JSON, parquet or plain text."
)
FLAGS.define("source", None, SOURCE, repeated=True, required=True)
FLAGS.define("workers", 0, "Processes; 0: one for each core. The result is the same.", least=0)
FLAGS.define_engine()
FLAGS.define("languages", [], "Languages that are kept, ISO 639-1 or 639-2, such as en,ger.")
LICENSE = "Use that the licence must allow; an unknown licence allows any only."
FLAGS.define("license", "any", LICENSE, choices=filters.USES)
FLAGS.define("file_list", None, "PMC's oa_file_list.csv, for the licences by PMCID.")
for name, meaning in (
    ("first_year", "Year of publication, at least."),
    ("last_year", "Year of publication, at most."),
    ("max_characters", "Characters of a document, at most."),
):
    FLAGS.define(name, None, meaning, kind=int, least=1)
FLAGS.define("min_characters", 0, "Characters of a document, at least.", least=0)
FLAGS.define("types", [], "Publication or article types, of which one is required.")
FLAGS.define("without_types", [], "Publication or article types that are left out.")
FLAGS.define("titles_only", False, "Keep records that have neither abstract nor body.")
NEAR = "Jaccard similarity of 5-word shingles from which a text is a near duplicate; 0: keep them."
FLAGS.define("near", 0.8, NEAR, least=0)
CONTAINED = "Share of a text in one twice as long from which it is left out; 0: keep them."
FLAGS.define("contained", 0.8, CONTAINED, least=0)
EPOCHS = "NAME=NUMBER: how often the documents of a source are in the corpus, such as medline=1.5"
FLAGS.define("epochs", None, EPOCHS, repeated=True)
MIXTURE = (
    "NAME=SHARE of all sources, instead of --epochs: shares of the bytes of text, such as "
    "medline=1,pmc=3. The scarcest source is there --mixture_epochs times."
)
FLAGS.define("mixture", [], MIXTURE)
FLAGS.define("mixture_epochs", 1.0, "Times that the scarcest source of --mixture is in the corpus.")
FLAGS.define("seed", 0, "Seed of the choice of documents for a fraction of an epoch.")
FLAGS.define("shard_bytes", corpus_settings.SHARD_BYTES, "Bytes of text in a file.", least=1)
FIELD = (
    "text: PART=FIELD, the field of a record for title, abstract, body, pmid, pmcid, doi, license, "
    "year, languages, types or journal, such as body=meta.text. Default: the usual names, text for "
    "the body"
)
FLAGS.define("field", None, FIELD, repeated=True)
FLAGS.define("subsets", [], "text: keep only JSON lines of these subsets (meta.pile_set_name).")
NORMALISE = (
    f"Changes of the text: {', '.join(normalisation.NORMALISATIONS)}, or all; default: none."
)
FLAGS.define("normalise", [], NORMALISE)
DAMAGE = "At a file that is truncated: stop with an error, or use what can be read."
FLAGS.define("on_error", "raise", DAMAGE, choices=corpus_settings.ON_DAMAGE)
FILTERS = ("languages", "license", "first_year", "last_year", "min_characters", "max_characters")
FILTERS += ("types", "without_types", "titles_only")


def run(options: Flags) -> None:
    """Build and print a table; report progress on standard error."""
    start, remaining = time.monotonic(), {step: Remaining() for step in ("read", "write")}
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.pick(*FILTERS).items()
    }
    settings = corpus_settings.CorpusSettings(
        filters=filters.Filters(**chosen),
        records=sources.TextRecords(_fields(options.field or []), tuple(options.subsets)),
        normalisations=normalisation.choose(options.normalise),
        epochs=_numbers("epochs", options.epochs or []),
        mixture=_numbers("mixture", options.mixture),
        on_damage=options.on_error,
        **options.pick("file_list", "near", "contained", "mixture_epochs", "seed", "shard_bytes"),
    )
    if options["mixture_epochs"].present and not options.mixture:
        raise InputError("got --mixture_epochs without --mixture, where it has no effect")
    given = sources.parse_sources(options.source)

    def report(state: corpus_builder.Progress) -> None:
        elapsed = time.monotonic() - start
        line = f"{elapsed:.0f} s  {state.step}"
        if state.step in remaining:
            done, size = state.done_bytes, state.all_bytes
            line += f" {done / 1e6:,.1f} of {size / 1e6:,.1f} MB"
            line += (
                f", {counted(state.documents, 'document')}{remaining[state.step].text(done, size)}"
            )
        show(line)

    with progress_line() as show:
        manifest = corpus_builder.build_corpus(
            given,
            options.out,
            settings,
            workers=options.workers or os.cpu_count() or 1,
            beam=options.beam_flags(),
            overwrite=options.overwrite,
            progress=report,
        )
    options.write_json(manifest)
    _print_table(manifest)
    print(f"wrote {options.out} in {time.monotonic() - start:.0f} s")


def _fields(values: list[str]) -> tuple[tuple[str, str], ...]:
    """Return (("body", "text"),) for ["body=text"]."""
    pairs = [value.partition("=") for value in values]
    if bad := [value for value, pair in zip(values, pairs, strict=True) if not pair[2]]:
        raise InputError(f"got --field={bad[0]}; expected PART=FIELD, such as body=text")
    return tuple((name, field) for name, _, field in pairs)


def _numbers(flag: str, values: list[str]) -> dict[str, float]:
    """Return {"medline": 1.5} for ["medline=1.5"]."""
    numbers: dict[str, float] = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            numbers[name] = float(number)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise InputError(f"got --{flag}={value}; expected NAME=NUMBER, such as medline=1.5")
    if len(numbers) < len(values):
        raise InputError(f"got --{flag}={','.join(values)}; give one number for each source")
    return numbers


def _print_table(manifest: dict[str, Any]) -> None:
    """Print documents and MB of text of each source after each step, and what was left out."""
    named = manifest["sources"]
    width = max(24, *(len(source["name"]) + 2 for source in named))
    print(f"{'':10}" + "".join(f"{source['name']:>{width}}" for source in named))
    for stage in named[0]["stages"]:
        counts = (source["stages"][stage] for source in named)
        cells = (f"{one['documents']:,} / {one['text_bytes'] / 1e6:,.1f} MB" for one in counts)
        print(f"{stage:10}" + "".join(f"{cell:>{width}}" for cell in cells))
    for source in named:
        for reason, count in source["left_out"].items():
            print(f"left out   {count:,} of {source['name']}: {reason}")
        for flag, count in source["flags"].items():
            print(f"flagged    {count:,} of {source['name']}: {flag}")
        if other := source["lines_of_other_subsets"]:
            print(f"not read   {counted(other, 'line')} of other subsets in {source['name']}")
    if count := manifest["files_not_read"]["count"]:
        print(f"not read   {counted(count, 'file')}, hidden or of unknown format")
    for source in named:
        if source["epochs"] != 1:
            print(f"epochs     {source['epochs']:g} of {source['name']}")
    documents, files = counted(manifest["documents"], "document"), len(manifest["files"])
    size = manifest["text_bytes"] / 1e6
    print(f"corpus     {documents}, {size:,.1f} MB in {counted(files, 'file')}")
