"""The kinds of network behind one interface: transformers, and hidden Markov chains.

A kind is a module with `hidden_states`, `head` and `has_summary`. Caches, training and whatever
else asks for attention or layers is the transformer's alone.
"""

from typing import Any

from leapjax.models import chain, shadow, transformer
from leapjax.models.config import ModelConfig


def network(config: ModelConfig) -> Any:
    """The module that computes a model's logits."""
    return transformer if config.has_attention else chain


def rechecker(config: ModelConfig) -> Any:
    """The module with the model's `shadowed_states`."""
    return shadow if config.has_attention else chain
