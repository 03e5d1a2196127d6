"""The one exception for what a user can cause and mend."""


class UserError(Exception):
    """One sentence: what is wrong, where, and what to do. The command line prints it; exit code 1."""


class InUseError(UserError):
    """Another process works in that folder."""
