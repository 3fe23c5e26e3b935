"""What a disk says when it does not do what it is asked, in one message."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, EIO, ENOSPC, EROFS

from autoresearch_jax.common.errors import GitError, UserError

AGAIN = "Nothing recorded is lost: correct that, then run the same command again."
DISK_ERRORS = {
    ENOSPC: "The disk is full",
    EDQUOT: "The disk quota is used up",
    EROFS: "The disk is read-only",
    EACCES: "A file may not be written",
    EIO: "The disk fails",
}


@contextmanager
def disk_errors() -> Iterator[None]:
    """What a disk or git says is one message. Raises UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS and error.filename is None:
            raise
        what = DISK_ERRORS.get(error.errno or 0, "A file cannot be used")
        raise UserError(f"{what} ({error}). {AGAIN}") from None
    except GitError as error:  # a full disk, say, in git's own words
        raise UserError(f"{str(error).rstrip('.')}. {AGAIN}") from None
