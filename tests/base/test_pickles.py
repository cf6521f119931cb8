"""Pickles of data sets, and what they are not allowed to run."""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from kdbench.base.pickles import read_pickle
from kdbench.errors import KDBenchError

PROTOCOLS = (0, 2, 4)


def written(path: Path, value: Any, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_arrays_and_matrices_come_back(tmp_path, protocol):
    stream = np.random.default_rng(0)
    turned = np.asfortranarray(stream.normal(size=(3, 2)))
    rows = sp.random(4, 5, 0.4, "csr", random_state=0)
    shared = stream.integers(0, 9, 4)
    held = {
        "plain": [1, 2.5, "a", b"\x00\xff", None, True, (1, 2)],
        "arrays": [turned, np.arange(3, dtype=">i2"), np.zeros((0, 4), np.float16), np.array([True, False])],
        "rows": rows,
        "scalar": np.float32(0.1),
        "neighbours": defaultdict(list, {0: [1, 5]}),
        "twice": [shared, shared],
    }
    found = read_pickle(written(tmp_path / "held.pkl", held, protocol), "a test")
    assert found["plain"] == held["plain"]
    for one, other in zip(found["arrays"], held["arrays"], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert (found["rows"] != rows).nnz == 0
    assert found["scalar"] == np.float32(0.1)
    assert found["neighbours"] == {0: [1, 5]}
    assert found["twice"][0] is found["twice"][1]


class Harm:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_code_in_a_pickle_is_run(tmp_path, protocol):
    path, made = tmp_path / "held.pkl", tmp_path / "made"
    harm: list[tuple[Any, str]] = [
        (Harm(os.mkdir, str(made)), "asks for (posix|nt).mkdir, which is no part of a test; it was not run"),
        (Harm(eval, f"open({str(made)!r}, 'w')"), r"asks for (__builtin__|builtins).eval"),
        (Harm(getattr, "x", "upper"), r"asks for (__builtin__|builtins).getattr"),
        (Harm(np.load, str(made)), "asks for numpy"),
        (Path(made), "asks for pathlib"),
        (np.ma.array([1]), "asks for numpy.ma"),
        (np.array([1, {}], dtype=object), "array of something else than numbers"),
        (np.array(["a"]), "holds an array of 'U1'"),
        (list, "holds a class or a function"),
    ]
    for value, message in harm:
        with pytest.raises(KDBenchError, match=message) as error:
            read_pickle(written(path, [value], protocol), "a test")
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
        assert not made.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # numpy.core.multiarray has more than _reconstruct, and _codecs.encode more than latin1.
        (b"cnumpy.core.multiarray\nfromfile\n(S'/etc/passwd'\ntR.", "asks for numpy.core.multiarray.fromfile"),
        (b"c_codecs\nencode\n(Vab\nVzip\ntR.", "encodes bytes as 'zip'"),
        (b"c__builtin__\nbytes\n(I1000000000000\ntR.", "makes bytes of something"),
        (b"ccopy_reg\n_reconstructor\n(c__builtin__\nlist\nc__builtin__\nobject\nNtR.", "an object of some class"),
        (b"\x80\x02half", r"not a whole file, expected a test \(6 bytes; "),
        (b"", r"not a whole file, expected a test \(0 bytes; EOFError"),
        # A list that holds itself.
        (b"\x80\x02]q\x00h\x00a.", "not a whole file, expected a test .*RecursionError"),
    ],
)
def test_what_is_no_release_is_one_line(tmp_path, content, message):
    path = tmp_path / "held.pkl"
    path.write_bytes(content)
    with pytest.raises(KDBenchError, match=message) as error:
        read_pickle(path, "a test")
    assert "\n" not in str(error.value)


def test_rows_that_point_outside_are_refused(tmp_path):
    rows = sp.csr_matrix(np.eye(3))
    rows.indices[1] = 7
    with pytest.raises(KDBenchError, match="not a whole file"):
        read_pickle(written(tmp_path / "held.pkl", rows, 2), "a test")
    with pytest.raises(KDBenchError, match="cannot be read"):
        read_pickle(tmp_path / "gone.pkl", "a test")
