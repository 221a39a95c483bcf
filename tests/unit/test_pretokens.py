"""Counting by pre-tokens gives what encoding the whole text gives, and is done only where it does."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tieryard.pretokens import _SPLITS, PretokenCounts, pattern_of

WORDS = (
    "the yard moved 9 wagons, 10,000 tokens (why?) it's don't x=1; naïve 数 ² Ⅷ --- <|end|> foo\nbar a\tb \u00a0c ...\n"
)
PIECES = [*WORDS.split(" "), "", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u0301", "\u2003", "\x1c", "\x85", "\u200b"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join),
    st.lists(st.sampled_from([*PIECES, *"aB3.'\u0663½"]), max_size=12).map("".join),
    st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace").decode()),
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def tokenizer(steps, *, normalizer=None, added=("<|end|>",), model=None):
    """Of byte-level BPE, learnt from a few words, so that it merges some and leaves others."""
    made = Tokenizer(model or models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if normalizer is not None:
        made.normalizer = normalizer
    if model is None:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            [WORDS, "  the yard  \n\n", "don't  wagons"] * 3,
            trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False),
        )
    made.add_special_tokens([AddedToken(token, special=True) if isinstance(token, str) else token for token in added])
    return made


def split(pattern, **options):
    return [
        pre_tokenizers.Split(Regex(pattern), options.pop("behavior", "isolated"), **options),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


READ = {
    "GPT-2's": tokenizer([BYTES]),
    "SmolLM2's": tokenizer([DIGITS, BYTES]),
    "digits in runs": tokenizer([pre_tokenizers.Digits(individual_digits=False), BYTES]),
    **{f"split {i}": tokenizer(split(p), normalizer=normalizers.NFC()) for i, p in enumerate(sorted(_SPLITS))},
}


def counts_of(name):
    return PretokenCounts(READ[name], pattern_of(READ[name]))


@pytest.mark.parametrize("name", READ)
@given(texts=st.lists(TEXTS, max_size=4))
@example(texts=["the  <|end|>", "a  9", "a  the", "a \n\n 'S don't"])
@settings(max_examples=150)
def test_a_text_counts_as_it_is_encoded(name, texts):
    whole = [len(e) for e in READ[name].encode_batch(texts, add_special_tokens=False)]
    counts = counts_of(name)
    assert [counts.count(texts) for _ in range(2)] == [whole] * 2  # learnt, then looked up


def test_of_added_tokens_the_longest_is_cut_off():
    read = tokenizer([BYTES], added=("<a", "<a>", "<"))
    counts = PretokenCounts(read, pattern_of(read))
    for text in ("x <a> y", "<a<a><", "the <ab"):
        assert counts.count([text]) == [len(read.encode(text, add_special_tokens=False))]


@pytest.mark.parametrize(
    "other",
    [
        tokenizer([BYTES], added=(AddedToken("<x>", rstrip=True),)),
        tokenizer([BYTES], added=(AddedToken("<x>", single_word=True),)),
        tokenizer([BYTES], normalizer=normalizers.Replace(" ", "_")),
        tokenizer([pre_tokenizers.ByteLevel(add_prefix_space=True)]),
        tokenizer([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        tokenizer([DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        tokenizer([pre_tokenizers.Metaspace(), BYTES]),
        tokenizer(split(r"\w+|\s+")),
        tokenizer(split(sorted(_SPLITS)[0], behavior="removed")),
        tokenizer(split(sorted(_SPLITS)[0], invert=True)),
        tokenizer([BYTES], model=models.WordLevel({"?": 0}, unk_token="?")),
        Tokenizer(models.BPE()),
    ],
)
def test_of_any_other_no_pattern_is_known(other):
    assert pattern_of(other) is None


def test_what_is_kept_has_a_limit(monkeypatch):
    monkeypatch.setattr("tieryard.pretokens._MOST_KEPT", 3)
    counts = counts_of("GPT-2's")
    for text in ("a b c", "a b c d e f", "a g h i"):
        [count] = counts.count([text])
        assert count == len(READ["GPT-2's"].encode(text))
        assert len(counts._known) <= 3


def test_what_is_long_or_in_doubt_is_not_kept():
    counts = counts_of("GPT-2's")
    counts.count([f"x {'y' * 33}<|end|>na\u0301ive", "end!"])
    assert set(counts._known) == {"x", "end", "!"}
