"""What a reply must obey: checked before it is sent, compiled for each server, verified when it came. Pure.

Heavy libraries (jsonschema, llguidance) are imported when a constraint is used, not before. `compile` has
what backends need.
"""

from __future__ import annotations

from maxwell.constraints.check import constraint_of
from maxwell.constraints.unhonoured import Unhonoured
from maxwell.constraints.verify import misbegun, violation

__all__ = ["Unhonoured", "constraint_of", "misbegun", "violation"]
