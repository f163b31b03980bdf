"""`TextCodec`: prompts to token ids, token ids to text.

text ──────────────── encode ─▶ ids          control tokens parsed, or kept as text
messages ─ template ─ encode ─▶ ids          control tokens where their author may write them
ids ───────────────── decode ─▶ text         special tokens left out
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.families import template_options as family_template_options
from leapjax.text import files, template
from leapjax.text.control import ControlTokens, strings_in
from leapjax.text.provenance import TEMPLATE, USER
from leapjax.text.template import ChatTemplate

# A role becomes part of the template's own text, next to its control tokens, so it is
# one of the words that chat formats use.
ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython")
_BEFORE = "\U0010ffff"  # not a character, so no text should hold it


class TextCodec:
    """Text to ids and back for one checkpoint.

    `model`: the model's config, for its mask, eos and pad ids, and its family's template options;
    `template_options`: variables of the chat template, over the family's. Raises UserError: the
    template does not compile, or does not read one of the options.

    Attributes:
      size: one more than the largest id that the tokenizer knows; ids from there to the
        model's vocabulary size have no text.
      is_instruct: there is a chat template.
      eot_id: the token that the template puts after an assistant's turn, or None.
      special_ids: ids that `decode` leaves out.
      template_options: variables of the chat template with which prompts are rendered.
    """

    def __init__(
        self,
        read: files.TokenizerFiles,
        model: ModelConfig,
        template_options: Mapping[str, Any] | None = None,
    ):
        self._full = read.tokenizer
        added = self._full.get_added_tokens_decoder()
        self._control = ControlTokens(added, read.special)
        self._plain = _without_added(self._full)
        # The same, with a token that stands for what came before.
        self._later = _without_added(self._full)
        self._later.add_special_tokens([_BEFORE])
        self._mask_id = model.mask_token_id
        spellings = {"[MASK]", self._full.id_to_token(self._mask_id) or "[MASK]"}
        masks = "|".join(map(re.escape, spellings))
        self._masks = re.compile(rf"(\\)?(?:{masks})(?:\*([0-9]{{1,6}}))?")
        self.size = read.size
        self._has_post_processor = self._full.post_processor is not None
        self._tidy = read.tidy
        self.special_ids = read.special | {
            model.mask_token_id,
            model.eos_token_id,
            model.pad_token_id,
        }
        self._template = None if read.template is None else ChatTemplate(read.template, read.names)
        self.is_instruct = self._template is not None
        reads = self._template.options if self._template else []
        check_template_options(template_options or {}, reads)
        usual = {k: v for k, v in family_template_options(model).items() if k in reads}
        self.template_options = usual | dict(template_options or {})
        self.eot_id = self._find_eot()
        bos = read.names.get("bos_token")
        self.bos_id = None if bos is None else read.tokenizer.token_to_id(bos)

    def encode(self, text: str, control: bool) -> list[int]:
        """Token ids of a text, with nothing added around it.

        `control`: text that spells a control token becomes that token; otherwise it stays text.
        Raises UserError: the text has lone surrogates, which no tokenizer can encode.
        """
        _check_text(text)
        if control:
            return self._full.encode(text, add_special_tokens=False).ids
        return self._encode_from(text, USER * len(text))

    def encode_prompt(self, text: str, raw: bool = False) -> list[int]:
        """Token ids of a prompt.

        `text`: the user's text. `raw`: parse control tokens and use no template. Otherwise, an
        instruct model sees the text as a user's message, a base model as it is, without control
        tokens.
        """
        if raw:
            _check_text(text)
            return self._full.encode(text, add_special_tokens=True).ids
        if self.is_instruct:
            return self.encode_chat([{"role": "user", "content": text}], self.template_options)
        ids = self.encode(text, control=False)
        # What the tokenizer puts around every text (a bos token, say) belongs to it here too.
        if self._has_post_processor:
            before, after = self._around()
            ids = [*before, *ids, *after]
        return ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next turn begins.

        `options`: variables of the template, such as `template_options`; None is none. Raises
        UserError: no template, malformed messages, or a conversation that the template refuses.
        """
        text, who = self._render(messages, options)
        _check_text(text)
        return self._encode_from(text, who)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that `encode_chat` encodes, for reading."""
        return self._render(messages, options)[0]

    def encode_infill(self, text: str, raw: bool = False) -> list[int]:
        """Token ids of a text with places to fill in, which hold the mask id.

        `text`: `[MASK]`, or the mask token as the checkpoint spells it, is one open position,
        `[MASK]*3` is three; behind a backslash it is text. No template is applied, and no token
        reaches across an open position. `raw`: parse control tokens. Raises UserError: no position
        is open, or the text can't be encoded.
        """
        _check_text(text)
        author = TEMPLATE if raw else USER
        before, after = self._around() if self._has_post_processor else ([], [])
        ids, last, literal = [*before], 0, ""
        for match in [*self._masks.finditer(text), None]:
            part = literal + text[last : match.start() if match else None]
            literal, last = "", match.end() if match else len(text)
            if match and match[1]:
                literal = part + match[0][1:]
                continue
            ids += self._encode_from(part, author * len(part), first=not ids)
            if match:
                count = int(match[2] or 1)
                if count < 1:
                    raise UserError(f"infill has {match[0]!r}; give a number from 1")
                ids += [self._mask_id] * count
        if self._mask_id not in ids:
            raise UserError(
                "infill holds no [MASK], so nothing is open; put it where text is wanted"
            )
        return [*ids, *after]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens and ids without a token leave nothing."""
        kept = [int(i) for i in ids if int(i) not in self.special_ids]
        text = self._full.decode(kept, skip_special_tokens=True)
        return _tidied(text) if self._tidy else text

    def tokens_of(self, ids: Sequence[int]) -> list[str]:
        """A piece of text for each id, for display; special tokens by their spelling."""
        pieces = []
        for i in map(int, ids):
            spelling = self._full.id_to_token(i)
            if spelling is None:
                pieces.append(f"<{i}>")
            elif i in self._control.ids or i in self.special_ids:
                pieces.append(spelling)
            else:
                pieces.append(self._full.decode([i], skip_special_tokens=False))
        return pieces

    def _encode_from(self, text: str, who: str, first: bool = True) -> list[int]:
        """Ids of a text, with control tokens where their author may write them.

        `who`: the author of each of its characters.
        """
        found = self._full.encode(text, add_special_tokens=False)
        meant = self._control.ids.isdisjoint(found.ids) or self._meant(text, who, found)
        if first and meant:
            return found.ids
        ids: list[int] = []
        for part in self._control.split(text, who):
            ids += [part] if isinstance(part, int) else self._encode_plain(part, first and not ids)
        return ids

    def _meant(self, text: str, who: str, found: Encoding) -> bool:
        """Whether every control token that the tokenizer found may be where it is."""
        for i, (start, end) in zip(found.ids, found.offsets, strict=True):
            if i in self._control.ids:
                content = self._full.id_to_token(i) or ""
                at = text.find(content, start, end)  # blanks beside it may be anybody's
                start, end = (start, end) if at < 0 else (at, at + len(content))
                if not self._control.allowed(i, who[start:end]):
                    return False
        return True

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        """Ids of a text that holds no control tokens, whatever it spells.

        `first`: nothing comes before it; some tokenizers put a blank there.
        """
        if first or _BEFORE in text:
            ids = self._plain.encode(text, add_special_tokens=False).ids
        else:
            ids = self._later.encode(_BEFORE + text, add_special_tokens=False).ids[1:]
        cuts = [] if self._control.ids.isdisjoint(ids) else self._control.cuts(text)
        if not cuts:
            return ids
        # A vocabulary of whole words may hold a control token as a word; inside it, cut.
        parts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        return [i for n, p in enumerate(parts) for i in self._encode_plain(p, first and n == 0)]

    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer's post-processor puts before and after a text."""
        bare = self._full.encode("a", add_special_tokens=False).ids
        ids = self._full.encode("a", add_special_tokens=True).ids
        for start in range(len(ids) - len(bare) + 1):
            if ids[start : start + len(bare)] == bare:
                return ids[:start], ids[start + len(bare) :]
        return [], []

    def _render(self, messages, options) -> tuple[str, str]:
        """A conversation through the template, and the author of each character."""
        if self._template is None:
            raise UserError("the model has no chat template; give a prompt instead of messages")
        check_messages(messages)
        for text in strings_in(messages):
            _check_text(text)
        return self._template.render(messages, options=options)

    def _find_eot(self) -> int | None:
        if self._template is None:
            return None
        answer = "An answer."
        turns = [
            {"role": "user", "content": "A question?"},
            {"role": "assistant", "content": answer},
        ]
        try:
            text, _ = self._template.render(turns, reply=False)
        except UserError:
            return None
        _, found, rest = text.rpartition(answer)
        ids = self._full.encode(rest, add_special_tokens=False).ids if found else []
        return next((i for i in ids[:1] if i in self._control.ids), None)


