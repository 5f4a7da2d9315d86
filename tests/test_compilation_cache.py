"""Values that a start caches for the next: reused, made anew where they do not fit, never an obstacle."""

from pathlib import Path

import jax
import pytest

from fyp_jax import compilation_cache


def times_made(*fingerprints: dict[str, str]) -> int:
    """How often `make` is called when a value of each of these fingerprints is requested."""
    made = []
    for fingerprint in fingerprints:
        found = compilation_cache.cached(
            "value", fingerprint, lambda value=fingerprint: made.append(1) or dict(value)
        )
        assert found == fingerprint
    return len(made)


def test_value_is_made_once_for_each_fingerprint(cache_folder: Path):
    assert times_made({"a": "1"}, {"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "2"}) == 3
    assert len(list(cache_folder.iterdir())) == 3


def test_value_is_made_anew_for_other_code(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert times_made({"a": "1"}) == 1
    monkeypatch.setattr(compilation_cache, "code_crc32", lambda: 0)
    assert times_made({"a": "1"}) == 1


def test_value_is_made_anew_from_a_truncated_file(cache_folder: Path):
    assert times_made({"a": "1"}) == 1
    (file,) = cache_folder.iterdir()
    file.write_bytes(file.read_bytes()[:7])
    assert times_made({"a": "1"}) == 1
    assert times_made({"a": "1"}) == 0


def test_value_is_made_each_time_where_nothing_can_be_written(cache_folder: Path):
    cache_folder.rmdir()
    cache_folder.write_text("no folder")
    assert times_made({"a": "1"}, {"a": "1"}) == 2


@pytest.mark.parametrize("place", [None, "gs://bucket/cache"])
def test_value_is_made_each_time_without_a_local_folder(cache_folder: Path, place: str | None):
    jax.config.update("jax_compilation_cache_dir", place)
    assert times_made({"a": "1"}, {"a": "1"}) == 2
    assert not list(cache_folder.iterdir())


def test_value_is_made_each_time_with_the_cache_off(cache_folder: Path):
    jax.config.update("jax_enable_compilation_cache", False)
    assert times_made({"a": "1"}, {"a": "1"}) == 2
