"""`TextCodec`: prompts to token ids, token ids to text.

text ──────────────── encode ─▶ ids          control tokens parsed, or kept as text
messages ─ template ─ encode ─▶ ids          the template's control tokens parsed only
ids ───────────────── decode ─▶ text         special tokens left out
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.text import files
from leapjax.text.control import ControlTokens, map_strings, strings_in, unused_character
from leapjax.text.template import ChatTemplate

# A role becomes part of the template's own text, next to its control tokens, so it is
# one of the words that chat formats use.
ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython")


class TextCodec:
    """Text to ids and back for one checkpoint.

    Args:
      read: what the tokenizer files say.
      model: the model's config, for its mask, eos and pad ids.

    Attributes:
      size: one more than the largest id that the tokenizer knows; ids from there to the
        model's vocabulary size have no text.
      is_instruct: there is a chat template.
      eot_id: the token that the template puts after an assistant's turn, or None.
      special_ids: ids that `decode` leaves out.
    """

    def __init__(self, read: files.TokenizerFiles, model: ModelConfig):
        self._full = read.tokenizer
        added = self._full.get_added_tokens_decoder()
        # Added runs of blanks are ordinary text; everything else added is control.
        control = {i: t for i, t in added.items() if t.special or not t.content.isspace()}
        self._added = ControlTokens(added)
        self._control = ControlTokens(control)
        self._ordinary = ControlTokens({i: t for i, t in added.items() if i not in control})
        self._control_ids = frozenset(control)
        self._plain = Tokenizer(self._full.model)  # the same vocabulary, shared
        self._plain.normalizer = self._full.normalizer
        self._plain.pre_tokenizer = self._full.pre_tokenizer
        vocabulary = self._full.get_vocab(with_added_tokens=True)
        self.size = 1 + max(vocabulary.values(), default=-1)
        self._has_post_processor = self._full.post_processor is not None
        self.special_ids = read.special | {
            model.mask_token_id,
            model.eos_token_id,
            model.pad_token_id,
        }
        self._template = None if read.template is None else ChatTemplate(read.template, read.names)
        self.is_instruct = self._template is not None
        self.eot_id = self._find_eot()
        bos = read.names.get("bos_token")
        self.bos_id = None if bos is None else read.tokenizer.token_to_id(bos)

    def encode(self, text: str, control: bool) -> list[int]:
        """Token ids of a text, with nothing added around it.

        Args:
          text: any text.
          control: text that spells a control token becomes that token; otherwise it
            stays text.

        Raises:
          UserError: the text has lone surrogates, which no tokenizer can encode.
        """
        _check_text(text)
        if control:
            return self._full.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        for part in self._ordinary.split(text):
            ids += [part] if isinstance(part, int) else self._encode_plain(part)
        return ids

    def encode_prompt(self, text: str, raw: bool = False) -> list[int]:
        """Token ids of a prompt.

        Args:
          text: the user's text.
          raw: parse control tokens and use no template. Otherwise, an instruct model sees
            the text as a user's message, a base model as it is, without control tokens.

        Raises:
          UserError: the text can't be encoded.
        """
        if raw:
            _check_text(text)
            return self._full.encode(text, add_special_tokens=True).ids
        if self.is_instruct:
            return self.encode_chat([{"role": "user", "content": text}])
        ids = self.encode(text, control=False)
        # What the tokenizer puts around every text (a bos token, say) belongs to it here too.
        if self._has_post_processor:
            before, after = self._around()
            ids = [*before, *ids, *after]
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next turn begins.

        Args:
          messages: objects with `role` and `content`.

        Raises:
          UserError: no template, malformed messages, or a conversation that the template
            refuses.
        """
        rendered, mark = self._render(messages)
        ids: list[int] = []
        for part in self._added.split(rendered):
            if isinstance(part, int):
                ids.append(part)
            elif part := part.replace(mark, ""):
                ids += self._encode_plain(part)
        return ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text that `encode_chat` encodes, for reading."""
        rendered, mark = self._render(messages)
        return rendered.replace(mark, "")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens and ids without a token leave nothing."""
        kept = [int(i) for i in ids if int(i) not in self.special_ids]
        return self._full.decode(kept, skip_special_tokens=True)

    def tokens_of(self, ids: Sequence[int]) -> list[str]:
        """A piece of text for each id, for display; special tokens by their spelling."""
        pieces = []
        for i in map(int, ids):
            spelling = self._full.id_to_token(i)
            if spelling is None:
                pieces.append(f"<{i}>")
            elif i in self._control_ids or i in self.special_ids:
                pieces.append(spelling)
            else:
                pieces.append(self._full.decode([i], skip_special_tokens=False))
        return pieces

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of a text that holds no control tokens, whatever it spells."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if self._control_ids.isdisjoint(ids):
            return ids
        # A vocabulary of whole words may hold a control token as a word; inside it, cut.
        ids, last = [], 0
        for cut in [*self._control.cuts(text), len(text)]:
            ids += self._plain.encode(text[last:cut], add_special_tokens=False).ids
            last = cut
        return ids

    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer's post-processor puts before and after a text."""
        bare = self._full.encode("a", add_special_tokens=False).ids
        ids = self._full.encode("a", add_special_tokens=True).ids
        for start in range(len(ids) - len(bare) + 1):
            if ids[start : start + len(bare)] == bare:
                return ids[:start], ids[start + len(bare) :]
        return [], []

    def _render(self, messages) -> tuple[str, str]:
        """A conversation through the template, and the guard character in it."""
        if self._template is None:
            raise UserError("the model has no chat template; give a prompt instead of messages")
        check_messages(messages)
        for text in strings_in(messages):
            _check_text(text)
        mark = unused_character([*strings_in(messages), self._template.source])
        guarded = []
        for message in messages:
            rest = {k: v for k, v in message.items() if k != "role"}
            changed = map_strings(rest, lambda text: self._control.guard(text, mark))
            guarded.append({"role": message["role"], **changed})
        return self._template.render(guarded), mark

    def _find_eot(self) -> int | None:
        if self._template is None:
            return None
        answer = "An answer."
        turns = [
            {"role": "user", "content": "A question?"},
            {"role": "assistant", "content": answer},
        ]
        try:
            text = self._template.render(turns, reply=False)
        except UserError:
            return None
        _, found, rest = text.rpartition(answer)
        first = next(iter(self._added.split(rest)), None) if found else None
        return first if isinstance(first, int) else None


def load_codec(folder: str | os.PathLike, model_config: ModelConfig) -> TextCodec | None:
    """Build the codec of a checkpoint from its files alone; no code in it is run.

    Args:
      folder: the checkpoint's folder.
      model_config: the model's config.

    Returns:
      The codec, or None where the folder has no tokenizer files.

    Raises:
      UserError: a tokenizer file is damaged.
    """
    read = files.read(Path(folder))
    return None if read is None else TextCodec(read, model_config)


def check_messages(messages: Any) -> None:
    """Refuse what is not a conversation.

    Args:
      messages: what somebody gave as messages.

    Raises:
      UserError: not a non-empty list of objects with a known `role` and a text `content`.
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
