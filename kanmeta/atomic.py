"""Writing a file as a whole or not at all, also when the process is killed."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves behind stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to; the file there takes the place of ``path`` when the block ends.

    It is in a folder of its own beside ``path``, because libraries make further files while they
    write. The folder goes at the end; one that a killed process left goes with the next call.

    Args:
        path: the file; a link is followed. Its permissions are kept.

    Raises:
        OSError: ``path`` cannot be written; what was there is there still.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            raise OSError(f"{target} exists and is not a regular file")
        _remove_abandoned(target)
        with ExitStack() as stack:
            folder, lock = _own_folder(target)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(lock)
            like = target.stat() if target.exists() else os.fstat(lock.fileno())
            new = folder / "new"
            yield new
            new.chmod(stat.S_IMODE(like.st_mode))
            _flush(new)
            os.replace(new, target)
            with suppress(OSError):  # the new file is in its place: it is too late to fail
                _flush(target.parent)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {target}: {error}") from error
    except OSError as error:
        what = f"cannot write {target}: {error.strerror or error}"
        raise (OSError(what) if error.errno is None else OSError(error.errno, what)) from error


def _own_folder(target: Path) -> tuple[Path, IO[bytes]]:
    """Make a folder beside ``target``; whoever holds the lock of the file in it is its owner."""
    while True:
        folder = target.with_name(f".{_short(target)}.{secrets.token_hex(4)}.partial")
        folder.mkdir()
        with suppress(FileNotFoundError), ExitStack() as stack:
            lock = stack.enter_context((folder / "lock").open("wb"))
            if _locked(lock) is not False and folder.exists():
                stack.pop_all()
                return folder, lock
        # Another process took it for abandoned before it was locked.


def _remove_abandoned(target: Path) -> None:
    """Remove folders of processes that are no more."""
    for folder in target.parent.glob(f".{_escaped(_short(target))}.????????.partial"):
        with suppress(OSError), (folder / "lock").open("ab") as lock:
            if _locked(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _short(target: Path) -> str:
    """What fits in a name of 255 bytes with what is added to it."""
    return os.fsdecode(os.fsencode(target.name)[:200])


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _locked(file: IO[bytes]) -> bool | None:
    """Lock ``file``: True; False if another process has; None if locks are not to be had here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return None
    return True


def _flush(path: Path) -> None:
    """Have the file or folder on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
