"""Unix sockets to listen on: made so that from their first moment on only those can open them who may."""

from __future__ import annotations

import grp
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError

REQUESTS_MAX: Final = 32  # at a time; people and programs on one host
STOP_TIMEOUT_S: Final = 2.0


def listen(path: Path, kind: socket.SocketKind, setting: str, group: str | None = None) -> socket.socket:
    """A listening socket of the `kind`. Its owner and, where it exists, the `group` may open it; everybody, when no
    group is named. HostError when it cannot be made; `setting` of [agent] says where."""
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear(path, kind, setting)
        mask = os.umask(0o111 if group is None else 0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if group is not None:
            with suppress(KeyError, PermissionError):
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
        listener.listen(REQUESTS_MAX)
    except OSError as error:
        listener.close()
        raise HostError(
            f"cannot listen on {path}: {error.strerror or error}",
            f"see [agent] {setting} in the configuration",
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: Path, kind: socket.SocketKind, setting: str) -> None:
    """Removes the socket of an agent that died, and nothing else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise HostError(
                f"{path} is in the way, and no socket", f"remove it, or set another [agent] {setting}"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(STOP_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:  # of another kind: somebody listens there
            pass
    raise HostError(f"another agent answers on {path}", f"stop it first, or set another [agent] {setting}")
