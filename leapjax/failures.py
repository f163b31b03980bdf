"""What the machine does to a command, in one line: no accelerator, no memory, no room.

An exception that is not explained here is a fault of the program, and keeps its traceback.
"""

import os
import sys
import traceback

_BATCH = "decode fewer rows at once (--batch-size), or shorten --gen-length or the prompts"


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or its compiler, reports that memory does not suffice."""
    return _is_of_jax(error) and "RESOURCE_EXHAUSTED" in str(error)


def explained(error: BaseException) -> str | None:
    """One line on a failure of the machine; None for any other exception."""
    reason = " ".join(str(error).split())[:300]
    if out_of_memory(error):
        return f"the device is out of memory; {_BATCH} ({reason})"
    if _is_of_jax(error):
        return f"the device failed ({reason}); if it does so again, try JAX_PLATFORMS=cpu"
    if _starting_backend(error):
        asked = os.environ.get("JAX_PLATFORMS")
        return (
            f"no usable accelerator (JAX_PLATFORMS is {asked or 'not set'}"
            f"{reason and ': '}{reason}); set JAX_PLATFORMS to what is here, such as cpu"
        )
    if isinstance(error, MemoryError):
        return f"this machine is out of memory; {_BATCH}"
    if isinstance(error, RecursionError):
        return "a value of the input is nested too deeply; flatten it"
    if isinstance(error, UnicodeEncodeError):
        return f"the output can't hold {error.object[error.start]!a}; set PYTHONIOENCODING=utf-8"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}can't be read or written ({error.strerror or reason})"
    return None


def _starting_backend(error: BaseException) -> bool:
    """Whether it comes from where jax starts its devices, which has several kinds of errors."""
    if not isinstance(error, RuntimeError | AssertionError):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    names = {(frame.f_globals.get("__name__", ""), frame.f_code.co_name) for frame, _ in frames}
    return "nable to initialize backend" in str(error) or any(
        module.startswith("jax.") and function in ("backends", "get_backend")
        for module, function in names
    )


def _is_of_jax(error: BaseException) -> bool:
    errors = getattr(sys.modules.get("jax"), "errors", None)
    return errors is not None and isinstance(error, errors.JaxRuntimeError)
