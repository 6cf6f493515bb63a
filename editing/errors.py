"""The errors of the editing library: one base class, each also a builtin that callers may expect.

Every message carries the offending value, the place and the way to mend it.
"""


class EditingError(Exception):
    """Base class of every error that `editing` raises on purpose."""


class FactError(EditingError, ValueError):
    """A fact change or a batch of them breaks a rule of the feed."""


class ModelError(EditingError, ValueError):
    """A base model cannot be loaded, recognised or edited."""


class TokenisationError(EditingError, ValueError):
    """A prompt, subject or target cannot be located among the tokens."""


class StatisticsError(EditingError, ValueError):
    """Second-moment statistics are missing, damaged or belong to something else."""


class StateError(EditingError, ValueError):
    """An edit state is damaged, of another format, or belongs to another base."""


class EditRefusedError(EditingError, ArithmeticError):
    """An edit would leave a state that cannot be trusted (ill-conditioned, not finite)."""


class SuiteError(EditingError, ValueError):
    """An evaluation suite cannot be read, or two results cannot be compared."""


class PolicyError(EditingError, ValueError):
    """A gate policy contradicts itself or cannot be decided on the data given."""


class ConfigError(EditingError, ValueError):
    """A method's configuration names an unknown setting or contradicts itself."""
