from __future__ import annotations

from kdbench.functional.jsd import jsd_loss
from kdbench.methods.jsd import JSD
from tests.methods.laws import LawInvariants


class TestJSD(LawInvariants):
    name, method, loss = "jsd", JSD, jsd_loss
    other = {"temperature": 2.0, "beta": 0.1, "normalise": True}
