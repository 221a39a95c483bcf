"""What a prompt's text says about the job: what it asks for, and how large a model that wants.

These are the rules that a learned classifier has to beat. They know English requests only: a text in
another language is `chat`, sized by its length and by any code in it.

The request usually stands at the head or the tail and the middle is material, so only those two are read:
that bounds the cost, and keeps an article's own words from being taken for the request. A new cue is one
more line in a table below; the tables match whole words of lower-case text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tieryard.catalog import SizeClass

LARGE_ABOVE_WORDS = 100
MEDIUM_ABOVE_WORDS = 40
_READ_CHARS = 320  # of each end: about 40 English words with room to spare

_REST = r"[^.?!\n]{0,70}?"  # some of the same sentence, bounded
_FEW = r"(?:(?!(?:of|on|about|for|to|in|that|asking|describing|discount|promo|dress|zip|postal)\b)[\w+#./'-]+ ){0,4}"
_THIS = r"(?:this|that|these|those|it|my|our|the|following|each|every|a|an|some)"
_FEW_UNITS = r"(?:\d+|one|two|three|four|five|a few) (?:\w+ )?(?:sentences?|words|lines?|bullets?|bullet points)"
_MATERIAL = (
    r"(?:text|passage|email|contract|article|document|report|transcript|notes?|invoice|log|clause|paragraph|message"
    r"|review|comment|ticket|tweet|headline|sentence|statement|agreement|letter|recipe|meeting|conversation|story"
    r"|post)s?"
)
_ASPECT = r"(?:sentiment|tone|intent|language|topic|emotion|category|toxicity|urgency|polarity|genre|severity|mood)"
_LANGUAGE = (
    r"(?:python|java|javascript|typescript|js|c\+\+|c#|c|rust|go|golang|ruby|php|kotlin|swift|scala|sql|postgres|bash"
    r"|shell|react|html|css|pandas|numpy|django|awk|sed|powershell|terraform|haskell)"
)
_PROGRAM = (  # a language before "function", or what it does behind it, makes it code
    rf"(?:(?:{_LANGUAGE} (?:function|class|method|module|program|component|test)s?|script|snippet|quer(?:y|ies)|regex"
    r"|regular expression|decorator|(?:unit|integration) tests?|one-liner|dockerfile|makefile|endpoint|algorithm"
    r"|parser|cron expression|context manager|dataclass|stylesheet|stored procedure)\b|code\b(?! (?:of|name)\b)"
    r"|(?:function|method|class|module|program)(?=[,.:(]|[?;]?\s*\Z| (?:that|which|called|named|with|to|taking"
    r"|returning|given|using|in|for \w+ing)\b))"
)
_BROKEN = (
    r"(?:code(?! of)|script|snippet|query|regex|loop|bug|diff|pull request|traceback|stack trace|exception"
    r"|(?:compiler?|type|build|syntax|import) error|null pointer|segfault)"
)

# What a sentence of request opens with, by what it asks for. The first category that fits wins, so the
# particular ("analyze the sentiment", "write a query") stands above the general ("analyze", "write").
_REQUESTS: dict[str, tuple[str, ...]] = {
    "code": (
        r"(?:write|create|implement|build|generate|make|give me|show me|produce|i need|need|code"
        rf"|add) {_FEW}{_PROGRAM}",
        r"(?:fix|review|optimi[sz]e|simplify|rewrite|port|convert|translate|test|correct|clean up|improve|speed up"
        rf"|document|complete|explain|spot|find|comment on) {_FEW}{_BROKEN}\b",
        r"(?:fix|review|optimi[sz]e|rewrite|port|convert|test|document|complete|simplify) (?:this|my|our|these"
        r"|the following) (?:[\w+#]+ ){0,2}(?:functions?|method|class|module|program|tests?)\b(?! (?:of|for|at"
        r"|schedule|scores?|results?|plan)\b)",
        r"(?:write|rewrite|convert|port|translate|implement|sort|parse|merge|read|reverse|how (?:do|can|would"
        rf"|should) (?:i|you|we)|how to) {_REST}\b(?:in|to|into|using|with) {_LANGUAGE}(?![\w+#]| (?:and|or) )",
        rf"(?:why|what|how|where) (?:does|do|is|would|will|can|could) {_THIS} {_FEW}{_BROKEN}\b",
        r"(?:why|what|how) (?:does|do|is|would|will) (?:this|my|the following) (?:[\w+#]+ ){0,2}(?:function|method"
        r"|class|program|test) (?:do|return|print|fail|throw|raise|crash|so slow|not)\b",
        rf"(?:a )?(?:{_LANGUAGE} )?(?:regex|sql query|(?<= )(?:function|script|program|class)) (?:that|to|for"
        r"|which)\b",
        r"(?:debug|refactor|implement|vectori[sz]e|unit[- ]test)\b",
    ),
    "classification": (
        r"(?:classify|categori[sz]e|triage)\b",
        rf"(?:label|tag|route|assign) (?:one|exactly|{_THIS})\b",
        rf"(?:sort|group|mark|flag|rate|put) (?:each|every|these|this|the following)\b{_REST}\b(?:into|as|under)\b",
        r"(?:analy[sz]e|identify|determine|detect|give|rate|evaluate|predict|state|judge) (?:me )?(?:the )?(?:overall "
        rf")?{_ASPECT}\b",
        rf"(?:determine|decide|judge|tell me|say|check|detect) (?:if|whether) {_THIS}\b{_REST}\b(?:is|are|contains?"
        r"|sounds?|expresses) ",
        rf"(?:is|are|was|does|do) (?:this|these|that|the following|(?:the )?{_ASPECT}|the (?:customer|writer"
        rf"|{_MATERIAL}))\b[^?\n]{{0,110}}(?:,| )or (?!should)",
        rf"(?:is|are) (?:this|these|the following) {_FEW}(?:spam|positive|negative|toxic|sarcastic|urgent|phishing)\b",
        r"(?:which|what)(?: one)? of (?:the following|these|those) (?:categor|label|class|intent|department|team|queue"
        r"|genre|topic)",
        r"(?:which|what) (?:category|label|intent|department|queue|sentiment|genre|severity"
        r"|bucket)\b(?: best)? (?:does|is|are|should|fits|best|describes|would)\b",
        rf"(?:which|what) (?:team|class|topic|tone|emotion|type|kind|language)\b{_REST}\b(?:this|the following"
        r"|below)\b",
        rf"what(?:'s| is) the (?:\w+ )?{_ASPECT} (?:of|in|expressed in|behind) (?:this|these|that|the following|my"
        rf"|the {_MATERIAL})\b",
        r"(?:pick|choose|select|answer with|reply with|return) (?:exactly |only )?(?:one|the (?:best|right"
        r"|correct)) (?:of|label|category|tag|class)\b",
        r"(?:spam|positive|true|yes|fact) or \w+",
    ),
    "summarization": (
        r"(?:summari[sz]e|tl;?dr|shorten|condense|recap|abridge|sum up|boil|compress|distil|summary|key points"
        r"|the gist)\b",
        rf"(?:give|write|create|provide|produce|draft|make|prepare|generate|i need|need) {_FEW}(?:summary|recap|tl;?dr"
        r"|digest|synopsis|abstract|gist|overview|takeaways?|headline|key points|main points|minutes)\b",
        r"(?:what (?:is|are|was|were)|what's|state|list|give me|tell me|capture) (?:the )?(?:\w+ )?(?:gist|takeaways?"
        r"|(?:main|key|central) (?:idea|point|argument|message|takeaway|finding)s?)\b",
        rf"(?:in|using) (?:at most |no more than |under |about )?{_FEW_UNITS},? (?:tell|say|summari[sz]e|what|give"
        r"|describe|explain what)\b",
        rf"{_REST}\b(?:this|above|below|following|happened)\b{_REST} (?:in|to|into) (?:at most "
        rf"|under )?{_FEW_UNITS}\b",
        rf"(?:turn|reduce|cut) (?:this|these|the|it)\b{_REST} (?:to|into) (?:a |an |the )?(?:\w+ )?(?:summary"
        r"|paragraph|sentence|abstract|tweet|bullet|headline)",
    ),
    "extraction": (
        r"(?:extract|parse (?:this|the)|pull (?:out|all|every|the|each)|copy out)\b",
        r"(?:list|find|get|identify|collect|return|name|give|locate|gather|pick out|highlight|show)(?: me)? (?:just "
        rf"|only )?(?:all|every|each|any|the|both|who|which|what)\b{_REST}(?:\b(?:mentioned|named|listed|below|above"
        r"|contained|stated|appear(?:s|ing)?)\b|\b(?:in|from|of) (?:the|this|these|my|our) (?:following"
        rf"|{_MATERIAL})\b|:(?=\s|\Z))",
        r"(?:list|find|identify|pick out) (?:all|every|each|any)(?: of)?(?: the)? (?:\w+ ){0,2}(?:names?|dates?|people"
        r"|emails?|compan(?:y|ies)|address(?:es)?|phone numbers?|amounts?|prices?|entit(?:y|ies)|places?|urls?"
        r"|deadlines?)\b",
        rf"(?:who|what|which|when|where|how many|how much)\b{_REST}\b(?:mentioned|named|listed|stated"
        rf"|according to (?:the|this)|in (?:the|this) (?:following|{_MATERIAL}))\b",
        rf"(?:according to|based (?:only )?on|using only|from) (?:the|this) (?:following|{_MATERIAL})[\w ]{{0,30}}, "
        r"(?:who|what|which|when|where|how|list|give)\b",
        rf"(?:turn|convert|parse|put|transform|return|output)\b{_REST}\b(?:json|csv|yaml|table|fields|key-value)\b",
        r"(?:fill in|complete) (?:these|the) (?:following )?fields\b",
    ),
    "reasoning": (
        r"why\b(?! (?:don't|not|thank))",
        r"(?:compare|contrast|analy[sz]e|evaluate|assess|prove|disprove|derive|justify|critique|weigh|solve|calculate"
        r"|compute|deduce|simplify|estimate|differentiate|integrate|argue|reason|work out|figure out|think (?:through"
        r"|step|carefully))\b",
        r"(?:explain|discuss|describe|show|tell me|say) (?:\w+ ){0,2}(?:why|that|whether|the (?:trade-?offs?"
        r"|differences?|reasons?|causes?|relationship))\b",
        r"(?:determine|decide) (?:the|all|if|whether|how|which|a) ",
        r"find (?:the |all )?(?:\w+ ){0,3}(?:value|derivative|integral|area|probability|sum|product|remainder"
        r"|number of|roots?|smallest|largest|least|greatest|maximum|minimum|solutions?|equation|limit|distance|volume"
        r"|perimeter)\b",
        r"(?:what (?:would|could|might|will) happen|what (?:follows|can (?:we|you) conclude)|does it follow)\b",
        r"(?:what (?:is|are)|what's|give|list) (?:me )?(?:the )?(?:main )?(?:pros and cons|trade-?offs?"
        r"|differences? between|advantages and disadvantages|implications|probability|likelihood|next number|value of"
        r"|sum of|remainder|root cause)",
        r"(?:what(?:'s| is)|how much is) [\d(-]",
        r"which (?:\w+ ){0,3}(?:is|are|would be|should|has|weighs|costs) (?:\w+ )?(?:better|larger|cheaper|faster"
        r"|heavier|safer|more|best)\b",
        r"is it (?:better|worth|cheaper|safer|faster|wiser)\b",
        r"should (?:i|we|they|my \w+)\b[^?\n]{0,110} or ",
    ),
    "quantity": (
        r"(?:in )?how (?:many|much|long|far|old|fast|tall|often|late|big|large)\b",
        r"(?:at )?what (?:time|percent|percentage|fraction)\b",
        r"what(?:'s| is| was| will be| would be) (?:(?:the|his|her|their|its) )?(?:[\w']+ ){0,3}(?:total|average|ratio"
        r"|cost|price|length|speed|profit|perimeter|area|volume|sum|difference|weight|height|age|salary|amount"
        r"|number)\b",
    ),
    "chat": (
        r"(?:write|draft|compose|translate|rewrite|rephrase|suggest|recommend|tell me|brainstorm|plan|invent|imagine"
        r"|create|teach me|describe|say|introduce|pretend|act as|come up with|proofread|reply to|give me)\b",
    ),
}
# A phrase that says it wherever it stands, asked only of a text without any request from above.
_PHRASES: dict[str, tuple[str, ...]] = {
    "classification": (
        r"sentiment",
        r"positive,? (?:or )?negative",
        r"(?:categories|labels|classes):",
        r"spam or (?:not|ham)",
        r"yes or no",
    ),
    "summarization": (r"tl;?dr", r"summary"),
    "reasoning": (r"step[- ]by[- ]step", r"pros and cons", r"explain why", r"trade-?offs?", r"prove that"),
}
# Words that ask for thought; the group is the cue. Verbs count anywhere, their nouns and -ing forms as a request.
_REASONING = (
    r"(compare|contrast|analy[sz]e|evaluate|assess|prove|disprove|derive|deduce|justify|critique"
    r"|explain (?:how and )?why|trade-?offs?|step[- ]by[- ]step|pros and cons|advantages and disadvantages"
    r"|differences? between|root causes?|what would happen|think through|reason through|weigh up|implications of)",
    r"(?:i'm|i am|we're|we are|by|help me with|help) (comparing|analy[sz]ing|evaluating|assessing|justifying"
    r"|critiquing)",
    r"(?:give|write|provide|do|make|need|want|perform|produce|prepare|draft|offer)\b[^.!?\n]{0,40}\b(analysis"
    r"|comparison|evaluation|critique|assessment|justification|proof|derivation)",
    r"(comparing|analy[sz]ing|evaluating) [^.!?\n]{0,60}\b(?:which|what|is|should)",
)
# Code by its looks, in the case that it was written in, asked only of a text that has the mark. "class" and "function"
# alone are English.
_CODE: dict[str, tuple[str, ...]] = {
    "(": (
        r"\b(?:def \w+|console\.log|print(?:ln|f)?!?|fn \w+|func (?:\(\w+ [*\w]+\) )?\w+)\(",
        r"\bfunction ?\w*\([\w\s,=]*\) ?\{",
        r"\b[A-Za-z_][\w.]+\(\)(?=[\s`;.,:?)]|$)",
        r"^\s*at [\w$.<>]+ ?\([\w.]+:\d+",
        r"(?<=\w\w)\((?!s\))[^()\n]{0,80}\);\s*$",
    ),
    "=": (
        r"\b(?:const|let|var) \w+ ?=",
        r"\) ?=>|=> ?[{(\[]|(?<=[a-z_\d]) => [a-z_]",
        r"(?<=\w) [=!]==? \w",
    ),
    ":": (r"\bstd::|\b[A-Z]\w*(?:Error|Exception): ", r"^\s*class [A-Z]\w*[^\n]{0,60}:\s*$"),
    "{": (r"\{[^{}]{0,200};", r"^\s*class [A-Z]\w*[^\n]{0,60}\{\s*$"),
    ";": (r"\breturn [\w.]+;",),
    "<": (r"\bfn \w+<",),
    "#": (r"^\s*(?:#include\b|#!/)|#include ?<",),
    "@": (r"^\s*@\w+\s*$",),
    "import ": (r"^\s*(?:import [\w.]+(?: as \w+)?;?\s*$|from [\w.]+ import )",),
    "public ": (r"\bpublic (?:static|class|void) ",),
    "System.out.": (r"\bSystem\.out\.",),
    "SELECT": (r"\bSELECT\b[^;]{1,200}?\bFROM\b",),
    "select * from": (r"\bselect \* from",),
    "INSERT INTO": (r"\bINSERT INTO",),
    "CREATE TABLE": (r"\bCREATE TABLE",),
    "UPDATE ": (r"\bUPDATE \w+ SET",),
    "Traceback": (r"\bTraceback \(most recent",),
    "File ": (r"\bFile \"[^\"\n]+\", line \d",),
}

_OPENER = (  # where a sentence of request may begin, and the courtesies before it
    r"(?:\A(?:you(?: are|'re| will be) [^.\n]{0,120}[.\n]\s*)?(?:(?:task|instructions?|question|q|request|prompt):\s*)?"
    r"|[.!?:;,]\s+|\n\s*|[\"“«(>*]\s?|[-\u2013\u2014]\s|\b(?:and|then|also|your (?:task|job) is to"
    r"|i(?:'d like| want| need| would like)(?: you)? to) )"
    r"(?:(?:please|kindly|now|first|just|then|so|ok|okay|hi|hey|hello|quickly|briefly|carefully|can you|could you"
    r"|would you|will you|i want you to|i need you to|help me|let's|for each [^,\n]{1,40})[,!]? ){0,4}"
)


def _any(parts: tuple[str, ...]) -> str:
    return "|".join(parts)


_REQUEST = re.compile(_OPENER + "(?:" + _any(tuple(f"(?P<{k}>{_any(v)})" for k, v in _REQUESTS.items())) + ")")
_PHRASE = re.compile(r"\b(?:" + _any(tuple(f"(?P<{k}>{_any(v)})" for k, v in _PHRASES.items())) + r")(?!\w)")
_CUE = re.compile(rf"\b(?:{_any(_REASONING)})\b")
_SYNTAX = {mark: re.compile(_any(looks), re.MULTILINE) for mark, looks in _CODE.items()}
_NUMERAL = re.compile(r"\d+|\b(?:two|three|four|five|six|seven|eight|nine|ten|twice|half|double|dozen)\b")


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """What the rules read from a prompt; `cue` says in words why `wanted` is that size."""

    category: str
    wanted: SizeClass
    cue: str
    words: int
    has_code: bool


def text_features(text: str, *, category: str | None = None) -> TextFeatures:
    """Read a prompt. A `category` that the caller gave is taken as it is and changes nothing else."""
    words = len(text.split())
    head, tail = _ends(text)
    found = _category(head.lower(), tail.lower())
    has_syntax = "```" in text or _looks_like_code(head) or _looks_like_code(tail)
    if has_syntax and found in (None, "reasoning", "chat"):
        found = "code"  # "why does this fail?" above a traceback
    has_code = has_syntax or found == "code"
    wanted, cue = _size(text, words, has_code)
    return TextFeatures(category or found or "chat", wanted, cue, words, has_code)


def _ends(text: str) -> tuple[str, str]:
    """The head and the tail, cut between words; a short text has no tail, a longer one may have a middle."""
    text = text.strip()
    if len(text) <= _READ_CHARS:
        return text, ""
    cut = text.rfind(" ", 0, _READ_CHARS) + 1 or _READ_CHARS
    start = cut - 2  # the full stop before the tail's first word, which says that a sentence starts there
    if len(text) - start > _READ_CHARS:
        start = text.find(" ", len(text) - _READ_CHARS)
        start = start if start > 0 else len(text) - _READ_CHARS
    return text[:cut], text[start:]


def _category(head: str, tail: str) -> str | None:
    """The request's category: at the very start, on the last line, in the head, in the tail; None for none."""
    *above, last_line = (tail or head).rsplit("\n", 1)
    for request in (
        _REQUEST.match(head),
        _REQUEST.match(last_line) if above else None,
        _REQUEST.search(head),
        _REQUEST.search(tail),
        _PHRASE.search(head),
        _PHRASE.search(tail),
    ):
        kind = request and request.lastgroup
        if kind == "quantity":  # "how many …" is a sum to do only when there are numbers to do it with
            kind = "reasoning" if len(_NUMERAL.findall(f"{head} {tail}")) > 1 else None
        if kind:
            return kind
    return None


def _looks_like_code(text: str) -> bool:
    return any(mark in text and looks.search(text) is not None for mark, looks in _SYNTAX.items())


def _size(text: str, words: int, has_code: bool) -> tuple[SizeClass, str]:
    if words > LARGE_ABOVE_WORDS:
        return SizeClass.LARGE, f"{words} words > {LARGE_ABOVE_WORDS}"
    if cue := _CUE.search(text[: 10 * LARGE_ABOVE_WORDS].lower()):
        return SizeClass.LARGE, f"reasoning cue '{cue[cue.lastindex or 0]}'"
    if has_code:
        return SizeClass.MEDIUM, "code"
    if words > MEDIUM_ABOVE_WORDS:
        return SizeClass.MEDIUM, f"{words} words > {MEDIUM_ABOVE_WORDS}"
    return SizeClass.SMALL, "short and plain"
