"""Fixed schedule: positions in random order.

Source: arXiv 2502.09992 (LLaDA), random remasking.
"""

from leapjax.policies.base import Policy, best_first
from leapjax.policies.parameters import SCHEDULED

POLICY = Policy(
    name="random",
    source="arXiv 2502.09992 (LLaDA), random remasking",
    commit=best_first(lambda proposal, info: proposal.uniform),
    parameters=SCHEDULED,
    label="random order",
    needs=frozenset({"uniform"}),
)
