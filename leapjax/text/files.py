"""Read a checkpoint's tokenizer files; nothing in them is ever run.

tokenizer.json                    -> the tokenizer as it is, unless the originals read the next ones
vocab.json + merges.txt + extras  -> Qwen2's byte-level BPE
chat_template.jinja, tokenizer_config.json, chat_template.json -> the chat template's source
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
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
# Spellings of masks, for files that don't say which of their tokens is one: A2D's two, Fast-dLLM's.
_MASKS = ("<|mask|>", "<|MASK|>", "|<MASK>|")
# Classes whose vocab.json and merges.txt are Qwen2's, or that don't say which they are.
_QWEN2_CLASSES = {None} | {
    f"{name}Tokenizer{fast}" for name in ("Qwen2", "Dream", "PreTrained") for fast in ("", "Fast")
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What the files say."""

    tokenizer: Tokenizer  # the whole tokenizer, added tokens included
    names: dict[str, str]  # special token spellings by name (`bos_token`, …), for the chat template
    # spellings among them that no file gives an id; the library numbers them itself
    made_up: frozenset[str]
    special: frozenset[int]  # ids that are special, whatever calls them so
    template: str | None  # source of the chat template, or None
    size: int  # one more than the largest id
    tidy: bool  # blanks before signs are taken out of decoded text


@dataclasses.dataclass(frozen=True)
class _Special:
    """Tokens beside the vocabulary, as the settings describe them."""

    added: dict[int, AddedToken]  # by the id that the settings give them
    named: dict[str, AddedToken]  # by name, `bos_token` and the like
    extra: list[AddedToken]  # those without a name


