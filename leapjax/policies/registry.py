"""The registry of policies, their parameters, and their rows in tables of results."""

import re

from leapjax.errors import UserError
from leapjax.policies.base import Parameter, Policy, Row
from leapjax.types import WHOLE_ROW, Proposal

# Filled by `add`, in the order of registration.
POLICIES: dict[str, Policy] = {}
PARAMETERS: dict[str, Parameter] = {}  # of all policies, as first declared
ROWS: dict[str, Row] = {}  # name in a table of results -> the policy behind it


def plain(word: str) -> str:
    """A word in lower case, with underscores.

    >>> plain("Entropy-Bound")
    'entropy_bound'
    """
    return re.sub(r"[\s_-]+", "_", word.strip().lower())


def add(policy: Policy) -> None:
    """Register a policy without checks."""
    POLICIES[policy.name] = policy
    PARAMETERS.update({p.name: p for p in policy.parameters if p.name not in PARAMETERS})
    ROWS.update(policy.table_rows())


def register_policy(policy: Policy) -> Policy:
    """Register a policy of your own, with its parameters.

    `DecodeConfig(policy=...)`, keyword arguments, records, YAML files and flags then accept the
    policy and its parameters. Every process that decodes must register it. Registering the same
    policy again has no effect.

    Args:
      policy: its name and the names of its table rows must be new. A parameter that another policy
        also declares must have the same type, choices and `traced`.

    Raises:
      UserError: a name is taken, or a declaration is invalid or contradicts another policy's.
    """
    from leapjax.config.check import declaration

    if not isinstance(policy, Policy):
        raise UserError(f"register_policy takes a leapjax.policies.Policy, not {policy!r:.80}")
    name = policy.name
    if POLICIES.get(name) == policy:
        return policy
    if not name.isidentifier() or plain(name) != name:
        raise UserError(f"policy {name!r}: a name has lowercase letters, digits and underscores")
    if unknown := policy.needs - WHOLE_ROW.union(Proposal._fields):
        raise UserError(
            f"policy {name}: needs {', '.join(sorted(unknown))}; a proposal has "
            f"{', '.join(Proposal._fields)}"
        )
    if "recheck" in policy.needs and policy.needs & WHOLE_ROW - {"recheck"}:
        raise UserError(f"policy {name}: needs recheck and more of the whole row; drop one")
    for parameter in policy.parameters:
        declaration(parameter, policy)
    taken = {*POLICIES, *map(plain, ROWS)}
    for word in (name, *policy.table_rows()):
        if plain(word) in taken:
            raise UserError(
                f"policy {name}: {word!r} is the name of another policy; choose another name"
            )
    add(policy)
    return policy
