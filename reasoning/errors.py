"""The one error for bad input, the one for a bad row of it, and the one for a machine that fails."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is not usable.

    Says which field, what was given, and what would be legal; the command line prints it as one line and exits with 2.
    """

    def __init__(self, field: str, value: object, legal: str, reason: str = "") -> None:
        self.field, self.value, self.legal, self.reason = field, value, legal, reason
        super().__init__(f"{field}: got {value!r}{': ' + reason if reason else ''}; use {legal}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str, str]]:
        # Exceptions with several arguments do not survive pickling by themselves (Ray ships them between processes).
        return InputError, (self.field, self.value, self.legal, self.reason)


class RowError(ValueError):
    """A row that is not a problem; the message says why."""


class MachineError(RuntimeError):
    """Something that is neither the user's input nor a mistake in the program failed, such as the sandbox.

    The command line prints the message as one line and exits with 1.
    """
