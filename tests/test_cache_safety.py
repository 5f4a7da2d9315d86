"""Files that somebody else put where a start looks for what an earlier start has cached."""

import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fyp_jax.compilation_cache import (
    cache_file,
    cached,
    check_private,
    enable_compilation_cache,
    load_programs,
)
from fyp_jax.errors import UserError


class Planted:
    """Opening its pickle makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_cached_value_of_shapes_comes_back_equal(cache_folder: Path):
    value = {"a": {"b": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}, "n": 4, "x": 0.18215, "t": "text"}
    assert cached("value", {"k": "1"}, lambda: value) == value
    assert cached("value", {"k": "1"}, dict) == value
    assert cached("value", {"k": "2"}, dict) == {}


def test_planted_pickle_in_the_cache_is_not_opened(cache_folder: Path, tmp_path: Path):
    file = cache_file("value", {"k": "1"})
    assert file is not None
    file.write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    assert cached("value", {"k": "1"}, lambda: {"made": 1}) == {"made": 1}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("head", [b"[1,2]", b"7", b"", b"[" * 100_000, bytes([255, 254])])
def test_aot_file_without_a_fingerprint_is_refused(tmp_path: Path, head: bytes):
    file = tmp_path / "programs"
    file.write_bytes(head + b"\n" + pickle.dumps(Planted(tmp_path / "ran")))
    file.chmod(0o600)
    with pytest.raises(UserError, match="aot_path=.*holds no programs of scripts/compile_tpu.py --save"):
        load_programs(str(file), {}, jax.devices())
    assert not (tmp_path / "ran").exists()


def test_aot_file_that_others_may_write_is_refused(tmp_path: Path):
    file = tmp_path / "programs"
    file.write_bytes(json.dumps({}).encode() + b"\n" + pickle.dumps(Planted(tmp_path / "ran")))
    file.chmod(0o666)
    with pytest.raises(UserError, match="can be written by other users"):
        load_programs(str(file), {}, jax.devices())
    assert not (tmp_path / "ran").exists()


def test_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "programs"
    file.touch(0o600)
    check_private(file)
    owner = file.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    if owner == 0:  # root may do anything anyway
        check_private(file)
    else:
        with pytest.raises(UserError, match="belongs to another user"):
            check_private(file)


def test_cache_folder_that_others_may_write_is_refused(cache_folder: Path):
    cache_folder.mkdir(exist_ok=True)
    cache_folder.chmod(0o777)
    with pytest.raises(UserError, match="can be written by other users.*JAX_COMPILATION_CACHE_DIR"):
        enable_compilation_cache()
    cache_folder.chmod(0o700)
    enable_compilation_cache()
