"""Hidden Markov chains over tokens: models whose conditionals are known exactly.

A family of our own (`leapjax.chains` makes and fits them, `leapjax.models.chain` computes).
"""

from leapjax.models.attention import Absent
from leapjax.models.config import ModelConfig
from leapjax.models.keys import Keys
from leapjax.models.weights import LOG, Weight

MODEL_TYPES = ("chain",)
HUB = {name: f"chain.{name}" for name in ("initial", "transition", "emission", "head")}
IGNORED = ()


def parse(raw: dict) -> ModelConfig:
    """Read a chain's `config.json`: `states`, `vocab_size`, the special ids."""
    keys = Keys(raw, "chain")
    eos = keys.whole("eos_token_id", least=0)
    pad = keys.whole("pad_token_id", None, null=True, least=0)
    config = ModelConfig(
        family="chain",
        vocab_size=keys.whole("vocab_size"),
        d_model=keys.whole("states"),
        # Nothing reads what only a transformer has.
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=2,
        mlp_hidden_size=1,
        rope_theta=1.0,
        norm_eps=1.0,
        max_length=keys.whole("max_position_embeddings", 65536),
        mask_token_id=keys.whole("mask_token_id", least=0),
        eos_token_id=eos,
        pad_token_id=eos if pad is None else pad,
        attention=Absent(),
    )
    keys.done()
    return config


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of a chain's weights, float32 logarithms of probabilities."""
    s, v = config.d_model, config.vocab_size
    shapes = {"initial": (s,), "transition": (s, s), "emission": (s, v)}
    return tuple(Weight(n, x, (None,) * len(x), LOG, HUB[n]) for n, x in shapes.items())
