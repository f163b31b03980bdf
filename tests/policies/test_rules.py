"""Every policy commits what its published rule says, for the reason it says."""

from pathlib import Path

import pytest

from leapjax.policies import POLICIES
from tests.policies.batches import check_rule
from tests.policies.transcription import RULES


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_has_its_rule(name):
    """Here, or in a file of its own."""
    own = Path(__file__).parent / f"test_{name}.py"
    assert name in RULES or "published_rule" in own.read_text()


@pytest.mark.parametrize("name", RULES)
def test_commit_is_the_published_rule(name):
    check_rule(name, RULES[name])
