"""SDAR's entropy rule: cumulative sums one after the other."""

from tests.policies.batches import check_rule, open_positions


def published_rule(row):
    """Ascending entropies; as many as there are sums below the bound, at least one."""
    order = sorted(open_positions(row), key=lambda i: row["entropy"][i])  # stable
    sums = [sum(row["entropy"][i] for i in order[: k + 1]) for k in range(len(order))]
    k = sum(x < row["own"]["eb_threshold"] for x in sums)
    return dict.fromkeys(order[:k], "anchor") or dict.fromkeys(order[:1], "top1")


def test_commit_is_the_published_rule():
    check_rule("entropy_bounded", published_rule)
