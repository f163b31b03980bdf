"""Tensors of a checkpoint by name, as a strict load has them."""

import numpy as np


class Weights:
    """All tensors must be used, each once, in the shape that the model gives it.

    Args:
      tensors: {name: float array}; buffers of RoPE are left out.
    """

    def __init__(self, tensors):
        self._left = {k: v for k, v in tensors.items() if not k.endswith("inv_freq")}

    def take(self, name, shape):
        value = self._left.pop(name)
        assert value.shape == shape, (name, value.shape, shape)
        return value

    def drop(self, name):
        self._left.pop(name, None)

    def done(self):
        assert not self._left, f"unexpected {sorted(self._left)}"


class Made(Weights):
    """Makes each tensor that a model takes: a random checkpoint in the original's own layout.

    Attributes:
      tensors: {name: float64 array}, all that was taken.
    """

    def __init__(self, seed):
        super().__init__({})
        self._rng, self.tensors = np.random.default_rng(seed), {}

    def take(self, name, shape):
        noise = self._rng.standard_normal(shape)
        if "norm" in name:
            value = 1 + 0.2 * noise
        else:
            value = 0.1 * noise if len(shape) == 1 else 1.2 * noise / max(shape[-1], 1) ** 0.5
        self.tensors[name] = value
        return value