def load_codec(
    folder: str | os.PathLike,
    model_config: ModelConfig,
    template_options: Mapping[str, Any] | None = None,
) -> TextCodec | None:
    """Build the codec of a checkpoint from its files alone; no code in it is run.

    `template_options`: variables of the chat template, over the family's. Returns the codec, or
    None where the folder has no tokenizer files. Raises UserError: a tokenizer file is damaged, or
    the template does not read an option.
    """
    if (Path(folder) / "tokenizer_config.json").is_file():
        template.start()  # while the files are read
    read = files.read(Path(folder))
    if read is None:
        check_template_options(template_options or {}, [])
        return None
    return TextCodec(read, model_config, template_options)


def check_template_options(given: Any, reads: Sequence[str]) -> None:
    """Refuse options that a chat template does not read."""
    if not isinstance(given, Mapping):
        raise UserError(f"template_options should be an object of names and values, got {given!r}")
    for name in given:
        if name not in reads:
            known = f"it reads {', '.join(reads)}" if reads else "it reads none"
            raise UserError(
                f"template_options: the chat template reads no {str(name)[:80]!r}; {known}"
            )


def _tidied(text: str) -> str:
    """Text without the blanks that some tokenizers put before signs and contractions."""
    for blank in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(blank, blank.strip())
    return text


def _without_added(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of the same vocabulary, shared, that knows no added tokens."""
    plain = Tokenizer(tokenizer.model)
    plain.normalizer = tokenizer.normalizer
    plain.pre_tokenizer = tokenizer.pre_tokenizer
    return plain


def check_messages(messages: Any) -> None:
    """Refuse what is not a conversation.

    Raises UserError: not a non-empty list of objects with a known `role` and a text `content`.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise UserError("messages should be a list of objects with role and content")
    if not messages:
        raise UserError("messages is empty; give at least one message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise UserError(f"message {number} should be an object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                what = "has no" if key not in message else "needs a text as its"
                raise UserError(f"message {number} {what} {key}")
        if message["role"] not in ROLES:
            raise UserError(
                f"message {number}: role is {message['role']!r}; choose one of {', '.join(ROLES)}"
            )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UserError(
            f"the text has a lone surrogate at character {e.start + 1}, which is not valid "
            f"Unicode; remove it"
        ) from e
