"""What one start keeps for the next: found again, made anew where it does not fit, never in the way."""

from pathlib import Path

import jax
import pytest

from fyp_jax import kept


def times_made(*fingerprint: dict[str, str]) -> int:
    """How often a thing is made that is asked for with each of these."""
    made = []
    for depends in fingerprint:
        found = kept.kept("thing", depends, lambda depends=depends: made.append(1) or dict(depends))
        assert found == depends
    return len(made)


def test_a_thing_is_made_once_for_all_that_it_depends_on(kept_folder: Path):
    assert times_made({"a": "1"}, {"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "2"}) == 3
    assert len(list(kept_folder.iterdir())) == 3


def test_other_code_makes_it_anew(kept_folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert times_made({"a": "1"}) == 1
    monkeypatch.setattr(kept, "code_crc32", lambda: 0)
    assert times_made({"a": "1"}) == 1


def test_a_broken_file_is_made_anew(kept_folder: Path):
    assert times_made({"a": "1"}) == 1
    (file,) = kept_folder.iterdir()
    file.write_bytes(file.read_bytes()[:7])
    assert times_made({"a": "1"}) == 1
    assert times_made({"a": "1"}) == 0


def test_where_nothing_can_be_written(kept_folder: Path):
    kept_folder.write_text("no folder")
    assert times_made({"a": "1"}, {"a": "1"}) == 2


@pytest.mark.parametrize("place", [None, "gs://bucket/cache"])
def test_where_nothing_is_kept(kept_folder: Path, place: str | None):
    jax.config.update("jax_compilation_cache_dir", place)
    assert times_made({"a": "1"}, {"a": "1"}) == 2
    assert not kept_folder.exists()


def test_turned_off(kept_folder: Path):
    jax.config.update("jax_enable_compilation_cache", False)
    assert times_made({"a": "1"}, {"a": "1"}) == 2
