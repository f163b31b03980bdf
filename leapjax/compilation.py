"""JAX's persistent compilation cache, so that a second run need not compile again."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str] | None = None) -> Path | None:
    """Where compiled programs are kept.

    `environment`: default: the process's. Returns `LEAPJAX_CACHE_DIR`, else `leapjax` under
    `XDG_CACHE_HOME` or `~/.cache`; None where `LEAPJAX_CACHE_DIR` is `off` or there is no home.
    """
    given = os.environ if environment is None else environment
    own = given.get("LEAPJAX_CACHE_DIR", "")
    if own.lower() == "off":
        return None
    if own:
        return Path(own).expanduser()
    if base := given.get("XDG_CACHE_HOME"):
        return Path(base) / "leapjax"
    try:
        return Path.home() / ".cache" / "leapjax"
    except RuntimeError:
        return None


def enable_cache() -> Path | None:
    """Keep compiled programs on disk; for commands, before anything is compiled.

    A `JAX_COMPILATION_CACHE_DIR` that the user has set stays as it is, and a folder that
    can't be written costs nothing but the time to compile.

    Returns the folder in use, or None.
    """
    import jax

    if already := jax.config.values.get("jax_compilation_cache_dir"):
        return Path(already)
    folder = cache_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """In this context everything is compiled anew, so that it can be serialised.

    On a CPU, an executable that comes from jax's cache loses its functions when it is serialised.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    name = "jax_enable_compilation_cache"
    before = jax.config.values[name]
    jax.config.update(name, False)
    compilation_cache.reset_cache()  # whether it is used is decided once
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()
