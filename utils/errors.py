"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Its message says what is wrong and what to do; the entry scripts print it without a traceback."""
