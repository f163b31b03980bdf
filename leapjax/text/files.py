"""Read a checkpoint's tokenizer files; nothing in them is ever run.

tokenizer.json                    -> the tokenizer as it is
vocab.json + merges.txt + extras  -> Qwen2's byte-level BPE
chat_template.jinja, tokenizer_config.json, chat_template.json -> the chat template's source
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from leapjax.errors import UserError

# How Qwen2 cuts text into words before BPE: contractions, words, single digits, runs of
# signs, line ends, spaces (the pattern is part of the vocabulary's definition).
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
# Keys that name a special token, in tokenizer_config.json and special_tokens_map.json.
SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What the files say.

    Attributes:
      tokenizer: the whole tokenizer, added tokens included.
      names: special token spellings by name (`bos_token`, …), for the chat template.
      special: ids that are special, whatever calls them so.
      template: source of the chat template, or None.
    """

    tokenizer: Tokenizer
    names: dict[str, str]
    special: frozenset[int]
    template: str | None


def read(folder: Path) -> TokenizerFiles | None:
    """Read the tokenizer of a checkpoint folder.

    Args:
      folder: the checkpoint's folder.

    Returns:
      The files' content, or None where the folder has no tokenizer.

    Raises:
      UserError: a file is damaged or the files disagree.
    """
    whole, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not (whole.is_file() or vocab.is_file()):
        return None
    config = _json_object(folder / "tokenizer_config.json")
    names_map = _json_object(folder / "special_tokens_map.json")
    added = _added_tokens(folder, config)
    if whole.is_file():
        tokenizer = _parse(whole)
    else:
        if not merges.is_file():
            raise UserError(f"{vocab} is there but {merges.name} is not; fetch it too")
        tokenizer = _qwen2(vocab, merges, added, bool(config.get("add_prefix_space")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _add(tokenizer, added, folder)
    names, extra = _names(config, names_map)
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    named = (tokenizer.token_to_id(t) for t in (*names.values(), *extra))
    special |= {i for i in named if i is not None}
    return TokenizerFiles(tokenizer, names, frozenset(special), _template(folder, config))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: can't be read ({_line(e)})") from e


def _line(error: BaseException) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _json_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON ({_line(e)})") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _build(path: Path, make, *args, **kwargs):
    """Call into the tokenizer library, whose failures are of many types."""
    try:
        return make(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a panic in the library is not an Exception
        raise UserError(f"{path}: not a usable tokenizer file ({_line(e)})") from e


def _parse(path: Path) -> Tokenizer:
    return _build(path, Tokenizer.from_str, _text(path))


def _qwen2(vocab_path: Path, merges_path: Path, added, prefix_space: bool) -> Tokenizer:
    vocab = _json_object(vocab_path)
    if not vocab or not all(_is_id(i) for i in vocab.values()):
        raise UserError(f"{vocab_path}: expected an object of tokens and their ids")
    merges = []
    for number, line in enumerate(_text(merges_path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{merges_path} line {number}: expected two pieces, got {line!r}")
        merges.append((pair[0], pair[1]))
    # In the vocabulary, an added token keeps the id that its file gives it, gaps and all.
    vocab = {token.content: i for i, token in added.items() if token.content not in vocab} | vocab
    model = _build(merges_path, BPE, vocab=vocab, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _added_tokens(folder: Path, config: dict) -> dict[int, AddedToken]:
    """Tokens beside the vocabulary, by id; tokenizer_config.json knows more about them."""
    found: dict[int, AddedToken] = {}
    path = folder / "added_tokens.json"
    for content, i in _json_object(path).items():
        if not _is_id(i) or not content:
            raise UserError(f"{path}: expected an object of tokens and their ids")
        found[i] = AddedToken(content, special=True, normalized=False)
    path = folder / "tokenizer_config.json"
    described = config.get("added_tokens_decoder") or {}
    if not isinstance(described, dict):
        raise UserError(f"{path}: added_tokens_decoder should be an object")
    for key, value in described.items():
        content = value.get("content") if isinstance(value, dict) else None
        if not str(key).isdecimal() or not isinstance(content, str) or not content:
            raise UserError(f"{path}: added_tokens_decoder entry {key!r} is malformed")
        special = bool(value.get("special"))
        found[int(key)] = AddedToken(
            content,
            special=special,
            single_word=bool(value.get("single_word")),
            lstrip=bool(value.get("lstrip")),
            rstrip=bool(value.get("rstrip")),
            normalized=bool(value.get("normalized", not special)),
        )
    return found


def _add(tokenizer: Tokenizer, added: dict[int, AddedToken], folder: Path) -> None:
    known = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()}
    for i, token in sorted(added.items()):
        if known.get(i) == token.content:
            continue
        tokenizer.add_tokens([token])
        got = tokenizer.token_to_id(token.content)
        if got != i:
            raise UserError(
                f"{folder}: token {token.content!r} has id {i} in the added tokens, "
                f"but the vocabulary makes it {got}; the tokenizer files disagree"
            )


def _names(config: dict, names_map: dict) -> tuple[dict[str, str], list[str]]:
    """Spellings of the named special tokens, and of the unnamed ones."""
    names = {}
    for name in SPECIAL_NAMES:
        for source in (config, names_map):
            spelling = _spelling(source.get(name))
            if spelling is not None:
                names[name] = spelling
                break
    extra = []
    for source in (config, names_map):
        listed = source.get("additional_special_tokens") or []
        extra += [s for s in map(_spelling, listed if isinstance(listed, list) else []) if s]
    return names, extra


def _spelling(value: Any) -> str | None:
    """A token written as a string, or as the object that older files hold."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _template(folder: Path, config: dict) -> str | None:
    """The chat template's source: its own file first, then the settings."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return _text(own)
    where, value = folder / "tokenizer_config.json", config.get("chat_template")
    if value is None:
        where = folder / "chat_template.json"
        value = _json_object(where).get("chat_template")
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, list):
        named = {
            t["name"]: t["template"]
            for t in value
            if isinstance(t, dict) and "name" in t and isinstance(t.get("template"), str)
        }
        if len(named) == 1:
            return next(iter(named.values()))
        if "default" in named:
            return named["default"]
        raise UserError(f"{where}: several chat templates and none is named 'default'")
    raise UserError(f"{where}: chat_template should be a text or a list of named templates")
