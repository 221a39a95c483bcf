"""The rules read what is asked: its category by the request, its size by words, code and cues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieryard.catalog import SizeClass
from tieryard.routing.features import text_features

PROMPTS = Path(__file__).parents[3] / "docs" / "examples" / "prompts.jsonl"
CATEGORIES = ("extraction", "classification", "summarization", "reasoning", "code", "chat")
ORDER = list(SizeClass)
PLAIN = "The committee met on Tuesday and talked about the new bridge, its cost and the weather. " * 40

CASES: dict[str, tuple[str, ...]] = {
    "extraction": (
        "Extract the names and dates from this letter: Dear Ana, we met Bob on 3 May.",
        "List all the companies mentioned below.\n\nAcme bought Globex, and Initech was sold.",
        "Please pull out every amount in this invoice: 12.00, 14.50, total 26.50",
        "Find every email address in the text: ana@example.org wrote to bo@example.org",
        "Here is a transcript. Bo: hello. Ana: hello, I am Ana.\n\nIdentify all the people named in the transcript.",
        "From the passage below, list the rivers.\nThe Elbe and the Oder rise in the east.",
        "Could you extract the order number? It is somewhere in here: ref KX-2201, thanks.",
        "Turn this order into JSON with the keys item and quantity: two green jumpers, please.",
        "Which people are mentioned in the following article? Ana Ruiz met Bo Lind in Oslo.",
        "You are a careful clerk. Extract the due date from the message: pay us by 4 June.",
        "Parse this address into street and city: 12 Elm Road, Leeds",
        "According to the contract, when does the term begin? The term begins on 1 May.",
    ),
    "classification": (
        "Classify this review as positive or negative: I loved it.",
        "Categorise the ticket: my card was charged twice.",
        "Is this review positive or negative? The soup was cold and the waiter was rude.",
        "Which of the following categories fits best: sport, politics or science? A probe landed on Mars.",
        "What is the sentiment of this tweet? I can't wait for Friday!",
        "Label each sentence as fact or opinion. Rome is in Italy. Rome is lovely.",
        "Decide whether this email is spam or not: You won a prize!",
        "Analyze the sentiment of the comment: great service, as ever.",
        "Detect the language: Wo ist der Bahnhof?",
        "Great phone, awful battery.\n\nPositive, negative or neutral?",
        "Assign one label to the message: refund, delivery, other. Where is my parcel?",
        "Does this comment contain an insult? Answer yes or no. You are all great.",
        "Which department should handle it? My router blinks red all day.",
    ),
    "summarization": (
        "Summarize: the board met and agreed to sell the mill.",
        "Summarise the text below in two sentences.\n\nThe river rose in the night and fell by noon.",
        "tl;dr please: the release moves to Thursday as one test is flaky",
        "Give me a short summary of the meeting: Ana spoke, Bo agreed, nobody objected.",
        "Shorten this to twenty words: My train is late since a signal failed near Crewe.",
        "Condense the paragraph into one line: It rained for a week, and the hay was lost.",
        "What are the key points of this notice? Water will be off on Monday.",
        "Write a headline for this story: A man in Ghent built trams from matchsticks.",
        "It rained for a week and the hay was lost.\n\nSum up the above.",
        "Summarize: the article argues that we should analyze why rivers flood and compare dams.",
        "Summarize this email: please write a function that adds numbers, Bob said.",
        "Describe what happened below in one sentence. The cat sat down, and the mat broke.",
    ),
    "reasoning": (
        "Why is the sky blue?",
        "Prove that the square root of two is irrational.",
        "Compare Postgres and MySQL for a small shop.",
        "Sam has 3 apples and buys 4 more. How many apples does he have?",
        "If a train leaves at 9 and rides 120 km at 80 km/h, how long is it under way?",
        "What are the pros and cons of nuclear power?",
        "Explain why the tides are higher at full moon.",
        "Evaluate the claim that cities make people ill.",
        "What is the difference between weather and climate? What is the probability of two sixes?",
        "What is 17 * 23?",
        "Solve for x: 3x + 5 = 20",
        "What would happen if the moon were twice as near?",
        "Should we move the office to the suburbs or stay downtown?",
        "Find the largest prime factor of 91.",
        "Is it better to lease or buy a truck?",
    ),
    "code": (
        "Write a Python function that reverses a list.",
        "Write a function to find the shared elements of two lists.",
        "Fix this bug in my script: it prints nothing.",
        "I need a regex that matches a postcode.",
        "Debug this: ```\nx = 1\n```",
        "Write a SQL query that lists all customers.",
        "def add(a, b):\n    return a - b\n\nWhy is this wrong?",
        "What does this code do? for (let i = 0; i < 3; i++) { f(i); }",
        "How do I read a file line by line in Rust?",
        "Refactor the loop into a comprehension.",
        "Review this pull request for races.",
        "Implement a queue with two stacks.",
        "Why does this loop never end?",
        'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nValueError: no',
        "Write a class that keeps the last ten prices.",
    ),
    "chat": (
        "Hello!",
        "Tell me a joke about cats.",
        "Write a poem about the sea.",
        "What should I cook tonight?",
        "Who wrote Middlemarch?",
        "Show me something nice.",
        "Which class should I take next term?",
        "Explain the function of the heart.",
        "Write a short essay on the function of the liver.",
        "How many people live in Paris?",
        "What is the capital of Peru?",
        "Translate into French: the summary is on the table.",
        "Write an email asking why the invoice is late.",
        "List five ideas for a birthday party.",
        "Fix my class schedule for the autumn term.",
        "Quelle heure est-il à Montréal ?",
        "",
        "   \n\t ",
    ),
}

SIZES: tuple[tuple[str, SizeClass, str], ...] = (
    ("", SizeClass.SMALL, "short and plain"),
    ("  \n ", SizeClass.SMALL, "short and plain"),
    ("?", SizeClass.SMALL, "short and plain"),
    ("Say hello to Ana.", SizeClass.SMALL, "short and plain"),
    ("Show me the way to the station.", SizeClass.SMALL, "short and plain"),
    ("Tomorrow is another day, somehow.", SizeClass.SMALL, "short and plain"),
    ("Find comparable flats, incomparably cheap.", SizeClass.SMALL, "short and plain"),
    ("The analyst approved the improved, unjustified plan.", SizeClass.SMALL, "short and plain"),
    ("They trade off the coast of Peru.", SizeClass.SMALL, "short and plain"),
    ("What does she do in her yoga class?", SizeClass.SMALL, "short and plain"),
    ("The hall is let for a private function.", SizeClass.SMALL, "short and plain"),
    ("A working class hero and his function room", SizeClass.SMALL, "short and plain"),
    ("Import duties on tea rose in May.", SizeClass.SMALL, "short and plain"),
    ("Please select a colour from the list.", SizeClass.SMALL, "short and plain"),
    ("Où est la gare ? Merci beaucoup.", SizeClass.SMALL, "short and plain"),
    ("🦊 ¿qué tal? 你好,世界", SizeClass.SMALL, "short and plain"),
    ("word " * 40, SizeClass.SMALL, "short and plain"),
    ("word " * 41, SizeClass.MEDIUM, "41 words > 40"),
    ("слово " * 52, SizeClass.MEDIUM, "52 words > 40"),
    ("word " * 100, SizeClass.MEDIUM, "100 words > 40"),
    ("word " * 101, SizeClass.LARGE, "101 words > 100"),
    ("Prove it. " + "word " * 110, SizeClass.LARGE, "112 words > 100"),
    ("Compare tea and coffee.", SizeClass.LARGE, "reasoning cue 'compare'"),
    ("ANALYZE the plan", SizeClass.LARGE, "reasoning cue 'analyze'"),
    ("Analyse the plan", SizeClass.LARGE, "reasoning cue 'analyse'"),
    ("Explain why bread goes stale.", SizeClass.LARGE, "reasoning cue 'explain why'"),
    ("What is the trade-off here?", SizeClass.LARGE, "reasoning cue 'trade-off'"),
    ("Name the tradeoffs.", SizeClass.LARGE, "reasoning cue 'tradeoffs'"),
    ("Think step by step.", SizeClass.LARGE, "reasoning cue 'step by step'"),
    ("Give the pros and cons.", SizeClass.LARGE, "reasoning cue 'pros and cons'"),
    ("I'm comparing two vans; which is it?", SizeClass.LARGE, "reasoning cue 'comparing'"),
    ("Write a thorough analysis of the match.", SizeClass.LARGE, "reasoning cue 'analysis'"),
    ("Write a Python function that adds.", SizeClass.MEDIUM, "code"),
    ("What is this? ```x```", SizeClass.MEDIUM, "code"),
    ("SELECT name FROM customer", SizeClass.MEDIUM, "code"),
    ("#include <stdio.h>", SizeClass.MEDIUM, "code"),
    ("console.log(1)", SizeClass.MEDIUM, "code"),
    ("import os", SizeClass.MEDIUM, "code"),
    ("const f = (x) => x", SizeClass.MEDIUM, "code"),
)


@pytest.mark.parametrize(("text", "expected"), [(text, name) for name, texts in CASES.items() for text in texts])
def test_category_is_what_is_asked(text: str, expected: str) -> None:
    assert text_features(text).category == expected


@pytest.mark.parametrize(("text", "wanted", "cue"), SIZES)
def test_size_and_its_cue(text: str, wanted: SizeClass, cue: str) -> None:
    features = text_features(text)
    assert (features.wanted, features.cue) == (wanted, cue)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("Extract all the names from the text.", "extraction"),
        ("Classify the text as praise or complaint.", "classification"),
        ("Summarize the text in one sentence.", "summarization"),
        ("Compare the two speakers.", "reasoning"),
        ("Write a Python script that prints it.", "code"),
    ],
)
@pytest.mark.parametrize("joint", ["\n\n", " "])
def test_attached_material_does_not_change_the_category(request_: str, expected: str, joint: str) -> None:
    material = PLAIN.strip()
    assert text_features(request_).category == expected
    assert text_features(f"{request_}{joint}{material}").category == expected
    assert text_features(f"{material}{joint}{request_}").category == expected
    assert not text_features(material).has_code
    assert text_features(material).category == "chat"


def test_words_of_the_material_are_not_the_request() -> None:
    article = f"{PLAIN}\nAnalyze this, he wrote. Write a function. Prove it. Classify the rest.\n{PLAIN}"
    features = text_features(f"Summarize:\n{article}")
    assert (features.category, features.has_code) == ("summarization", False)


@pytest.mark.parametrize("plain_words", range(30, 140, 3))
def test_a_request_is_found_wherever_the_reading_ends(plain_words: int) -> None:
    material = " ".join(["plain"] * plain_words)
    assert text_features(f"{material}. Summarize the above.").category == "summarization"
    assert text_features(f"{material} compare {material}").category == "chat"


def test_category_does_not_follow_the_size() -> None:
    by_size = {text_features("Summarize: " + "word " * n).wanted: n for n in (5, 50, 500)}
    assert list(by_size) == ORDER
    assert {text_features("Summarize: " + "word " * n).category for n in by_size.values()} == {"summarization"}


def test_the_callers_category_wins_and_changes_nothing_else() -> None:
    ruled, given_ = text_features("Write a SQL query."), text_features("Write a SQL query.", category="legal")
    assert (ruled.category, given_.category) == ("code", "legal")
    assert (ruled.wanted, ruled.cue, ruled.words, ruled.has_code) == (
        given_.wanted,
        given_.cue,
        given_.words,
        given_.has_code,
    )


def test_the_demo_prompts_are_told_apart() -> None:
    lines = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    wrong = [line["custom_id"] for line in lines if text_features(line["prompt"]).category not in line["custom_id"]]
    assert len(lines) == 48
    assert len(wrong) <= 3, wrong
    assert sum(line["max_tokens"] for line in lines) <= 1900


@given(st.text(max_size=2000))
def test_any_text_has_features(text: str) -> None:
    features = text_features(text)
    assert features.category in CATEGORIES
    assert features.words == len(text.split())
    assert features.cue


@given(
    st.lists(
        st.sampled_from(["compare", "write a", "function", "def f():", "{", ";", "```", "=>", "why", ":", "\n", '"'])
    )
)
def test_any_mix_of_cues_has_features(parts: list[str]) -> None:
    assert text_features(" ".join(parts)).category in CATEGORIES


@given(st.text(max_size=400), st.integers(min_value=101, max_value=300))
def test_filler_beyond_the_limit_never_lowers_the_size(text: str, count: int) -> None:
    before, after = text_features(text), text_features(text + " filler" * count)
    assert ORDER.index(after.wanted) >= ORDER.index(before.wanted)


@given(st.text(), st.text(min_size=1))
def test_a_given_category_is_returned(text: str, category: str) -> None:
    assert text_features(text, category=category).category == category
