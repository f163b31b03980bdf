"""Model families: one file each, one line in `FAMILIES`.

A family's module has `MODEL_TYPES` (names in config.json), `parse` (config.json -> ModelConfig),
`HUB` (short names of weights -> the hub's) and `IGNORED` (hub tensors to skip). It has
`TEMPLATE_OPTIONS` if the original code sets variables of the chat template; `from_name` and
`from_generation` if the checkpoint's name or generation_config.json supplies what config.json
lacks; `claims`, which says which files are its own, if another family shares a model type;
`weights` (ModelConfig -> its table) if it is not a transformer.
"""

import math
from collections.abc import Mapping
from typing import Any

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.families import a2d, chain, dream, fast_dllm_v2, llada, llada2, llada_moe, sdar
from leapjax.models.keys import shown
from leapjax.models.weights import Weight, transformer_weights

FAMILIES = {
    "llada": llada,
    "dream": dream,
    "a2d": a2d,
    "sdar": sdar,
    "fast_dllm_v2": fast_dllm_v2,
    "llada_moe": llada_moe,
    "llada2": llada2,
    "chain": chain,
}


def family_module(raw: Mapping[str, Any]) -> Any:
    """The module of a config.json's family, or None for an unknown one."""
    kind = str(raw.get("model_type")).lower()
    found = [f for f in FAMILIES.values() if kind in f.MODEL_TYPES]
    claimed = [f for f in found if hasattr(f, "claims") and f.claims(raw)]
    return next(iter(claimed or [f for f in found if not hasattr(f, "claims")]), None)


def parse_config(raw: dict) -> ModelConfig:
    """Find the model family of a hub `config.json` and read the model's shape.

    Raises `UserError` for an unknown family, a missing or mistyped key or an unsupported setting.
    """
    if not isinstance(raw, dict):
        raise UserError("config.json: expected a JSON object")
    known = dict.fromkeys(t for family in FAMILIES.values() for t in family.MODEL_TYPES)
    if "model_type" not in raw:
        raise UserError(f"config.json: key 'model_type' is missing (known: {', '.join(known)})")
    family = family_module(raw)
    if family is None:
        raise UserError(
            f"config.json: model_type {shown(raw['model_type'])} is not a known family (known: "
            f"{', '.join(known)})"
        )
    return family.parse(raw)


def template_options(config: ModelConfig) -> Mapping[str, Any]:
    """Variables of the chat template that a family's originals set when they decode."""
    return getattr(FAMILIES[config.family], "TEMPLATE_OPTIONS", {})


def table(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of a model's weights, in the order of its parameters.

    >>> from leapjax.testing import tiny_config
    >>> weights = {weight.name: weight for weight in table(tiny_config())}
    >>> weights["layers.gate"].shape, weights["layers.gate"].axes
    ((2, 16, 24), (None, 'width', 'mlp'))
    """
    family = FAMILIES[config.family]
    if config.has_attention:
        return transformer_weights(config, family.HUB)
    return family.weights(config)


def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every parameter, as a nested dict with one inner dict per run.

    Matrices are (in, out), layers are stacked along a leading L axis, `embed` and `head` are
    (V, D). Optional leaves (biases, untied head) exist only if the config has them.

    >>> from leapjax.testing import tiny_config
    >>> shapes = param_shapes(tiny_config())
    >>> shapes["embed"], shapes["layers"]["q"]
    ((40, 16), (2, 16, 16))
    """
    tree: dict[str, Any] = {}
    for weight in table(config):
        run, _, short = weight.name.rpartition(".")
        (tree.setdefault(run, {}) if run else tree)[short] = weight.shape
    return tree


def parameter_count(config: ModelConfig) -> str:
    """The number of parameters, as `8.0 B`, `2.6 M` or `900`.

    >>> from leapjax.testing import tiny_config
    >>> parameter_count(tiny_config())
    '5.7 k'
    """
    number = sum(math.prod(weight.shape) for weight in table(config))
    for unit, name in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return str(number)
