"""Nested dictionaries of arrays: paths, rules on paths, and a check of names and shapes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fyp_jax.errors import UserError

SHOWN = 8
"""Names that an error lists of each kind; the rest is counted."""


Value = TypeVar("Value")


class RuleMismatch(UserError):  # noqa: N818  (names the fact)
    """Paths and rules do not belong together."""


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


def match_rules(rules: Sequence[tuple[str, Value]], paths: Iterable[str]) -> dict[str, Value]:
    """For each path the value of its rule, a regular expression that matches all of the path.

    Raises RuleMismatch, with the names, for paths with no rule or several, and for rules without a path.
    """
    found = {path: [rule for rule in rules if re.fullmatch(rule[0], path)] for path in paths}
    used = {pattern for matching in found.values() for pattern, _ in matching}
    problems = [
        _listed("without a rule", sorted(path for path, matching in found.items() if not matching)),
        _listed("with several rules", sorted(path for path, matching in found.items() if len(matching) > 1)),
        _listed("rules that match nothing", [pattern for pattern, _ in rules if pattern not in used]),
    ]
    if any(problems):
        raise RuleMismatch("parameters: " + "; ".join(problem for problem in problems if problem))
    return {path: matching[0][1] for path, matching in found.items()}


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{more})"
