"""How an exported model is opened where it is deployed."""

from __future__ import annotations

import pytest

from kdbench import script


@pytest.mark.parametrize(
    ("machine", "flags", "found"),
    [
        ("x86_64", "flags: avx2 avx512f", True),
        ("AMD64", None, True),
        ("x86_64", "flags: avx512_vnni", False),
        ("x86_64", "flags: avx2 avx_vnni", False),
        ("aarch64", "Features: asimd", False),
    ],
)
def test_sums_of_products_overflow_on_x86_without_vnni(machine, flags, found, tmp_path, monkeypatch):
    """Where a system does not say what its processor has, the slower way is taken."""
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(script, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(script.platform, "machine", lambda: machine)
    assert script.overflows() is found
