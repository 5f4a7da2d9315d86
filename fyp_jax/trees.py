"""Paths of the leaves of a tree: regular expressions that choose some, and a check of names and shapes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from fyp_jax.errors import UserError

MAX_LISTED = 8
"""Number of names of each kind that an error lists; it says how many more there are."""


class RuleMismatch(UserError):  # noqa: N818  (names the fact)
    """A pattern matches no parameter."""


class TreeMismatch(UserError):  # noqa: N818  (names the fact)
    """Two sets of named arrays differ in names or shapes."""


def list_names(names: Sequence[str]) -> str:
    """Join names for a message, which ends after `MAX_LISTED` of them with the number of the others."""
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves of any tree by path. The paths are the same after Orbax has turned tuples into lists."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raise TreeMismatch, with the names, unless both have the same paths and shapes.

    `found` and `expected` map paths to objects with a `shape`; the message starts with `what`.
    """
    problems = [
        _listed("missing", sorted(set(expected) - set(found))),
        _listed("unexpected", sorted(set(found) - set(expected))),
        _listed(
            "wrong shape",
            [
                f"{path} is {tuple(found[path].shape)} but should be {tuple(expected[path].shape)}"
                for path in sorted(set(found) & set(expected))
                if tuple(found[path].shape) != tuple(expected[path].shape)
            ],
        ),
    ]
    if any(problems):
        raise TreeMismatch(f"{what}: " + "; ".join(problem for problem in problems if problem))


def match_patterns(patterns: Sequence[str], paths: Iterable[str]) -> dict[str, bool]:
    """For each path whether one of the regular expressions matches all of it.

    Raises RuleMismatch, with the patterns, where one of them matches no path.
    """
    found = {path: [pattern for pattern in patterns if re.fullmatch(pattern, path)] for path in paths}
    used = {pattern for matching in found.values() for pattern in matching}
    if unused := [pattern for pattern in patterns if pattern not in used]:
        raise RuleMismatch(f"parameters: {_listed('patterns that match nothing', unused)}")
    return {path: bool(matching) for path, matching in found.items()}


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {kind} ({list_names(names)})"
