"""From a model's name to a folder on this machine: a local path, the Hugging Face cache, or a download."""

import os
import re
from pathlib import Path

_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model"]
# the same weights again for other runtimes
_UNWANTED = ["onnx/*", "openvino/*", "*.onnx", "*openvino*"]


def resolve(
    name_or_path: str | Path, revision: str | None = None, *, code: bool = False, cached: bool = False
) -> tuple[Path, str | None]:
    """The folder of a model and, for a hub name, the commit it is at (None for a local folder).

    `code=True` also fetches the *.py files of a model that brings its own code. Without a network, or with
    HF_HUB_OFFLINE=1, the cache answers; with `cached=True` it does so always. Raises ValueError when there is no such folder, cached or reachable model.
    """
    name = str(name_or_path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"model.revision is {revision!r}, but model.name {name!r} is a local folder; drop it"
            )
        return folder.resolve(), None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"model.name {name!r} is no folder on this machine and no name on the hub")
    return _snapshot(name, revision, [*_WANTED, "*.py"] if code else _WANTED, cached)


def _snapshot(name: str, revision: str | None, wanted: list[str], cached: bool) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=_UNWANTED,
            local_files_only=cached,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        where = "in the local cache" + (" (HF_HUB_OFFLINE is set)" if offline else "")
        where = where if offline or cached else f"on the hub or {where}"
        raise ValueError(
            f"model.name {name!r}{at}: no such folder, and not found {where} ({type(error).__name__})"
        ) from error
    # snapshots/<commit>: the folder's name is the commit
    return Path(found), Path(found).name
