"""One message for the errors of a disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, EIO, ENAMETOOLONG, ENOSPC, EROFS

from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.common.text import clean

AGAIN = "Nothing recorded is lost: correct that, then run the same command again."
DISK_ERRORS = {
    ENOSPC: "The disk is full",
    EDQUOT: "The disk quota is used up",
    EROFS: "The disk is read-only",
    EACCES: "Access to a file is denied",
    EIO: "The disk fails",
}


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn errors of the disk and of git into UserError."""
    try:
        yield
    except OSError as error:
        if error.errno == ENAMETOOLONG:
            name = clean(str(error.filename), 60)
            raise UserError(f"{name} is longer than a name may be. Choose a shorter one.") from None
        if error.errno not in DISK_ERRORS and error.filename is None:
            raise
        what = DISK_ERRORS.get(error.errno or 0, "A file cannot be used")
        raise UserError(f"{what} ({error}). {AGAIN}") from None
    except GitError as error:  # such as a full disk, in git's own words
        raise UserError(f"{str(error).rstrip('.')}. {AGAIN}") from None
