"""What is decoded while it is timed: random prompts under a fixed schedule.

With a fixed schedule every machine, and every cache, does the same number of steps.
"""

import dataclasses

import numpy as np

from leapjax.caches import CACHES
from leapjax.config import DecodeConfig
from leapjax.models.config import ModelConfig
from leapjax.serve.engine import Engine
from leapjax.types import Request


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch to decode."""

    cache: str  # KV cache
    batch: int  # rows decoded at once
    prompt_length: int = 32  # tokens
    gen_length: int = 64  # canvas, tokens
    block_length: int = 32  # block, tokens
    tokens_per_step: int = 4  # positions that the schedule commits in a pass

    @property
    def columns(self) -> int:
        """T; nothing is padded."""
        return self.prompt_length + self.gen_length

    @property
    def stores(self) -> bool:
        """Keys and values are kept, so that most passes compute the window alone."""
        return CACHES[self.cache].stores

    def config(self, model: ModelConfig) -> DecodeConfig:
        """The decode options.

        `model`: the model that decodes; a block-causal one counts passes by block.
        """
        blocks = self.gen_length // self.block_length
        per_block = self.gen_length // self.tokens_per_step // blocks
        return DecodeConfig(
            policy="low_confidence",
            **passes(model, per_block, blocks),
            gen_length=self.gen_length,
            block_length=self.block_length,
            cache=self.cache,
            early_stop=False,
        )

    def requests(self, model: ModelConfig, count: int | None = None) -> list[Request]:
        """Requests with random prompts. `count`: how many; default: a batch."""
        prompts = random_prompts(model, count or self.batch, self.prompt_length)
        config = self.config(model)
        return [Request(id=str(i), ids=ids, config=config) for i, ids in enumerate(prompts)]


def passes(model: ModelConfig, per_block: int, blocks: int) -> dict[str, int]:
    """The option of a fixed schedule that a model reads.

    >>> from leapjax.testing import tiny_config
    >>> passes(tiny_config("llada"), 4, 8), passes(tiny_config("sdar"), 4, 8)
    ({'steps': 32}, {'steps_per_block': 4})
    """
    if model.block_causal:
        return {"steps_per_block": per_block}
    return {"steps": per_block * blocks}


def random_prompts(
    model: ModelConfig, count: int, length: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Prompts of random tokens, special ids excepted.

    `count`: prompts; `length`: tokens of each.
    """
    special = {model.mask_token_id, model.eos_token_id, model.pad_token_id}
    allowed = [i for i in range(min(model.vocab_size, 256)) if i not in special]
    rng = np.random.default_rng(seed)
    return [tuple(row) for row in rng.choice(allowed, (count, length)).tolist()]


def uneven_requests(model: ModelConfig, cache: str, count: int) -> list[Request]:
    """Requests whose rows take 8 to 64 passes (8x spread), by a schedule of their own.

    `count`: requests; their passes are drawn uniformly.
    """
    per_block = np.random.default_rng(1).integers(1, 9, count)
    return [
        dataclasses.replace(request, config=request.config.replace(**passes(model, int(n), 8)))
        for request, n in zip(
            Case(cache, 1, 32, 64, 8, 1).requests(model, count), per_block, strict=True
        )
    ]


def ragged_requests(model: ModelConfig, cache: str, count: int) -> list[Request]:
    """Requests whose rows begin their blocks at different times, 8 tokens a step on average.

    Prompts of 97 to 128 tokens, which need one program; canvas 256 in blocks of 32. Each row takes
    2 to 6 passes a block, by a schedule of its own.
    """
    rng = np.random.default_rng(2)
    return [
        dataclasses.replace(
            request,
            ids=request.ids[: int(rng.integers(97, 129))],
            config=request.config.replace(**passes(model, int(rng.integers(2, 7)), 8)),
        )
        for request in Case(cache, 1, 128, 256, 32, 8).requests(model, count)
    ]


def stream(engine: Engine, requests: list[Request]) -> int:
    """Decode requests to their end."""
    before = engine.progress.passes
    for _ in engine.stream(requests):
        pass
    return engine.progress.passes - before
