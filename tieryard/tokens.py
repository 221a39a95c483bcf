"""Counting tokens as a deployment's own tokenizer and chat template do, never by characters."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import orjson
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tieryard.errors import RequestError, UserError
from tieryard.pretokens import PretokenCounts, pattern_of

UTF8 = "utf8"
"""A tokenizer that gives every UTF-8 byte a token: an upper bound for any byte-level tokenizer."""

_TURN_TOKENS = 16  # allowed for the template of one message where the template is not known
_CONTROL = 3  # GGUF's token type for special tokens


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts the prompt tokens of conversations. `overhead` is what the template adds to one user message."""

    name: str
    overhead: int
    _encode: Callable[[list[str]], list[int]]
    _render: Callable[[list[dict[str, Any]]], str] | None
    _ids: Callable[[str], list[int]] | None = None

    def count(self, conversations: list[list[dict[str, Any]]]) -> list[int]:
        """Prompt tokens of each conversation, exactly as served where the chat template is known.

        Raises RequestError when the template refuses one of them.
        """
        if not conversations:
            return []
        if self._render is not None:
            return self._encode([self._render(c) for c in conversations])
        texts = [m["content"] for c in conversations for m in c]
        counts = iter(self._encode(texts))
        return [sum(next(counts) + _TURN_TOKENS for _ in c) for c in conversations]

    def count_raw(self, texts: list[str]) -> list[int]:
        """Tokens of texts that no template surrounds. One more each is allowed for a token that begins a text."""
        return [n + 1 for n in self._encode(texts)] if texts else []

    def ids(self, conversation: list[dict[str, Any]]) -> list[int] | None:
        """The tokens themselves, as the model reads them; None where the tokenizer or the template is not known."""
        return self._ids(self._render(conversation)) if self._ids is not None and self._render is not None else None

    def rendered(self, conversation: list[dict[str, Any]]) -> str | None:
        """The text of it, as the chat template writes it; None where that is not known."""
        return self._render(conversation) if self._render is not None else None

    def raw_ids(self, text: str) -> list[int] | None:
        """Of a text that no template surrounds, without a token that begins it; None where no tokenizer is known."""
        return self._ids(text) if self._ids is not None else None

    def at_most(self, conversation: list[dict[str, Any]]) -> int:
        """A bound that needs no tokenizer: no byte-level tokenizer makes more tokens than there are bytes."""
        return self.overhead + sum(len(m["content"].encode()) + _TURN_TOKENS for m in conversation)


def load_counter(spec: str, *, cache_dir: Path) -> TokenCounter:
    """The counter for a catalog's `tokenizer`. Raises UserError when there is none at that place.

    A GGUF's tokenizer is converted once (about 2 s) and kept in `cache_dir`. All who ask share one counter, until its
    files change: loading one takes a tenth of a second and some tens of MB.
    """
    if spec == UTF8:
        return TokenCounter(UTF8, _TURN_TOKENS, lambda texts: [len(t.encode()) for t in texts], None)
    file = _files(spec, cache_dir)
    beside = (file, file.with_name("tokenizer_config.json"), file.with_name("chat_template.jinja"))
    return _load(spec, file, tuple((f.stat().st_mtime_ns, f.stat().st_size) for f in beside if f.is_file()))


@lru_cache(maxsize=8)
def _load(spec: str, file: Path, changed: tuple[tuple[int, int], ...]) -> TokenCounter:  # noqa: ARG001  # see above
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    render = _template(file.with_name("tokenizer_config.json"))
    pattern = pattern_of(tokenizer)
    pretokens = PretokenCounts(tokenizer, pattern) if pattern is not None else None

    def encode(texts: list[str]) -> list[int]:
        # Special tokens are the template's to write; a surrogate cannot be encoded and is no text.
        clean = [t.encode("utf-8", "replace").decode() for t in texts]
        if pretokens is not None:
            return pretokens.count(clean)
        return [len(e) for e in tokenizer.encode_batch_fast(clean, add_special_tokens=False)]

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    overhead = encode([render([{"role": "user", "content": ""}])])[0] if render else _TURN_TOKENS
    return TokenCounter(spec, overhead, encode, render, ids)


