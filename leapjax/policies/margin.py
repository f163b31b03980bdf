"""Fixed schedule: the widest lead over the second-best token first.

Source: arXiv 2502.06768, and Dream's `topk_margin`.
"""

from leapjax.policies.base import Policy, best_first
from leapjax.policies.parameters import SCHEDULED

POLICY = Policy(
    name="margin",
    source="arXiv 2502.06768, and Dream's `topk_margin`",
    commit=best_first(lambda proposal, info: proposal.margin),
    parameters=SCHEDULED,
    needs=frozenset({"margin"}),
)