def read(folder: Path) -> TokenizerFiles | None:
    """Read the tokenizer of a checkpoint folder.

    Returns the files' content, or None where the folder has no tokenizer.
    """
    whole, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not (whole.is_file() or vocab.is_file()):
        return None
    where = folder / "tokenizer_config.json"
    config = _json_object(where)
    versions = config.get("fast_tokenizer_files") or ["tokenizer.json"]
    if versions != ["tokenizer.json"]:
        raise UserError(
            f"{where}: fast_tokenizer_files lists {versions}; only tokenizer.json is read"
        )
    tokens = _special(folder, config)
    if fast := whole.is_file() and not (_slow_only(config) and vocab.is_file()):
        tokenizer = _parse(whole)
    else:
        if not merges.is_file():
            raise UserError(f"{vocab} is there but {merges.name} is not; fetch it too")
        if (kind := config.get("tokenizer_class")) not in [*_QWEN2_CLASSES]:  # any JSON value
            raise UserError(
                f"{where}: tokenizer_class is {str(kind)[:80]}, which cuts text in its own way; "
                "the folder needs its tokenizer.json"
            )
        tokenizer = _qwen2(vocab, merges, tokens.added, bool(config.get("add_prefix_space")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {*tokenizer.get_vocab(), *(t.content for t in tokens.added.values())}
    _build(where, _add, tokenizer, tokens, folder)
    if not fast:
        _as_qwen2(tokenizer, tokens, config)
    if config.get("split_special_tokens"):
        tokenizer.encode_special_tokens = True
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if len(set(ids)) != len(ids):
        raise UserError(f"{folder}: two tokens have the same id; fetch the tokenizer's files again")
    # Special is what the library leaves out; in it, a flag that was once set stays set.
    special = {
        i
        for i in tokenizer.get_added_tokens_decoder()
        if tokenizer.decode([i]) != tokenizer.decode([i], skip_special_tokens=False)
    }
    return TokenizerFiles(
        tokenizer,
        {name: token.content for name, token in tokens.named.items()},
        frozenset({token.content for token in tokens.named.values()} - known),
        frozenset(special),
        _template(folder, config),
        1 + max(ids, default=-1),
        bool(config.get("clean_up_tokenization_spaces")) and not isinstance(tokenizer.model, BPE),
    )


def _slow_only(config: dict) -> bool:
    """Whether the originals' class is one that reads vocab.json and never tokenizer.json."""
    classes = config.get("auto_map")
    pair = classes.get("AutoTokenizer") if isinstance(classes, dict) else None
    return isinstance(pair, list) and len(pair) == 2 and pair[1] is None


def special_ids(folder: Path) -> dict[str, int]:
    """Ids of the special tokens, by the keys that config.json has for them (`mask_token_id`, …).

    Returns the ids that the tokenizer's files tell. A mask that they don't name is known by its
    spelling.
    """
    if (known := read(folder)) is None:
        return {}
    added = {t.content: i for i, t in known.tokenizer.get_added_tokens_decoder().items()}
    told = {t: i for t, i in added.items() if t not in known.made_up}
    ids = {f"{n}_id": told.get(t) for n, t in known.names.items()}
    ids.setdefault("mask_token_id", next((told[t] for t in _MASKS if t in told), None))
    return {name: i for name, i in ids.items() if i is not None}


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
    text = _text(path)
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a pair is no character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON ({_line(e)})") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _build(path: Path, make, *args, **kwargs):
    """Call into the tokenizer library, whose failures are of many types."""
    try:
        return make(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit, UserError):
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


def _special(folder: Path, config: dict) -> _Special:
    """What the settings say of special and added tokens, as `transformers` reads them.

    Where tokenizer_config.json has `added_tokens_decoder`, it alone counts. Older folders say the
    same in special_tokens_map.json, added_tokens.json and tokenizer.json, the later over the
    earlier; a token of added_tokens.json is special if another file names it.
    """
    where = folder / "tokenizer_config.json"
    described = config.get("added_tokens_decoder")
    sources = [(where, config)]
    if "added_tokens_decoder" not in config:
        path = folder / "special_tokens_map.json"
        sources.append((path, _json_object(path)))
    settings, extra, named = {}, [], {}
    for path, source in sources:
        settings |= {k: v for k, v in source.items() if k.endswith("_token")}
        listed = source.get("extra_special_tokens")
        if not extra and (listed is None or (source is config and not listed)):  # the older name
            listed = source.get("additional_special_tokens")
        if isinstance(listed, dict):
            settings |= listed
        elif isinstance(listed, list):
            extra += [_token(t, path, "an extra special token", special=True) for t in listed]
        elif listed is not None:
            raise UserError(f"{path}: extra special tokens should be a list, got {listed!r}")
    own = [k for k in settings if k.endswith("_token") and k not in SPECIAL_NAMES]
    for name in [*SPECIAL_NAMES, *own]:
        value = settings.get(name)
        if value is not None and (name in SPECIAL_NAMES or isinstance(value, str)):
            named[name] = _token(value, where, name, special=True)
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" not in config:
        known = {t.content for t in (*named.values(), *extra)}
        path = folder / "added_tokens.json"
        for content, i in _json_object(path).items():
            if not _is_id(i) or not content:
                raise UserError(f"{path}: expected an object of tokens and their ids")
            special = content in known
            added[i] = AddedToken(content, special=special, normalized=not special)
        path = folder / "tokenizer.json"
        listed = _json_object(path).get("added_tokens") or []
        if not isinstance(listed, list):
            raise UserError(f"{path}: added_tokens should be a list")
        for value in listed:
            i = value.get("id") if isinstance(value, dict) else None
            if not _is_id(i):
                raise UserError(f"{path}: added_tokens has an entry without an id: {value!r}")
            added[i] = _token(value, path, f"added token {i}")  # type: ignore[index]
    elif not isinstance(described, dict):
        raise UserError(f"{where}: added_tokens_decoder should be an object")
    for key, value in (described or {}).items():
        if not (str(key).isascii() and str(key).isdecimal()) or not isinstance(value, dict):
            raise UserError(f"{where}: added_tokens_decoder entry {key!r} is malformed")
        added[int(key)] = _token(value, where, f"added_tokens_decoder entry {key!r}")
    by_content = {t.content: t for t in added.values()}
    named = {name: by_content.get(t.content) or t for name, t in named.items()}
    return _Special(added, named, extra)


def _token(value: Any, path: Path, what: str, special: bool = False) -> AddedToken:
    """A token written as a string, or as an object with its flags."""
    given = value if isinstance(value, dict) else {"content": value}
    content = given.get("content")
    if not isinstance(content, str) or not content:
        raise UserError(f"{path}: {what} is malformed, expected a token or an object with content")
    flags = {k: given[k] for k in _FLAGS if given.get(k) is not None}
    if not all(isinstance(f, bool) for f in flags.values()):
        raise UserError(f"{path}: {what} is malformed, its flags should be true or false")
    # The library can't hold a lone surrogate.
    return _build(path, AddedToken, content, **{"special": special} | flags)


def _add(tokenizer: Tokenizer, tokens: _Special, folder: Path) -> None:
    """Add what the settings describe, with their flags, to what the tokenizer has."""
    names = {t.content for t in tokens.named.values()}
    wanted = [t for _, t in sorted(tokens.added.items())]
    known = {t.content for t in (*tokenizer.get_added_tokens_decoder().values(), *wanted)}
    for token in (*tokens.named.values(), *tokens.extra):
        if token.content not in known:
            wanted.append(token)
            known.add(token.content)
    for token in wanted:
        token.special = token.special or token.content in names
    tokenizer.add_tokens(wanted)
    for i, token in sorted(tokens.added.items()):
        got = tokenizer.token_to_id(token.content)
        if got != i:
            raise UserError(
                f"{folder}: token {token.content!r} has id {i} in the added tokens, "
                f"but the vocabulary makes it {got}; the tokenizer files disagree"
            )


def _as_qwen2(tokenizer: Tokenizer, tokens: _Special, config: dict) -> None:
    """What Qwen2's tokenizer does beyond its files."""
    spellings = {n: t.content for n, t in tokens.named.items()}
    for name in ("unk_token", "eos_token", "pad_token"):
        if name not in config:
            spellings.setdefault(name, "<|endoftext|>")
    listed = dict.fromkeys([*spellings.values(), *(t.content for t in tokens.extra)])
    tokenizer.add_tokens([AddedToken(t, special=True) for t in listed])
    around = [
        spellings.get(n) if config.get(f"add_{n}") else None for n in ("bos_token", "eos_token")
    ]
    if any(around):
        before, after = ([f"{t}:0"] if t else [] for t in around)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A:0", *after],
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in around if t],
        )


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
