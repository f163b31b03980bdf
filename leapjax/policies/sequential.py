"""Fixed schedule: positions from left to right.

Source: SDAR (arXiv 2510.06303), `sequential`; checked against the authors' generate.py.
"""

import jax.numpy as jnp

from leapjax.policies.base import Policy, best_first
from leapjax.policies.parameters import SCHEDULED

POLICY = Policy(
    name="sequential",
    source="SDAR, arXiv 2510.06303, sequential",
    commit=best_first(lambda proposal, info: -info.columns.astype(jnp.float32)),
    parameters=SCHEDULED,
)
