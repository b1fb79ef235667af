"""What is wrong with a preference file, as far as the file can tell, and what to do about it."""

from robustpo_kit.auditing.advice import Advice, Facts, advise, first_to_try
from robustpo_kit.auditing.page import lead, page
from robustpo_kit.auditing.report import TABLES, Audit, Beside, audit

__all__ = [
    "TABLES", "Advice", "Audit", "Beside", "Facts", "advise", "audit", "first_to_try", "lead",
    "page",
]  # fmt: skip
