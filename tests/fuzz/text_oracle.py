"""Ids and texts of a mutated folder, by transformers' own reader of tokenizer files."""

import json
import random

from leapjax import UserError
from tests.fuzz import text_inputs
from tests.fuzz.case import GOLDEN

_BESIDE = ("lstrip", "rstrip", "single_word", "normalized")
_HOME = {"PreTrainedTokenizerFast", "DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"}


class Differs(AssertionError):
    """Ours and the oracle's answers are not the same."""


def tokenizer(folder):
    """transformers' tokenizer of a folder, no code of the folder run."""
    import transformers

    kind = transformers.PreTrainedTokenizerFast
    if not (folder / "tokenizer.json").exists():
        kind = transformers.Qwen2Tokenizer  # what Dream's own class is made after
    config = _object(folder / "tokenizer_config.json")
    # Beside tokenizer.json, version 4 let the class be; version 5 makes some anew.
    named = None if (folder / "tokenizer.json").exists() else config.get("tokenizer_class")
    if isinstance(named, str) and named not in _HOME and hasattr(transformers, named):
        kind = getattr(transformers, named)
    more = {}
    if config.get("chat_template") is None and not (folder / "chat_template.jinja").exists():
        # transformers reads this file for processors only; leapjax for every model.
        if (template := _object(folder / "chat_template.json").get("chat_template")) is not None:
            more["chat_template"] = template
    theirs = kind.from_pretrained(folder, **more)
    declared = {t["content"]: int(i) for i, t in (config.get("added_tokens_decoder") or {}).items()}
    for content, i in (declared or _object(folder / "added_tokens.json")).items():
        # It numbers anew what it can't append; the model was trained with the files' numbers.
        assert theirs.convert_tokens_to_ids(content) == i, f"{content!r} is {i} in the files"
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        # Of named tokens its Qwen2Tokenizer forgets how blanks beside them count.
        read = theirs.added_tokens_decoder[int(i)]
        assert all(getattr(read, k) == token[k] for k in _BESIDE if k in token), read
    return theirs


def _object(path):
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _spellings(checkpoint):
    raw = json.loads((GOLDEN / checkpoint / "tokenizer_config.json").read_text())
    return [t["content"] for t in raw["added_tokens_decoder"].values()]


def _same(what, given, ours, theirs):
    if ours != theirs:
        raise Differs(f"{what} of {given!r}: {ours!r}, transformers has {theirs!r}")


def compare(case, codec, model, theirs):
    """Encode, decode and render by both; raises `Differs`.

    Args:
      case: for its seed of texts.
      codec: ours.
      model: the `ModelConfig`, whose mask, eos and pad ids have no text whatever the files say.
      theirs: transformers' tokenizer.
    """
    rng = random.Random(case.extra.get("text_seed", 0))
    for text in text_inputs.texts(rng, _spellings(case.checkpoint)):
        ids = theirs.encode(text, add_special_tokens=False)
        _same("ids", text, codec.encode(text, control=True), ids)
        _same("prompt ids", text, codec.encode_prompt(text, raw=True), theirs.encode(text))
        ids = [
            i for i in ids if i not in (model.mask_token_id, model.eos_token_id, model.pad_token_id)
        ]
        _same("text", ids, codec.decode(ids), theirs.decode(ids, skip_special_tokens=True))
    own = {model.mask_token_id, model.eos_token_id, model.pad_token_id}
    for _ in range(4):
        ids = [rng.randrange(codec.size) for _ in range(12)]
        ids = [i for i in ids if i not in own]
        _same("text", ids, codec.decode(ids), theirs.decode(ids, skip_special_tokens=True))
    if codec.is_instruct != bool(theirs.chat_template):
        raise Differs(
            f"a chat template: {codec.is_instruct}, transformers has {theirs.chat_template!r}"
        )
    if not codec.is_instruct:
        return
    spelled = [*text_inputs.PLAIN[:6], *(f"a {s} b" for s in _spellings(case.checkpoint))]
    for contents in (text_inputs.PLAIN, spelled):
        for messages in text_inputs.conversations(rng, contents):
            _render(codec, theirs, messages, ids=contents is text_inputs.PLAIN)


def _render(codec, theirs, messages, ids):
    try:
        ours = codec.render_chat(messages)
    except UserError:
        return
    try:
        want = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as e:  # noqa: BLE001 - whatever a template does there
        if "no default specified" in str(e):
            return  # one template alone is taken, whatever its name
        raise Differs(f"chat of {messages!r}: {ours!r}, transformers refuses: {e!r}") from e
    _same("chat", messages, ours, want)
    added = [t.content for t in theirs.added_tokens_decoder.values()]
    if ids and not any(t in m["content"] for m in messages for t in added if t):
        want = theirs.encode(want, add_special_tokens=False)
        _same("chat ids", messages, codec.encode_chat(messages), want)
