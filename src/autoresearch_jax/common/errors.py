"""Errors that the user can fix."""


class UserError(Exception):
    """Something outside the program is wrong.

    The message says what is wrong and with which value, what was expected, and what to type next.
    Only the command line turns it into text and an exit code, and it never prints a traceback.
    """


class GitError(UserError):
    """A git command failed; the message contains git's output."""
