"""Models: the shape of a family's checkpoint, its table of weights, and the forward pass."""

from leapjax.models.config import ModelConfig
from leapjax.models.families import FAMILIES, param_shapes, parameter_count, parse_config, table

__all__ = ["FAMILIES", "ModelConfig", "param_shapes", "parameter_count", "parse_config", "table"]
