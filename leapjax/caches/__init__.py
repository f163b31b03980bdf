"""KV caches: one file each, one line in the registry.

Caches are independent of policies, attention rules and options; `leapjax.config.pairs` says which
combinations are allowed.

>>> {name: cache.help for name, cache in CACHES.items() if not cache.exact}
{'prefix': 'the block and what follows', 'dual': 'the block'}
"""

from leapjax.caches.base import Cache, Outcome
from leapjax.caches.block import SUB_BLOCK, Block
from leapjax.caches.dual import Dual
from leapjax.caches.none import NoCache
from leapjax.caches.prefix import Prefix

CACHES: dict[str, Cache] = {cache.name: cache for cache in (NoCache(), Prefix(), Dual(), Block())}

__all__ = ["CACHES", "SUB_BLOCK", "Cache", "Outcome"]
