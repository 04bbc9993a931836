"""Plays one Lambda Managed Instances execution environment on loopback, around AWS's own runtime client.

Knows nothing of what perinvoke does inside a handler: an emulator that knows the library would prove nothing.
"""

from perinvoke.local import requirements as requirements  # first: it names the extra that is missing
from perinvoke.local.config import LocalConfig
from perinvoke.local.environment import LocalEnvironment
from perinvoke.local.load import LoadReport, drive
from perinvoke.local.logs import LogLine
from perinvoke.local.outcome import Outcome, Status

__all__ = ["LoadReport", "LocalConfig", "LocalEnvironment", "LogLine", "Outcome", "Status", "drive"]
