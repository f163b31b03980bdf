"""One batch to decode, and who decodes it: the same for leapjax and for its opponents."""

import abc
import dataclasses
from typing import NamedTuple

from leapjax.caches import CACHES
from leapjax.config import DecodeConfig
from leapjax.models.config import ModelConfig


class Rule(NamedTuple):
    """LocalLeap's numbers, see `DecodeConfig`."""

    threshold: float
    relaxed_threshold: float
    radius: int


@dataclasses.dataclass(frozen=True)
class Job:
    """A batch of prompts to decode with LocalLeap."""

    prompts: tuple[tuple[int, ...], ...]  # token ids, a tuple a row
    # the options, thresholds among them; its cache is the implementation's to choose
    config: DecodeConfig
    # end each row after so many steps, finished or not; None decodes it all
    max_steps: int | None = None

    @property
    def rule(self) -> Rule:
        """The numbers in force."""
        return Rule(*(self.config.value(name) for name in Rule._fields))


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What an implementation made of a job."""

    tokens: list[list[int]]  # each row's canvas; the mask id where the limit on steps left it open
    steps: list[int]  # each row's steps
    full_passes: list[int]  # those over the whole sequence
    # turns of the implementation's loop over the batch; they don't count in `==`
    iterations: int = dataclasses.field(compare=False)


class Implementation(abc.ABC):
    """A decoder that is timed.

    `name`: for tables; `cache`: `none`, or `dual`: a full pass at a block's start, then passes over
    the block alone whose keys and values replace the cached ones.
    """

    def __init__(self, name: str, config: ModelConfig, cache: str):
        self.config, self.cache, self.stores = config, cache, CACHES[cache].stores
        self.name = f"{name}, {cache} cache" if self.stores else name

    def notes(self) -> str:
        """What a reader of the table should know."""
        return ""

    @abc.abstractmethod
    def decode(self, job: Job) -> Decoded:
        """Decode a batch to its end."""
