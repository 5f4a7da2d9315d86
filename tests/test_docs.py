"""The documentation: links, anchors, paths, config fields and the index of decisions; nothing is fetched."""

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*GUIDES, ROOT / "CHANGELOG.md"]
DECISIONS = ROOT / "docs" / "decisions"

FENCE = re.compile(r"^( *)(```+)(\w*)\n(.*?)^\1\2\s*$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4,}\S[^\n]*\n)+")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
PATH = re.compile(r"(?<![\w./-])(?:scripts|configs|docs|tests|fyp_jax)/[\w./-]*\w/?")
OVERRIDE = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)*)=\S")
MADE_BY_THE_READER = {"scripts/tpu/pod.env"}
SHELL = ("", "bash", "sh")
PLACEHOLDER = "a.b"
"""What help texts write for any config field."""


def fields(kind: type, prefix: str = "") -> set[str]:
    """Keys of a config that hold a value: `seed`, `mesh.data`, ..."""
    keys = set()
    for item in dataclasses.fields(kind):
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            keys |= fields(item.type, f"{prefix}{item.name}.")
        else:
            keys.add(prefix + item.name)
    return keys


FIELDS = fields(SampleConfig) | fields(TrainConfig) | fields(EditConfig)
GROUPS = {key.split(".")[0] for key in FIELDS if "." in key}


def prose(text: str) -> str:
    """Markdown without its code, where links are links."""
    return CODE.sub("", INDENTED.sub("", FENCE.sub("", text)))


def code(text: str) -> list[str]:
    """What a reader may paste into a shell: code in lines, and blocks that are no other language."""
    without = FENCE.sub("", text)
    blocks = [body for _, _, language, body in FENCE.findall(text) if language in SHELL]
    blocks += INDENTED.findall(without)
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [*commands, *CODE.findall(INDENTED.sub("", without))]


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """All anchors of a page; equal headings are numbered."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", page.read_text()), re.MULTILINE):
        name, number = slug(heading), 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for target in LINK.findall(prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            broken.append(target)
    return broken


def unknown_fields(text: str) -> list[str]:
    """Config fields of commands and of code in lines that no config has."""
    unknown = []
    for line in code(text):
        call = re.search(r"\w\(", line)  # Python, whose keyword arguments are not config fields
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = line.split()
        keys = [] if call else [found[1] for word in words if (found := OVERRIDE.match(word))]
        if re.fullmatch(r"[a-z_]+\.[a-z_0-9]+", line) and line.split(".")[0] in GROUPS:
            keys.append(line)
        unknown += [key for key in keys if key not in FIELDS | {PLACEHOLDER}]
    return unknown


def missing_paths(text: str) -> list[str]:
    """Files and folders of this repository that a text names and that are not there."""
    paths = {path.rstrip("/.") for path in PATH.findall(re.sub(r"\w+://\S*", "", text))} - MADE_BY_THE_READER
    return sorted(path for path in paths if not (ROOT / path).exists())


def complaints(pages: list[Path], check: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    """What a check finds, by page; pages without a finding are left out."""
    found = {str(page.relative_to(ROOT)): check(page) for page in pages}
    return {page: finding for page, finding in found.items() if finding}


def test_relative_links_lead_to_files_and_headings():
    assert complaints(PAGES, broken_links) == {}


def test_paths_named_in_the_docs_exist():
    assert complaints(GUIDES, lambda page: missing_paths(page.read_text())) == {}


def test_config_fields_named_in_the_docs_exist():
    assert complaints(GUIDES, lambda page: unknown_fields(page.read_text())) == {}


def test_new_names_of_the_changelog_are_config_fields():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    tables = {"Config fields of `sample.py`": SampleConfig, "Config fields of `train.py`": TrainConfig}
    for start, kind in tables.items():
        table = changelog.split(start)[1].split("\n\n")[1]
        new = set(re.findall(r"\| `([a-z_.0-9]+)` \|$", table, re.MULTILINE))
        assert len(new) > 5
        assert new - fields(kind) == set()


def test_readme_has_fewer_than_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_every_page_is_reachable_from_the_readme():
    found, open_pages = set(), [ROOT / "README.md"]
    while open_pages:
        page = open_pages.pop()
        found.add(page)
        targets = (target.partition("#")[0] for target in LINK.findall(prose(page.read_text())))
        linked = {(page.parent / target).resolve() for target in targets if target.endswith(".md")}
        open_pages += linked - found
    assert {page.resolve() for page in GUIDES} - {page.resolve() for page in found} == set()


def test_decisions_are_numbered_indexed_and_complete():
    files = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    listed = (DECISIONS / "README.md").read_text()
    index = re.findall(r"^\| (\d+) \| \[(.+)\]\((.+)\) \|$", listed, re.MULTILINE)
    assert [name for _, _, name in index] == [path.name for path in files]
    for number, (path, (shown, title, _)) in enumerate(zip(files, index, strict=True), start=1):
        text = path.read_text()
        assert int(path.name[:4]) == int(shown) == number
        assert text.startswith(f"# {number}. {title}\n")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Choice", "Consequence"]


def test_large_modules_have_a_reason_in_the_architecture():
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    modules = [
        path.relative_to(ROOT / "fyp_jax")
        for path in (ROOT / "fyp_jax").rglob("*.py")
        if len(path.read_text().splitlines()) > 300
    ]
    assert sorted(str(path) for path in modules if f"`{path}`" not in architecture) == []


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Attention on a TPU, from its compiler", "attention-on-a-tpu-from-its-compiler"),
        ("`random_init` is not the model's initialisation", "random_init-is-not-the-models-initialisation"),
        ("What [this](that.md) says", "what-this-says"),
        ("How to add ...", "how-to-add-"),
    ],
)
def test_slug_follows_github_rule(heading: str, anchor: str):
    assert slug(heading) == anchor


def test_broken_links_are_found(tmp_path: Path):
    (tmp_path / "other.md").write_text("# One\n\n## One\n\n```\n# Two\n```\n")
    (tmp_path / "page.md").write_text(
        "[a](other.md#one-1) [b](other.md#two) ![c](no.png) [d](https://x.y/no) `[e](no.md)` [f](#g)\n"
    )
    assert broken_links(tmp_path / "page.md") == ["other.md#two", "no.png", "#g"]


def test_missing_paths_are_found():
    text = "`scripts/gone.py`, configs/mini, https://x.y/docs/no and `docs/tpu.md`."
    assert missing_paths(text) == ["scripts/gone.py"]


def test_unknown_config_fields_are_found():
    command = "    python train.py seed=1 \\\n        steps=2\n"
    text = f"Set `mesh.frames=8` or `mesh.tensor`.\n\n{command}\n`f(steps=2)` `a.b=c`\n"
    assert sorted(unknown_fields(text)) == ["mesh.frames", "mesh.tensor", "steps"]
