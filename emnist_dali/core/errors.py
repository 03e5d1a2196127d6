"""Errors that a user can cause and fix."""


class UserError(Exception):
    """One sentence: what is wrong, where, and what to do. The command line prints it and exits with code 1."""


class FileError(UserError):
    """About the content of a file, whose names it has: not flags of the command line."""


class InUseError(UserError):
    """Another process is working in the folder."""


# Messages of torch's CPU allocator, which has no exception class for this, of the dynamic loader, and of CUDA, Triton
# and DALI, cuBLAS and cuDNN.
_OUT_OF_MEMORY = (
    "can't allocate memory", "failed to map segment from shared object", "Cannot allocate memory", "out of memory",
    "_STATUS_ALLOC_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or any error that led to it, reports a lack of memory."""
    while error is not None:
        names = {cls.__name__ for cls in type(error).__mro__}  # by name: torch may not be imported
        if names & {"MemoryError", "OutOfMemoryError"} or any(message in str(error) for message in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
