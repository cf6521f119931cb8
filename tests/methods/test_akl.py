from __future__ import annotations

from kdbench.functional.akl import adaptive_kl_loss
from kdbench.methods.akl import AKL
from tests.methods.laws import LawInvariants


class TestAKL(LawInvariants):
    name, method, loss = "akl", AKL, adaptive_kl_loss
    other = {"temperature": 2.0, "head": 0.9, "faithful": "code"}
    sigmoid = False
