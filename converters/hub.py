"""Where a model comes from: a folder on disk, or an id on the Hugging Face hub."""

import os
import re
from pathlib import Path

from leapjax.errors import UserError
from leapjax.model_files import SIDE_FILES

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_TORCH = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def resolve(
    path_or_id: str | os.PathLike, revision: str | None = None, *, weights: bool = True
) -> Path:
    """The local folder of a path or hub id; a hub id is downloaded to the hub's cache.

    Only weights, config and tokenizer files are fetched, never code.

    Args:
      path_or_id: a folder, or `organisation/name` on the hub.
      revision: branch, tag or commit; for ids only.
      weights: fetch the weights too; if False, only config and tokenizer files.

    Raises:
      UserError: neither a folder nor a hub id, or the id can't be fetched.
    """
    path, text = Path(path_or_id), os.fspath(path_or_id)
    if text and path.is_dir():  # Path("") would be the working folder
        return path
    if text and path.exists():
        raise UserError(f"{text}: is a file; expected the folder that holds the model")
    if not _ID.fullmatch(text):
        raise UserError(
            f"{text or repr(text)}: no such folder, and not a hub id (organisation/name) either"
        )
    return _fetch(text, revision, weights)


def _fetch(name: str, revision: str | None, with_weights: bool) -> Path:
    import huggingface_hub as hub
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    weights = [*_SAFETENSORS, *_TORCH]
    try:
        try:
            files = hub.HfApi().list_repo_files(name, revision=revision)
            # Many repositories hold both formats; one is enough.
            weights = _SAFETENSORS if any(f.endswith(".safetensors") for f in files) else _TORCH
            own = [f for f in files if f.endswith(".safetensors") and "/" not in f]
            if own and not any(f.startswith("model") for f in own):  # SDAR-30B-A3B: by layers
                weights = [*own, _SAFETENSORS[1]]
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception:  # noqa: BLE001 - offline in one of many ways: the cache may have it
            pass
        patterns = [*(weights if with_weights else ()), *SIDE_FILES]
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as e:
        raise UserError(
            f"{name}: is gated on the hub; accept its terms there and log in (hf auth login)"
        ) from e
    except RevisionNotFoundError as e:
        raise UserError(f"{name}: has no revision {revision!r} on the hub") from e
    except RepositoryNotFoundError as e:
        raise UserError(
            f"{name}: no such folder, and no such model on the hub (or it is private: hf auth "
            "login)"
        ) from e
    except LocalEntryNotFoundError as e:
        raise UserError(
            f"{name}: no such folder, and the hub can't be reached nor is it in the cache; "
            "download it elsewhere and give the folder"
        ) from e
    except Exception as e:  # the network's many ways to fail, as one line
        reason = (str(e) or type(e).__name__).splitlines()[0][:200]
        raise UserError(f"{name}: can't be fetched from the hub ({reason})") from e
