"""Nested dictionaries of arrays: paths, and a check of names and shapes."""

from collections.abc import Mapping
from typing import Any

from fyp_jax.errors import UserError

SHOWN = 8
"""Names that an error lists of each kind; the rest is counted."""


class TreeMismatch(UserError):  # noqa: N818  (names the fact)
    """Two sets of named arrays differ in names or shapes."""


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}"""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}"""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raise TreeMismatch, with the names, unless both have the same paths and shapes.

    `found` and `expected` map paths to anything with a `shape`; `what` opens the message.
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


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{more})"
