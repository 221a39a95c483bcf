"""What can be counted in a prompt: the numbers that the quality model reads.

They say how a question is put, hardly what it is about: lengths, numbers, answer options, the words that hold sentences
together. That is what still tells hard from easy on a subject that the model never saw. English and code; other text
gives numbers too, of less meaning. Pure Python, one pass for the words, and only so much of a long text is read.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from math import log1p

_HEAD_CHARS = 3000
_TAIL_CHARS = 1000
_NUMBERS = 200  # as many as are looked at
_OPTIONS = 5
_MANY = 1e9

_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_OPTION = re.compile(r"^\(?[A-E][.)]\s*(.*)$", re.MULTILINE)
_NUMERIC = re.compile(r"[\s$£€%\d.,/^*+()xπe√:-]+(?: ?[a-zA-Z/%°]{1,8})?")
_YEAR = re.compile(r"1[5-9]\d\d|20[0-2]\d")
_OPERATORS = "+=*/^<>|~∀∃·⊃≡"

_STOPS = (
    "a an the of in on at to for from by with and or but is are was were be been as that this it its his her their he"
    " she they we you i not no if then than so do does did has have had will would can could may might should who"
    " which what when where how there"
)
_STOP_WORDS = tuple(dict.fromkeys(_STOPS.split()))
# Words that are counted together, and the words that are counted one by one: they build a question, whatever its topic.
_GROUPS = {
    f"group {name}": tuple(words.split())
    for name, words in {
        "negation": "not except least never no none neither cannot without false incorrect unless",
        "each": "each every per",
        "comparison": "than more less fewer most least",
        "multiple": "times twice double triple thrice half third quarter",
        "remainder": "left remain remains remaining rest",
        "sum": "total altogether combined sum",
        "time": "hour hours minute minutes day days week weeks month months year years second seconds",
        "money": "cent cents dollar dollars",
        "rate": "average mean probability ratio rate percentage percent interest speed age old",
        "likely": "best most likely primary main mostly",
        "because": "because therefore thus since hence",
        "person": "he she they his her their him",
        "law": "plaintiff defendant court contract statute law landowner v",
        "code": "def return function class python",
        "given": "assume assuming suppose given let",
        "named": "according refers refer known called",
        "compute": "calculate compute find determine solve evaluate simplify",
        "truth": "true false correct valid invalid",
        "quantifier": "all every only no some any",
        "small_number": "one two three four five six seven eight nine ten dozen",
        "which": "which",
        "wh": "who whose whom why when where",
        "what": "what",
        "how": "how",
        "if": "if",
        "then": "then",
        "many": "many much",
        "following": "following above below",
        "statement": "statement",
    }.items()
}
_SINGLY = (
    "a about above after all also although among an and any are as at be because been before being below between both"
    " but by can could did do does during each either for from had has have he her his how however if in into is it its"
    " just less likely may more most much must no nor not of off often on one only or other out over own she should"
    " since so some such than that the their them then there these they this those through to true under until up use"
    " used using very was were what when where whether which while who whom whose why will with within without would"
    " yes you your suppose given find value number show equal best describes refers example type term process result"
    " according called known made make person people man woman child year years time first two three four five each"
    " total cost"
)
_SINGLE_WORDS = {word: f"word {word}" for word in _SINGLY.split()}


@dataclass(frozen=True, slots=True)
class TextSignals:
    """`values` are in the order of `SIGNAL_NAMES`; `words` are the lower-case words and numbers, with their counts."""

    values: tuple[float, ...]
    words: dict[str, int]


def text_signals(text: str) -> TextSignals:
    """Reads the head and the tail of a text of any length, also an empty one."""
    named, words = _read(text)
    return TextSignals(tuple(named.values()), words)


def _read(text: str) -> tuple[dict[str, float], dict[str, int]]:
    read = text if len(text) <= _HEAD_CHARS + _TAIL_CHARS else f"{text[:_HEAD_CHARS]}\n{text[-_TAIL_CHARS:]}"
    tokens = _TOKEN.findall(read)
    numerals = [t for t in tokens if t < ":"]  # ":" follows the digits, and stands before every letter
    words = [t for t in tokens if t > ":"] if numerals else tokens
    counts = dict(Counter(" ".join(tokens).lower().split()))
    get = counts.get
    named = {
        "chars": log1p(len(text)),
        **_word_values(words, counts),
        **_number_values(numerals, max(len(tokens), 1)),
        **_mark_values(read, tokens),
        **_question_values(read),
    }
    for name, group in _GROUPS.items():
        named[name] = log1p(sum([get(word, 0) for word in group]))
    for word, name in _SINGLE_WORDS.items():
        named[name] = log1p(get(word, 0))
    return named, counts


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0


def _word_values(words: list[str], counts: dict[str, int]) -> dict[str, float]:
    many, get = len(words), counts.get
    lengths = Counter(map(len, words))
    return {
        "words": log1p(many),
        "word length": _share(sum(n * times for n, times in lengths.items()), many),
        "long words": _share(sum(times for n, times in lengths.items() if n >= 9), many),
        "very long words": _share(sum(times for n, times in lengths.items() if n >= 12), many),
        "distinct words": _share(len(counts), sum(counts.values())),
        "capitals": _share(sum(map(str.istitle, words)), many),
        "all capitals": _share(sum(map(str.isupper, words)), many),
        "single letters": _share(lengths[1] - get("a", 0) - get("i", 0), many),
        "stop words": _share(sum([get(word, 0) for word in _STOP_WORDS]), many),
        "article share": _share(get("the", 0), many),
        "of share": _share(get("of", 0), many),
        "and share": _share(get("and", 0), many),
    }


def _number_values(numerals: list[str], tokens: int) -> dict[str, float]:
    values = [v for v in map(_number, numerals[:_NUMBERS]) if v is not None]
    many = len(values)
    return {
        "numbers": log1p(many),
        "distinct numbers": log1p(len(set(values))),
        "number share": _share(many, tokens),
        "largest number": log1p(max(values, default=0.0)),
        "mean number": log1p(_share(sum(values), many)),
        "decimals": float(sum(v != int(v) for v in values)),
        "round numbers": _share(sum(v % 10 == 0 for v in values), many),
        "odd numbers": float(sum(v > 9 and v % 10 != 0 for v in values)),
        "years": float(sum(bool(_YEAR.fullmatch(n)) for n in numerals[:_NUMBERS])),
    }


def _number(numeral: str) -> float | None:
    """None for what looks like a number and is none, such as 1.2.3; a bound keeps the rest small."""
    try:
        return min(float(numeral.replace(",", "")), _MANY)
    except ValueError:
        return None


def _mark_values(read: str, tokens: list[str]) -> dict[str, float]:
    chars, many = max(len(read), 1), max(len(tokens), 1)
    solid = len("".join(read.split()))
    ends = len(_SENTENCE_END.findall(read))
    return {
        "sentences": log1p(ends),
        "words a sentence": many / max(ends, 1),
        "commas": read.count(",") / many,
        "colons": log1p(read.count(":")),
        "semicolons": log1p(read.count(";")),
        "brackets": read.count("(") / many,
        "question marks": log1p(read.count("?")),
        "quotes": log1p(read.count('"') + read.count("“")),
        "dashes": log1p(read.count(" - ") + read.count("–")),
        "dollars": log1p(read.count("$")),
        "percents": log1p(read.count("%")),
        "backslashes": log1p(read.count("\\")),
        "equals": log1p(read.count("=")),
        "operators": sum(map(read.count, _OPERATORS)) / chars,
        "lines": log1p(read.count("\n")),
        "blanks": log1p(read.count("__") + read.count("...")),
        "symbols": (solid - sum(map(len, tokens))) / chars,
        "foreign letters": (len(read.encode("utf-8", "replace")) - len(read)) / chars,
        "strong negation": float(read.count(" NOT ") + read.count(" EXCEPT")),
    }


def _question_values(read: str) -> dict[str, float]:
    """The question itself, and the options below it where it has some."""
    first = read.find("\nA.")
    stem = (read[:first] if first >= 0 else read).strip()
    options = [o.strip().rstrip(".") for o in _OPTION.findall(read)][-_OPTIONS:]
    begins = stem[:12].lower()
    return {
        "question words": log1p(len(stem.split())),
        "ends with ?": float(stem.endswith("?")),
        "ends with :": float(stem.endswith(":")),
        "asks": float("?" in stem),
        "capital first": float(read[:1].isupper()),
        "text ends with ?": float(read.rstrip().endswith("?")),
        "text ends with :": float(read.rstrip().endswith(":")),
        "begins with which": float(begins.startswith("which of")),
        "begins with statement": float(begins.startswith("statement")),
        "options": float(len(options)),
        **_option_values(options, set(stem.lower().split())),
    }


def _option_values(options: list[str], asked: set[str]) -> dict[str, float]:
    many = len(options)
    words = [o.lower().split() for o in options]
    sets = [set(w) for w in words]
    lengths, chars = [len(w) for w in words], [len(o) for o in options]
    pairs = list(combinations(sets, 2))
    mean = _share(sum(lengths), many)
    spread = _share(sum((n - mean) ** 2 for n in lengths), many) ** 0.5
    later = [o.split()[1:] for o in options]
    return {
        "option words": log1p(mean),
        "longest option": log1p(max(lengths, default=0)),
        "shortest option": log1p(min(lengths, default=0)),
        "option spread": spread / (1 + mean),
        "numeric options": _share(sum(bool(_NUMERIC.fullmatch(o)) for o in options), many),
        "options of options": float(any({"above", "both", "neither"} & s for s in sets)),
        "truth options": _share(sum(bool({"true", "false", "yes", "no", "wrong", "not"} & s) for s in sets), many),
        "option overlap": _share(sum(_share(len(a & b), len(a | b)) for a, b in pairs), len(pairs)),
        "option echo": _share(sum(_share(len(s & asked), len(s)) for s in sets), many),
        "capital options": _share(sum(o[:1].isupper() for o in options), many),
        "names in options": _share(sum(_share(sum(w[:1].isupper() for w in ws), len(ws)) for ws in later), many),
        "commas in options": _share(sum(o.count(",") for o in options), many),
        "numerals in options": _share(sum(bool({"i", "ii", "iii", "iv"} & s) for s in sets), many),
        "longest to mean": _share(max(chars, default=0), 1 + round(_share(sum(chars), many))),
        "sentence options": _share(sum(n > 7 for n in lengths), many),
    }


SIGNAL_NAMES: tuple[str, ...] = tuple(_read("")[0])
