"""Runs scripts as a user does, but in this process; and assertions that tests of several scripts share."""

import contextlib
import io
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

ROOT = Path(__file__).parents[1]
SCRIPTS, SAMPLE = ROOT / "scripts", ROOT / "sample.py"


class Run(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def run_script(script: Path, *args: object) -> Run:
    out, err = io.StringIO(), io.StringIO()
    argv = [str(script), *map(str, args)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch("fyp_jax.console.end_at_once", sys.exit),  # the process is that of the tests
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        runpy.run_path(str(script), run_name="__main__")
    return Run(int(caught.value.code or 0), out.getvalue(), err.getvalue())


def assert_mistake(run: Run, *messages: str) -> None:
    """The command ended with status 2 and one line on standard error, which holds the messages."""
    assert run.status == 2, run
    assert run.err.startswith("error: "), run.err
    assert run.err.count("\n") == 1, f"not one line: {run.err}"
    for message in messages:
        assert message in run.err, run.err


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Two nested dictionaries of arrays have the same paths, dtypes and bits."""
    found, expected = flatten_dict(found, sep="/"), flatten_dict(expected, sep="/")
    assert sorted(found) == sorted(expected)
    for path, array in expected.items():
        assert found[path].dtype == array.dtype, f"{path} is {found[path].dtype}, not {array.dtype}"
        assert np.array_equal(np.asarray(found[path]), np.asarray(array)), f"{path} has other values"
