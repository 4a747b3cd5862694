"""The exceptions that are told in a sentence, because they are no bugs."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one sentence or two: what was given, where, what was
    expected, what to do. The commands print it without a traceback and exit
    with status 2; every other exception is a bug and keeps its traceback.
    """


class WriteFailed(OSError):
    """A file could not be written, as on a full disk; the message is a sentence that says why."""
