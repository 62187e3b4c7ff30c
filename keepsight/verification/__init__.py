"""Proves on a loaded model that methods do what their formulas say: every pass is computed a second time, slowly.

``verify`` and ``verify_inputs`` run the checks; ``restated`` and ``witness`` hold the second computation, which shares no
code with ``keepsight.engines``.
"""

from keepsight.verification.findings import Finding, Report, Verdict
from keepsight.verification.verify import verify, verify_inputs

__all__ = ["Finding", "Report", "Verdict", "verify", "verify_inputs"]
