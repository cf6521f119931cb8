from __future__ import annotations

from kdbench.functional.abkd import alpha_beta_loss
from kdbench.methods.abkd import ABKD
from tests.methods.laws import LawInvariants


class TestABKD(LawInvariants):
    name, method, loss = "abkd", ABKD, alpha_beta_loss
    other = {"temperature": 2.0, "alpha": 0.9, "beta": 0.1}
