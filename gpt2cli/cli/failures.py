"""Any exception as an error with an exit code and a fix, for the end of the program or a line of chat."""

import errno
import os
import re
import resource
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from gpt2cli import paths
from gpt2cli.cli.corrected_command import usage_fix, whole_fix
from gpt2cli.disk_space import full_disk
from gpt2cli.errors import Gpt2Error, InputError, ResourceError, UsageError, is_out_of_memory

# What the operating system reports: a full disk, a quota, missing rights, closed or too many files.
_RESOURCES = {
    errno.ENOSPC: ("the disk is full", "free some space, or write to another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("the file would be larger than this system allows", "ulimit -f unlimited"),
    errno.EIO: ("the disk reports an error", "read the system log, and copy your files to another disk"),
    errno.EROFS: ("the file system is read-only", "write to another folder"),
    errno.EACCES: ("permission denied", "write to another folder, or change its permissions"),
    errno.EPERM: ("permission denied", "write to another folder, or change its permissions"),
    errno.EMFILE: ("too many open files", "ulimit -n 4096"),
    errno.EBADF: ("it is closed", "start the program with stdout open"),
}
_BAD_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT}


def explain(error: Exception, typed: Sequence[str] = ()) -> Gpt2Error:
    """Any exception as an error that a user can act on; `typed` is the command line, if there is one."""
    if isinstance(error, Gpt2Error):
        if typed:
            _correct(error, typed)
        return error
    if isinstance(error, typer.TyperException):
        return _usage_error(error, typed)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    is_limited = limit != resource.RLIM_INFINITY
    # SystemError: a C module that got no memory and did not say so.
    if is_out_of_memory(error) or (is_limited and isinstance(error, SystemError)):
        if is_limited:
            why = f"ulimit -v allows this process {limit >> 10:,} KiB, torch included"
            return ResourceError("out of memory", why, "ulimit -v unlimited, or a smaller model or batch")
        return ResourceError("out of memory", fix="close other programs, or use a smaller model or batch")
    if isinstance(error, OSError) and error.errno in _RESOURCES:
        why, fix = _RESOURCES[error.errno]
        if error.errno == errno.ENOSPC and isinstance(error.filename, str):
            path = Path(error.filename)
            if paths.has_home() and paths.gpt2_home() in path.parents:
                fix = f"free some space, or {paths.SET_HOME}"
            return full_disk(path, fix)
        return ResourceError(
            f"{error.filename or 'stdout or a file'}: {why}", str(error.strerror or error), fix
        )
    if isinstance(error, OSError) and error.errno in _BAD_PATHS:
        return InputError(f"{error.filename}: {str(error.strerror).lower()}", fix="name another path")
    return _our_bug(error)


def _correct(error: Gpt2Error, typed: Sequence[str]) -> None:
    """Make the fix a command to paste: the first of several; the reason keeps the others."""
    fix = error.fix = whole_fix(error, typed)
    error.fix, _, others = fix.partition(", or ")
    whole = whole_fix(error, typed) if others else ""
    if whole in ("", error.fix):  # there is one fix, or the first is no part of a command
        error.fix = fix
        return
    error.fix, error.why = whole, "; ".join(filter(None, (error.why, f"another way: {others}")))


def _usage_error(error: typer.TyperException, typed: Sequence[str]) -> UsageError:
    context, text = getattr(error, "ctx", None), error.format_message().rstrip(".")
    text = re.sub(r" \(Possible options: .*\)", "", text)
    fix = usage_fix(error, typed) or (f"{context.command_path} --help" if context else "gpt2 --help")
    invalid = re.match(r"Invalid value for '([^']+)'[^:]*: (?:Value error, )?", text)
    if invalid is None:
        return UsageError(text, fix=fix)
    why = re.sub(r", unable to parse.*", "", text[invalid.end() :].replace("Input should be", "it must be"))
    return UsageError(f"{invalid[1]}: invalid value", why, fix)


def _our_bug(error: Exception) -> Gpt2Error:
    text = "".join(traceback.format_exception(error))
    try:
        path = paths.logs() / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
        fix = f"please report it with {path}, or add --debug to see it"
    except (OSError, ResourceError):
        fix = "add --debug to see the traceback"
    return Gpt2Error("this is a bug in gpt2cli", f"{type(error).__name__}: {str(error)[:200]}", fix)
