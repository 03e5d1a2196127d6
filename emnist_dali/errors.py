"""The one exception for what a user can cause and mend."""


class UserError(Exception):
    """One sentence: what is wrong, where, and what to do. The command line prints it; exit code 1."""


class InUseError(UserError):
    """Another process works in that folder."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory is short: Python's, torch's on a GPU, or torch's on a CPU, which has no class."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)
