"""Settings of a corpus: what determines it beside its sources."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from biomedlm_jax.corpus.filters import Filters
from biomedlm_jax.corpus.sources import Source, TextRecords
from biomedlm_jax.errors import InputError

SHARD_BYTES = 1 << 26  # of text
ON_DAMAGE = ("raise", "skip")


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What determines a corpus beside its sources.

    Args:
      filters: which articles.
      records: how JSON lines, parquet and text files are read.
      normalisations: names of `normalisation.NORMALISATIONS` that change the texts.
      file_list: PMC's oa_file_list.csv, for the licences of articles by PMCID; None: without.
      near: Jaccard similarity from which a text is a near duplicate; 0: none is looked for.
      contained: share of a text in a longer one from which it is part of it; 0: as before.
      epochs: how often a source's documents are in the corpus, by its name; 1 unless given. Of 2.5,
        all are there twice and half of them a third time.
      mixture: share of each source in the bytes of text, instead of `epochs`: all of the sources.
        The scarcest is in the corpus `mixture_epochs` times, and the others as the shares demand.
      seed: of the choice of the documents for a fraction of an epoch.
      shard_bytes: of text in a shard, or one document more.
      on_damage: "raise" ends at a file that cannot be read to its end, "skip" uses what was read.
    """

    filters: Filters = dataclasses.field(default_factory=Filters)
    records: TextRecords = dataclasses.field(default_factory=TextRecords)
    normalisations: tuple[str, ...] = ()
    file_list: str | None = None
    near: float = 0.8
    contained: float = 0.8
    epochs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mixture_epochs: float = 1.0
    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    on_damage: str = ON_DAMAGE[0]

    def check(self, sources: Sequence[Source]) -> None:
        """Raise InputError if the settings are out of range or do not fit the sources."""
        names = [source.name for source in sources]
        for what, values in (("epochs", self.epochs), ("mixture", self.mixture)):
            for name, value in values.items():
                if name not in names:
                    raise InputError(
                        f"got {what} of {name}, which is no source; they are {', '.join(names)}"
                    )
                if not (math.isfinite(value) and value > 0):
                    raise InputError(f"got {what} {name}={value}; expected a number above 0")
        if self.mixture and (self.epochs or len(self.mixture) < len(names)):
            missing = [name for name in names if name not in self.mixture]
            what = f"no share of {missing[0]}" if missing else "epochs, too"
            raise InputError(f"got a mixture and {what}; give a share of each source, or epochs")
        for name, value in (("near", self.near), ("contained", self.contained)):
            if not 0 <= value <= 1:
                raise InputError(f"got {name}={value}; expected a similarity from 0 to 1")
        if not 0 < self.mixture_epochs < math.inf:
            raise InputError(f"got mixture_epochs={self.mixture_epochs}; expected above 0")
        if self.shard_bytes < 1:
            raise InputError(f"got shard_bytes={self.shard_bytes}; expected at least 1")
        if self.on_damage not in ON_DAMAGE:
            raise InputError(f"got on_damage={self.on_damage}; expected {' or '.join(ON_DAMAGE)}")
        if self.file_list and not any(source.kind == "pmc" for source in sources):
            raise InputError("got a list of licences by PMCID, but no source of the kind pmc")
        if self.records != TextRecords() and all(source.kind != "text" for source in sources):
            raise InputError("got fields or subsets of records, but no source of the kind text")
