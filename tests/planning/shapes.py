"""What the tests of planning plan for."""

from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.planning import models


def program(name="llada-8b", cache="dual", length=768, refresh_group=4, block_length=None):
    """The decode of a preset: a prompt of 512, a canvas of 256."""
    return program_for(
        DecodeConfig(gen_length=256, cache=cache, block_length=block_length),
        models.find(name),
        length=length,
        dtype="bfloat16",
        eot_token_id=None,
        refresh_group=refresh_group,
    )
