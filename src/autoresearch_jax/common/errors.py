"""The error that a person can mend."""


class UserError(Exception):
    """Something outside the program is not as it must be.

    The message names the offending value, the rule it broke and the next command to type.
    Only the command line turns it into text and an exit code; it never prints a traceback.
    """


class GitError(UserError):
    """A git command failed; the message holds git's own words."""
