"""Filters: which articles go into a corpus, each refusal with the name of its reason.

A value that is unknown does not pass a filter that is set: an article without a year is refused
once a range of years is given.
"""

import re
from dataclasses import dataclass

from biomedlm_jax.corpus.articles import Article
from biomedlm_jax.corpus.licenses import name_licenses, strictest
from biomedlm_jax.errors import InputError

USES = ("any", "non-commercial", "commercial")  # that a licence must allow

# ISO 639-1, ISO 639-2 (terminology), and the bibliographic code of ISO 639-2 where it differs.
_LANGUAGES = """
aaaar ababk aeave afafr akaka amamh anarg arara asasm avava ayaym azaze babak bebel bgbul bibis
bmbam bnben bobodtib brbre bsbos cacat ceche chcha cocos crcre cscescze cuchu cvchv cycymwel dadan
dedeuger dvdiv dzdzo eeewe elellgre eneng eoepo esspa etest eueusbaq fafasper ffful fifin fjfij
fofao frfrafre fyfry gagle gdgla glglg gngrn guguj gvglv hahau heheb hihin hohmo hrhrv hthat huhun
hyhyearm hzher iaina idind ieile igibo iiiii ikipk ioido isislice itita iuiku jajpn jvjav kakatgeo
kgkon kikik kjkua kkkaz klkal kmkhm knkan kokor krkau kskas kukur kvkom kwcor kykir lalat lbltz
lglug lilim lnlin lolao ltlit lulub lvlav mgmlg mhmah mimrimao mkmkdmac mlmal mnmon mrmar msmsamay
mtmlt mymyabur nanau nbnob ndnde nenep ngndo nlnlddut nnnno nonor nrnbl nvnav nynya ococi ojoji
omorm orori ososs papan pipli plpol pspus ptpor quque rmroh rnrun roronrum rurus rwkin sasan scsrd
sdsnd sesme sgsag sisin skslkslo slslv smsmo snsna sosom sqsqialb srsrp ssssw stsot susun svswe
swswa tatam tetel tgtgk ththa titir tktuk tltgl tntsn toton trtur tstso tttat twtwi tytah uguig
ukukr ururd uzuzb veven vivie vovol wawln wowol xhxho yiyid yoyor zazha zhzhochi zuzul
"""
_SHORT = {
    code: entry[:2]
    for entry in _LANGUAGES.split()
    for code in (entry[:2], entry[2:5], entry[5:])
    if code
}
_UNDETERMINED = ("", "und", "mul", "zxx")


def language_code(code: str) -> str:
    """Return the ISO 639-1 code of a language, or its ISO 639-2 code if it has no other.

    "eng", "en" and "en-US" are "en"; "ger" and "deu" are "de". An undetermined one is "".
    """
    code = re.split(r"[-_]", code.strip().lower())[0]
    return "" if code in _UNDETERMINED else _SHORT.get(code, code)


def license_name(published: str) -> str:
    """Return "CC BY-NC" or the like, the strictest that a text names; "" if it names none."""
    return strictest(name_licenses(published))


def allows(name: str, use: str) -> bool:
    """Return whether a licence, by its `license_name`, allows one of `USES`.

    Licences with NC allow non-commercial use; all others of Creative Commons, and the public
    domain, allow commercial use, too. An unknown licence allows "any" only.
    """
    if use == "any":
        return True
    return bool(name) and (use == "non-commercial" or "-NC" not in name)


@dataclass(frozen=True)
class Filters:
    """What an article must have; the defaults refuse only what has no text, or a title alone.

    Args:
      languages: any of these, as ISO 639-1 or 639-2 codes. An article in several passes by one.
      license: a use of `USES` that its licence must allow.
      first_year, last_year: of publication, inclusive.
      min_characters, max_characters: of the whole text, inclusive.
      types: any of these publication or article types, in upper or lower case.
      without_types: none of these.
      titles_only: keep articles that have neither abstract nor body.
    """

    languages: tuple[str, ...] = ()
    license: str = USES[0]
    first_year: int | None = None
    last_year: int | None = None
    min_characters: int = 0
    max_characters: int | None = None
    types: tuple[str, ...] = ()
    without_types: tuple[str, ...] = ()
    titles_only: bool = False

    def __post_init__(self):
        for code in self.languages:
            if language_code(code) not in _SHORT and not re.fullmatch("[a-z]{3}", code.lower()):
                raise InputError(f"got the language {code!r}; expected a code such as en or eng")
        if self.license not in USES:
            raise InputError(f"got license={self.license!r}; expected one of {', '.join(USES)}")
        for least, most, what in (
            (self.first_year, self.last_year, ("first_year", "last_year")),
            (self.min_characters, self.max_characters, ("min_characters", "max_characters")),
        ):
            if least is not None and most is not None and least > most:
                got = f"got {what[0]}={least}, which is above {what[1]}={most}"
                raise InputError(f"{got}; the first must not be greater")

    def refusal(self, article: Article) -> str | None:
        """Return the reason why an article is left out, the first of the checks, or None."""
        return next((reason for refused, reason in self._checks(article) if refused), None)

    def _checks(self, article: Article):
        size = len(article.text)
        yield not article.text.strip(), "empty"
        yield not (self.titles_only or article.abstract or article.body), "title_only"
        if self.languages:
            there = {language_code(code) for code in article.languages} - {""}
            yield not there, "language_unknown"
            yield not there & {language_code(code) for code in self.languages}, "language"
        if self.license != "any":
            name = license_name(article.license)
            yield not name, "license_unknown"
            yield not allows(name, self.license), "license"
        if self.first_year is not None or self.last_year is not None:
            yield article.year is None, "year_unknown"
            year = article.year or 0
            yield self.first_year is not None and year < self.first_year, "year"
            yield self.last_year is not None and year > self.last_year, "year"
        types = {name.lower() for name in article.types}
        if self.types:
            yield not types, "type_unknown"
            yield types.isdisjoint(name.lower() for name in self.types), "type"
        yield not types.isdisjoint(name.lower() for name in self.without_types), "type"
        yield size < self.min_characters, "too_short"
        yield self.max_characters is not None and size > self.max_characters, "too_long"
