"""The one exception for what a user can cause and mend."""


class UserError(Exception):
    """One sentence: what is wrong, where, and what to do. The command line prints it; exit code 1."""


class InUseError(UserError):
    """Another process works in that folder."""


# What torch says on a CPU, for which it has no class, and the loader of shared libraries.
_NO_MEMORY = ("can't allocate memory", "failed to map segment from shared object", "Cannot allocate memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether it, or what led to it, says that memory is short."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}  # torch may not be there yet
        if names & {"MemoryError", "OutOfMemoryError"} or any(said in str(error) for said in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
