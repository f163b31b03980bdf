"""Fixed schedule: the most probable tokens first.

Source: arXiv 2502.09992 (LLaDA), low-confidence remasking.
"""

from leapjax.policies.base import Policy, best_first
from leapjax.policies.parameters import SCHEDULED

POLICY = Policy(
    name="low_confidence",
    source="arXiv 2502.09992 (LLaDA), low-confidence remasking",
    commit=best_first(lambda proposal, info: proposal.confidence),
    parameters=SCHEDULED,
    rows=(
        ("greedy", 1, "greedy, one token a step"),
        ("schedule-2", 2, "fixed schedule, 1/2 of the steps"),
        ("schedule-4", 4, "fixed schedule, 1/4 of the steps"),
        ("schedule-8", 8, "fixed schedule, 1/8 of the steps"),
    ),
)
