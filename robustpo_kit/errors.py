"""Errors for the user."""


class KitError(Exception):
    """An error for the user: one line that says what is wrong, where, and what to do."""
