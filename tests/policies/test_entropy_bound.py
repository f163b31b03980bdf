"""EB-Sampler: the paper's sum, one k after the other."""

from tests.policies.batches import check_rule, open_positions


def rule(row):
    """The largest k whose entropies, but the largest, sum to at most gamma."""
    order = sorted(open_positions(row), key=lambda i: row["entropy"][i])  # stable
    best = 0
    for k in range(1, len(order) + 1):
        entropies = [row["entropy"][i] for i in order[:k]]
        if sum(entropies) - max(entropies) <= row["own"]["entropy_bound"]:
            best = k
    return {i: "anchor" for i in order[:best]}


def test_commit_is_the_published_rule():
    check_rule("entropy_bound", rule)
