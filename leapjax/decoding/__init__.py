"""The pure, jitted decode: state, proposal, policy decision, one while loop."""

from leapjax.decoding.loop import decode, refill_jit, run, run_jit
from leapjax.decoding.options import with_options
from leapjax.decoding.program import Program, program_for
from leapjax.decoding.state import NOISE_VERSION, DecodeState, initial_state, row_arrays, stack_rows
from leapjax.decoding.step import step

__all__ = [
    "NOISE_VERSION",
    "DecodeState",
    "Program",
    "decode",
    "initial_state",
    "program_for",
    "refill_jit",
    "row_arrays",
    "run",
    "run_jit",
    "stack_rows",
    "step",
    "with_options",
]
