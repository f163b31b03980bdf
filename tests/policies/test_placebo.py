"""LocalLeap's neighbourhoods around random open positions, against the rule in plain Python."""

from tests.policies.batches import check_rule, open_positions, reaches, surest


def published_rule(row):
    """One position at a time; the drawn are those of the largest noise, the left of equals."""
    left = open_positions(row)
    out = {i: "anchor" for i in left if reaches(row["confidence"][i], row["threshold"])}
    drawn = sorted(left, key=lambda i: (-row["uniform"][i], i))[: len(out)]
    for i in left:
        near = any(abs(i - d) <= row["radius"] for d in drawn)
        if near and row["confidence"][i] >= row["relaxed_threshold"]:
            out.setdefault(i, "propagated")
    if left:
        out.setdefault(surest(row), "top1")
    return out


def test_commit_is_the_published_rule():
    check_rule("placebo", published_rule)
