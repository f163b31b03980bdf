"""leapjax's side of the comparison."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from against_torch.job import Decoded, Implementation, Job
from leapjax.benchmarks import models
from leapjax.decoding import Program, initial_state, program_for
from leapjax.decoding.state import with_cache
from leapjax.loader import load
from leapjax.models.config import ModelConfig
from leapjax.ops import hardware
from leapjax.ops.arrangement import arrange
from leapjax.serve.lowering import compile_run
from leapjax.serve.sizes import bucket
from leapjax.testing import tiny_config, tiny_params
from leapjax.types import Request


class Leapjax(Implementation):
    """leapjax's compiled loop, as a lane runs it."""

    def __init__(self, params, config: ModelConfig, cache: str):
        super().__init__("leapjax", config, cache)
        self.params = arrange(params, config)
        self._compiled: dict[tuple[Program, int], Any] = {}

    def decode(self, job: Job) -> Decoded:
        """Decode a batch to its end."""
        b, config = len(job.prompts), job.config.replace(cache=self.cache)
        length = bucket(max(len(p) for p in job.prompts)) + config.gen_length
        program = program_for(
            config,
            self.config,
            length=length,
            dtype="float32",
            eot_token_id=None,
            refresh_group=hardware.defaults().refresh_group(length, "float32"),
        )
        if (program, b) not in self._compiled:
            self._compiled[program, b] = compile_run(self.params, program, b)
        requests = [Request(id=i, ids=p, config=config) for i, p in enumerate(job.prompts)]
        state = with_cache(jax.tree.map(jnp.asarray, initial_state(requests, program)), program)
        passes = 2**30 if job.max_steps is None else job.max_steps
        run = self._compiled[program, b]
        state = run(self.params, state, jnp.int32(passes), jnp.int32(b))
        return Decoded(
            np.asarray(state.tokens)[:, -config.gen_length :].tolist(),
            np.asarray(state.steps).tolist(),
            np.asarray(state.full_passes).tolist(),
            int(state.iteration),
        )


def weights(name: str) -> tuple[Any, ModelConfig]:
    """A model's parameters in float32, and its shape.

    `name`: `tiny`, `60m` (random weights whose logits are scaled so that confidences spread as a
    trained model's do), `embedded`, or the path of a LLaDA-shaped checkpoint.
    """
    if name in ("tiny", "60m"):
        config = models.MODEL_60M if name == "60m" else tiny_config()
        return tiny_params(config), config
    lm = load() if name == "embedded" else load(name)
    # Widened once, for everybody: this is about decoding, not about storage.
    return jax.tree.map(lambda x: x.astype(jnp.float32), lm.params), lm.config
