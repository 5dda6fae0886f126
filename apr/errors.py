"""The error tree.

    AprError                       anything this package raises on purpose
    |-- InputError (ValueError)    the user can mend it: exit code 2, one sentence, no traceback
    |   |-- ConfigError            an unknown key or a bad value in a recipe
    |   |-- ProblemError           a problem that cannot be posed
    |   |-- CheckpointError        a missing, foreign or damaged checkpoint
    |   |-- DataError              a missing or damaged shard or file
    |   |-- StorageError           a file that cannot be written: a full disk, no permission
    |   `-- ContextError           a prompt that leaves no room to sample
    |-- EngineError                the world failed: the engine died, timed out, ran out of space
    |   `-- EngineTimeout          no answer within the time allowed
    `-- OutOfTime                  a run stopped at its time limit, its state saved: exit code 75

What a *model* does wrong is never an exception: it is data on the trace (see ``apr.trace``).
"""


class AprError(Exception):
    """Base of every error raised on purpose."""


class InputError(AprError, ValueError):
    """Bad input; the message names the thing and the remedy."""


class ConfigError(InputError):
    """An unknown key or a bad value in a recipe."""


class ProblemError(InputError):
    """A problem that cannot be posed: no solution, negative numbers, too few numbers."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or made for another tokenizer."""


class DataError(InputError):
    """A data file or shard that is missing or damaged."""


class StorageError(InputError):
    """A file or folder that cannot be written: a full disk, no permission, a file in the way."""


class ContextError(InputError):
    """A prompt that does not leave room for one sampled token."""


class EngineError(AprError):
    """The engine failed; a trace cut short by it has no grade and no reward."""


class EngineTimeout(EngineError):
    """The engine did not answer in the time allowed."""


class OutOfTime(AprError):
    """A training run stopped at its time limit; its state is saved to go on from."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(
            f"out of time after step {step} of {steps}: give the same command again to go on"
        )
