"""The error that means: the user's input is at fault, and the message says how."""


class AutolossError(ValueError):
    """Bad input from a user; the message says what was given, what was expected and where."""
