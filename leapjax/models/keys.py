"""Read a family's `config.json` key by key and refuse unknown keys.

Ignoring a key that changes the computation would silently give wrong logits. So a family declares
the keys that it reads, the keys that it supports at some values only, and the harmless ones.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from leapjax.errors import UserError

# Keys that transformers writes into any config.json and that no forward pass of a decoder reads:
# provenance, special ids of the tokenizer, classifier heads, storage, generation defaults.
# Source: transformers' PretrainedConfig, 4.46 to 5.24.
HUB_KEYS = frozenset(
    """
    model_type architectures auto_map transformers_version transformers.js_config
    _name_or_path name_or_path _commit_hash _from_model_config unsloth_version unsloth_fixed
    torch_dtype dtype use_bfloat16 torchscript return_dict use_return_dict
    output_hidden_states output_attentions use_cache
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    attn_implementation _experts_implementation experts_implementation
    bos_token_id sep_token_id decoder_start_token_id tokenizer_class prefix
    id2label label2id num_labels problem_type finetuning_task task_specific_params
    initializer_range attention_dropout hidden_dropout embd_pdrop resid_pdrop
    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens chunk_size_feed_forward
    """.split()
)
# key -> (supported values, the original's default).
_HUB_ONLY: dict[str, tuple[tuple, Any]] = {
    "add_cross_attention": ((False, None), False),
    "cross_attention_hidden_size": ((None,), None),
    "is_decoder": ((False, None), False),
    "is_encoder_decoder": ((False, None), False),
    "pruned_heads": (({}, None), None),
    "tie_encoder_decoder": ((False, None), False),
}
# Where config.json lacks these, `leapjax.checkpoint.read_config` reads the tokenizer's files.
SPECIAL_IDS = ("mask_token_id", "eos_token_id", "pad_token_id")
_LARGEST = 2**53  # largest whole number; a float64 holds it exactly
_REQUIRED: Any = object()


class Keys:
    """The keys of one `config.json`, read by type; `done` refuses unread keys.

    A key without a `default` is required; with `null` it may be null, and is None. `harmless` keys
    of the family do not affect the forward pass.
    """

    def __init__(self, raw: Mapping[str, Any], family: str, harmless: Iterable[str] = ()):
        self._raw, self._family = raw, family
        self._known = {*HUB_KEYS, *harmless}
        if raw.get("quantization_config") is not None:
            raise UserError(
                "config.json: quantization_config: quantised checkpoints are not supported; use "
                "the original one (--quantize int8 rounds it after loading)"
            )
        self._known.add("quantization_config")
        self.only(_HUB_ONLY)

    def _get(self, name: str, default: Any) -> Any:
        self._known.add(name)
        if name not in self._raw and default is _REQUIRED:
            more = (
                ", and the tokenizer's files don't tell it; add it" if name in SPECIAL_IDS else ""
            )
            raise UserError(f"config.json: key {name!r} is missing{more}")
        return self._raw.get(name, default)

    def whole(
        self, name: str, default: Any = _REQUIRED, *, null: bool = False, least: int = 1
    ) -> Any:
        """A whole number, at least `least`."""
        value = self._get(name, default)
        if (value is None and null) or (name not in self._raw):
            return value
        if type(value) is not int or not least <= value <= _LARGEST:
            self.refuse(name, value, f"a whole number of at least {least}")
        return value

    def real(self, name: str, default: Any = _REQUIRED, *, null: bool = False) -> Any:
        """A number above 0, within float32's range."""
        value = self._get(name, default)
        return None if value is None and null else self._real(name, value)

    def wholes(self, name: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers; `null` is an empty one."""
        value = self._get(name, default)
        value = [] if value is None else value
        if not isinstance(value, list) or not all(type(number) is int for number in value):
            self.refuse(name, value, "a list of whole numbers")
        return tuple(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; `null` is false, as in the originals' Python."""
        value = self._get(name, default)
        if value is not None and type(value) is not bool:
            self.refuse(name, value, "true or false")
        return bool(value)

    def ignore(self, name: str) -> None:
        """Allow any value of a key that this config makes harmless."""
        self._known.add(name)

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids: one, or a list; () if the key is absent or `null`."""
        return token_ids(self._get(name, None), f"config.json: {name}")

    def only(self, table: Mapping[str, tuple[tuple, Any]]) -> None:
        """Refuse unsupported values; key -> (supported values, the original's default)."""
        for name, (supported, absent) in table.items():
            value = self._get(name, absent)
            if not any(type(value) is type(s) and value == s for s in supported):
                if name not in self._raw:
                    raise UserError(
                        f"config.json: key {name!r} is missing, which to {self._family} means "
                        f"{shown(absent)}; supported is {shown(supported[0])} only"
                    )
                raise UserError(
                    f"config.json: {name} is {shown(value)}; {self._family} is supported with "
                    f"{name} = {shown(supported[0])} only"
                )

    def layer_types(self, n_layers: int, same: Sequence[str] = ("full_attention",)) -> None:
        """Refuse a list of layer types unless every layer has full attention.

        `same` are layer types that mean full attention in this family.
        """
        kinds = self._get("layer_types", None)
        if kinds is None or (
            isinstance(kinds, list)
            and len(kinds) == n_layers
            and all(kind in [*same] for kind in kinds)
        ):
            return
        self.refuse("layer_types", kinds, f"{n_layers} times {' or '.join(map(repr, same))}")

    def rope_theta(self, default: Any = _REQUIRED) -> float:
        """The base of the rotary embedding, in any transformers version; refuses scaled RoPE.

        The key is `rope_theta` (version 4), or lies in `rope_parameters` (5) or `rope_scaling`.
        """
        found = self._rope("rope_theta")
        if not found and self._raw.get("rope_parameters") is not None:
            raise UserError("config.json: rope_parameters has no rope_theta; add the model's")
        return found or self.real("rope_theta", default)

    def rotary_share(self, default: Any = _REQUIRED) -> float:
        """The share of a head's dimensions that RoPE rotates, the leading ones; read it first.

        The key is `partial_rotary_factor`, where `rope_theta` can be. In a family that does not
        call this, RoPE rotates the whole head.
        """
        self._known.add(name := "partial_rotary_factor")
        share = self._rope(name) or self.real(name, default)
        if share > 1:
            self.refuse(name, share, "at most 1, the whole head")
        return share

    def _rope(self, wanted: str) -> float | None:
        """A number beside or in the objects of RoPE settings; None if no key gives it."""
        found = {wanted: self.real(wanted)} if wanted in self._raw else {}
        for name in ("rope_parameters", "rope_scaling"):
            given = self._get(name, None)
            if given is not None and wanted in (settings := self._settings(name, given)):
                found[f"{name}.{wanted}"] = settings[wanted]
        for name, value in found.items():
            if value != (first := next(iter(found.values()))):
                raise UserError(
                    f"config.json: {next(iter(found))} is {first}, but {name} is {value}; remove "
                    "the wrong one"
                )
        return next(iter(found.values()), None)

    def _settings(self, name: str, given: Any) -> dict[str, float]:
        """The numbers in one object of RoPE settings."""
        if not isinstance(given, dict):
            self.refuse(name, given, "an object")
        kinds = list(given.values())
        if kinds and all(isinstance(kind, dict) for kind in kinds):  # one object per layer type
            if any(kind != kinds[0] for kind in kinds):
                self.refuse(name, given, "the same settings for every kind of layer")
            name, given = f"{name}.{next(iter(given))}", kinds[0]
        numbers: dict[str, float] = {}
        for key, value in given.items():
            if key in ("rope_type", "type"):
                if value != "default":
                    self.refuse(f"{name}.{key}", value, "'default' (scaled RoPE is not supported)")
            elif key == "partial_rotary_factor" and key not in self._known:
                if type(value) is bool or value != 1:
                    self.refuse(f"{name}.{key}", value, "1")
            elif key in ("rope_theta", "partial_rotary_factor"):
                numbers[key] = self._real(f"{name}.{key}", value)
            else:
                self.refuse(f"{name}.{key}", value, "no such key (scaled RoPE is not supported)")
        return numbers

    def _real(self, name: str, value: Any) -> float:
        if type(value) not in (int, float) or not 1.2e-38 < value < 3.4e38:
            self.refuse(name, value, "a number above 0 that float32 holds")
        return float(value)

    def refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        """Report an unusable value."""
        raise UserError(f"config.json: {name} is {shown(value)}, expected {expected}")

    def done(self) -> None:
        """Refuse the first unread key."""
        for name in self._raw:
            if name not in self._known:
                raise UserError(
                    f"config.json: key {shown(name)} ({shown(self._raw[name])}) is not one that "
                    f"leapjax knows for {self._family}, so it may change what the model computes; "
                    "delete it if it doesn't"
                )


def token_ids(value: Any, what: str) -> tuple[int, ...]:
    """Token ids from JSON (one, or a list; () for `null`); `what` is its file and key."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i <= _LARGEST for i in listed):
        raise UserError(f"{what} is {shown(value)}, expected a token id or a list of them")
    return tuple(dict.fromkeys(listed))


def shown(value: Any) -> str:
    """A value as JSON on one line, at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
