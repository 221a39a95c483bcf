"""Chat templates are rendered as Hugging Face's tokenizers render them."""

from datetime import datetime

import orjson
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tieryard.errors import UserError
from tieryard.tokens import load_counter

CHAT = [{"role": "system", "content": "<Be> brief."}, {"role": "user", "content": "Hi"}]


def directory(tmp_path, template, *, own_file=False):
    """A tokenizer of one token a word, with this chat template in one of the two places for it."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>"} | ({} if own_file else {"chat_template": template})
    (tmp_path / "tokenizer_config.json").write_bytes(orjson.dumps(config))
    if own_file:
        (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
            "<s>[system]<Be> brief.[user]Hi",
        ),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", "Hi"),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "system"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "<Be> brief.Hi"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
        ("{{ messages[0] | tojson }}", '{"role": "system", "content": "<Be> brief."}'),
        ("{{ {'é': [1]} | tojson(indent=1) }}", '{\n "é": [\n  1\n ]\n}'),
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "True True True"),
    ],
)
@pytest.mark.parametrize("own_file", [False, True])
def test_what_templates_are_written_for_is_there(tmp_path, template, rendered, own_file):
    # Templates are tried with one empty message first, where `messages[0]` and its role are there too.
    counter = load_counter(directory(tmp_path, template, own_file=own_file), cache_dir=tmp_path)
    assert counter.rendered(CHAT) == rendered


def test_templates_are_told_the_date(tmp_path):
    spec = directory(tmp_path, '{{ strftime_now("%Y") }} {{ strftime_now(format="%d %b %Y") | length }}')
    before = datetime.now().astimezone()
    year, length = load_counter(spec, cache_dir=tmp_path).rendered(CHAT).split()
    assert before.year <= int(year) <= datetime.now().astimezone().year
    assert length == "11"


@pytest.mark.parametrize(("own_file", "name"), [(False, "tokenizer_config.json"), (True, "chat_template.jinja")])
def test_what_is_no_template_is_refused_with_its_file(tmp_path, own_file, name):
    spec = directory(tmp_path, "{% for m in messages %}\n{% fro %}", own_file=own_file)
    with pytest.raises(UserError, match=rf"{name}: its chat template cannot be read, line 2: .*'fro'"):
        load_counter(spec, cache_dir=tmp_path)


def test_without_a_template_nothing_is_rendered(tmp_path):
    assert load_counter(directory(tmp_path, None), cache_dir=tmp_path).rendered(CHAT) is None
