"""Fixed schedule: the positions with the lowest entropy first.

Source: Dream (arXiv 2508.15487), `entropy`.
"""

from leapjax.policies.base import Policy, best_first
from leapjax.policies.parameters import SCHEDULED

POLICY = Policy(
    name="entropy",
    source="Dream (arXiv 2508.15487), `entropy`",
    commit=best_first(lambda proposal, info: -proposal.entropy),
    parameters=SCHEDULED,
    needs=frozenset({"entropy"}),
)
