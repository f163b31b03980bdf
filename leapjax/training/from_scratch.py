"""The `config.json` of a model that is trained from scratch, by family.

A run's `model` key overrides what is here; the tokenizer says vocabulary size and special ids.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from leapjax.config import check_keys
from leapjax.errors import UserError

# Each key that a family has; those that are null and that the tokenizer knows come from there.
_CONFIGS = json.loads(files("leapjax").joinpath("data/from-scratch.json").read_text("utf-8"))
MODEL_TYPES = tuple(config["model_type"] for config in _CONFIGS.values())


def config(
    given: Mapping[str, Any], tokenizer: Mapping[str, Any], balance: float = 0.0
) -> dict[str, Any]:
    """The `config.json` of a run's new model.

    `given` is the run's `model`, whose `model_type` chooses the family (LLaDA without it);
    `tokenizer` holds vocabulary size and special ids by their keys. A mixture of experts needs
    `balance` above 0.

    >>> made = config({"model_type": "sdar", "block_size": 8}, {"vocab_size": 40})
    >>> made["block_size"], made["num_key_value_heads"], made["vocab_size"]
    (8, 5, 40)
    """
    kind = str(given.get("model_type", "llada")).lower()
    if kind not in _CONFIGS:
        check_keys([given["model_type"]], "model", MODEL_TYPES, "model_type")
    if kind == "lladamoe" and not balance:
        raise UserError(
            "balance is 0; a mixture of experts that is trained from scratch needs a loss that "
            "balances the load of its experts: set balance, for example to 0.01"
        )
    base = _CONFIGS[kind]
    check_keys(given, "model", base, "key")
    raw = base | {k: v for k, v in tokenizer.items() if k in base} | dict(given)
    for shared, heads in (
        ("n_kv_heads", "n_heads"),
        ("num_key_value_heads", "num_attention_heads"),
    ):
        if shared in raw:
            raw[shared] = raw[shared] or raw[heads]
    if kind == "lladamoe":
        raw["moe_layer_freq"] = raw["moe_layer_freq"] or [1] * int(raw["num_hidden_layers"])
    return raw