def _template(config_file: Path) -> Callable[[list[dict[str, Any]]], str] | None:
    """The chat template of a tokenizer_config.json, or of the file beside it where newer repositories keep it, rendered
    as Hugging Face's tokenizers do. Raises UserError when it is no template."""
    config: dict[str, Any] = orjson.loads(config_file.read_bytes()) if config_file.is_file() else {}
    file, source = _template_source(config_file, config)
    if source is None:
        return None
    try:
        compiled = _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"{file}: its chat template cannot be read, line {error.lineno}: {error.message}; "
            "take the one of the model's own repository"
        ) from None
    special = {k: _text(config.get(k)) for k in ("bos_token", "eos_token")}

    def render(conversation: list[dict[str, Any]]) -> str:
        try:
            return compiled.render(
                messages=conversation, tools=None, documents=None, add_generation_prompt=True, **special
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise RequestError(f"the model's chat template refuses it: {error}", param="messages") from None

    return render


def _template_source(config_file: Path, config: dict[str, Any]) -> tuple[Path, str | None]:
    """Where the chat template stands, and its text; None where there is none."""
    own_file = config_file.with_name("chat_template.jinja")
    if own_file.is_file():
        return own_file, own_file.read_text(encoding="utf-8")
    source = config.get("chat_template")
    return config_file, source if isinstance(source, str) else None


def template_of(spec: str, *, cache_dir: Path) -> str | None:
    """The text of the chat template that a catalog's `tokenizer` comes with; None where it has none."""
    if spec == UTF8:
        return None
    config_file = _files(spec, cache_dir).with_name("tokenizer_config.json")
    config: dict[str, Any] = orjson.loads(config_file.read_bytes()) if config_file.is_file() else {}
    return _template_source(config_file, config)[1]


def _files(spec: str, cache_dir: Path) -> Path:
    """Its tokenizer.json. Raises UserError where there is none."""
    directory = _from_gguf(spec, cache_dir) if spec.endswith(".gguf") else Path(spec)
    file = directory / "tokenizer.json" if directory.is_dir() else directory
    if not file.is_file():
        raise UserError(f"tokenizer '{spec}': no file {file}")
    return file


def _environment() -> jinja2.Environment:
    """What chat templates are written for: whatever is missing here, some model's template uses."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _to_json
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model is to have written, for training. Here it is its content and no more."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _now(format: str) -> str:  # noqa: A002  # templates may name it
    return datetime.now().astimezone().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own sorts the keys, and escapes what would matter in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    """What templates call when a conversation is not one that the model was trained on."""
    raise jinja2.TemplateError(message)


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _from_gguf(spec: str, cache_dir: Path) -> Path:
    """Writes tokenizer.json and tokenizer_config.json from a GGUF's metadata, once: their directory."""
    from tieryard.weights import weights_path

    path = weights_path(spec)
    stat = path.stat()
    key = hashlib.sha256(f"{path.name}:{stat.st_size}".encode()).hexdigest()[:16]
    target = cache_dir / f"{path.stem}-{key}"
    if (target / "tokenizer.json").is_file():
        return target
    import gguf  # a `local` extra, slow to import

    fields = gguf.GGUFReader(path).fields

    def value(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    if value("tokenizer.ggml.model") != "gpt2":
        raise UserError(f"tokenizer '{spec}': only byte-level BPE can be read from a GGUF; name a tokenizer.json")
    tokens: list[str] = value("tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ", 1)) for m in value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    split_digits = value("tokenizer.ggml.pre") in ("smollm", "starcoder", "refact", "command-r")
    steps = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    types = value("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens([AddedToken(tokens[i], special=True) for i, t in enumerate(types) if t == _CONTROL])
    config = {
        "chat_template": value("tokenizer.chat_template"),
        "bos_token": tokens[value("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[value("tokenizer.ggml.eos_token_id")],
    }
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as work:
        made = Path(work) / "tokenizer"
        made.mkdir()
        (made / "tokenizer_config.json").write_bytes(orjson.dumps(config))
        tokenizer.save(str(made / "tokenizer.json"))
        try:
            os.replace(made, target)  # noqa: PTH105  # atomic, and another process may have been first
        except OSError:
            if not (target / "tokenizer.json").is_file():
                raise
    return target
