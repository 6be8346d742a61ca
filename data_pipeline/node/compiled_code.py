"""Where torch keeps the code that it compiles, and later loads and runs."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code_private() -> None:
    """Have torch keep compiled code in a folder of this user's alone, unless the environment names one.

    By default it is /tmp/torchinductor_<user>, made when timm, torchvision or DeepSpeed are imported, so this is to be
    called before: another user who takes the name first could put code there, or end every import with a file.
    """
    if _VARIABLE in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foldtrain" / "compiled"
    if not _is_private(folder):
        folder = Path(tempfile.mkdtemp(prefix="foldtrain-compiled-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[_VARIABLE] = str(folder)


def _is_private(folder: Path) -> bool:
    """Whether this is a folder, made if there is none, in which this user and no other may write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not folder.is_symlink() and not status.st_mode & 0o022
