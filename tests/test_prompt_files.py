"""Prompt files: what each of the three forms says, and one line for each mistake."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fyp_jax.errors import UserError
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SAMPLING_FIELDS
from fyp_jax.pipeline.prompt_files import FIELD_TYPES, read_prompts

CONFIG = SampleConfig(prompt=["unused"], num_frames=8, height=64, width=64, seed=7)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_text_file_has_a_prompt_a_line(tmp_path: Path):
    file = written(tmp_path, "a.txt", "\ufeffA robot, on the beach\r\n\r\n  Ein Bär \n# 1\n")
    lines = read_prompts(file, CONFIG)
    assert [line.config.prompt for line in lines] == [["A robot, on the beach"], ["Ein Bär"], ["# 1"]]
    assert [(line.number, line.where) for line in lines] == [
        (0, f"{file}:1"),
        (1, f"{file}:3"),
        (2, f"{file}:4"),
    ]
    assert lines[0].config == dataclasses.replace(CONFIG, prompt=["A robot, on the beach"])


def test_csv_and_jsonl_of_the_same_values_give_the_same_configs(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"prompt": 'A "robot", on the beach', "seed": 3, "guidance_scale": 2.5, "pose_guidance": True},
        {"prompt": "A panda", "pose": None, "window": None, "num_frames": 12, "negative_prompt": "dark"},
        {"prompt": "A man", "pose": "dance", "pose_stride": 2, "pose_start": 4, "solver": "unipc"},
    ]
    names = sorted({name for row in rows for name in row})

    def cell(row: dict[str, Any], name: str) -> str:
        if name not in row:
            return ""
        value = row[name]
        text = value if isinstance(value, str) else json.dumps(value)
        return '"' + text.replace('"', '""') + '"'

    text = "\n".join([",".join(names), *(",".join(cell(row, name) for name in names) for row in rows)])
    from_csv = read_prompts(written(tmp_path, "a.csv", text), CONFIG)
    from_json = read_prompts(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))), CONFIG)
    assert [line.config for line in from_csv] == [line.config for line in from_json]
    first, second, third = (line.config for line in from_csv)
    assert (first.seed, first.guidance_scale, first.pose_guidance) == (3, 2.5, True)
    assert (second.seed, second.pose.path, second.num_frames) == (7, None, 12)
    assert dataclasses.astuple(third.pose) == ("dance", None, 2, 4)


def test_all_sampling_options_are_fields():
    assert set(SAMPLING_FIELDS) < set(FIELD_TYPES)


def test_pose_beside_the_file_is_taken_from_there(tmp_path: Path):
    (tmp_path / "walk.json").write_text("{}")
    file = written(tmp_path, "a.csv", "prompt,pose\nA robot,walk.json\nA robot,dance\n")
    assert [line.config.pose.path for line in read_prompts(file, CONFIG)] == [
        str(tmp_path / "walk.json"),
        "dance",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "A robot", "a.yaml: a file of prompts is named .txt, .csv, .jsonl"),
        ("a.txt", "\n \n", "a.txt: holds no prompt"),
        ("a.csv", "prompt,seed\n", "a.csv: holds no prompt"),
        ("a.jsonl", "", "a.jsonl: holds no prompt"),
        ("a.txt", b"A robot\nA b\xe4r\n", "a.txt: line 2 is not UTF-8; cp1252 reads it as 'A bär'"),
        ("a.txt", "A robot".encode("utf-16"), "a.txt: line 1 is not UTF-8; utf-16 reads it as 'A robot'"),
        ("a.csv", "prompt,sed\nA robot,1\n", "a.csv:1: unknown field 'sed'; did you mean seed"),
        (
            "a.jsonl",
            '{"prompt": "a"}\n{"prompt": "b", "quality": 1}',
            "a.jsonl:2: unknown field 'quality'; the",
        ),
        ("a.csv", "text\nA robot\n", "a.csv:1: unknown field 'text'"),
        ("a.csv", "seed\n1\n", "a.csv:1: has no field prompt"),
        ("a.csv", "prompt,seed,seed\na,1,2\n", "a.csv:1: the column 'seed' is there twice"),
        ("a.csv", "prompt,seed\nA robot, on the beach,1\n", "a.csv:2: has 3 cells, and the header 2"),
        ("a.csv", 'prompt,seed\n"A robot\n,1\n', "is not CSV"),
        ("a.csv", "prompt,seed\nA robot,1.5\n", "a.csv:2: seed is '1.5', not a whole number"),
        ("a.csv", "prompt,pose_guidance\nA robot,1\n", "a.csv:2: pose_guidance is '1', not true or false"),
        ("a.csv", "prompt,seed\n,1\n", "a.csv:2: the prompt is empty"),
        ("a.jsonl", '{"seed": 1}', "a.jsonl:1: has no field prompt"),
        (
            "a.jsonl",
            '{"prompt": "a", "seed": 1, "seed": 2}',
            "a.jsonl:1: is not JSON (a field is there twice)",
        ),
        ("a.jsonl", '["a"]', "a.jsonl:1: is no JSON object"),
        ("a.jsonl", '{"prompt": "a"', "a.jsonl:1: is not JSON"),
        ("a.jsonl", '{"prompt": "a", "seed": true}', "a.jsonl:1: seed is true, not a whole number"),
        ("a.jsonl", '{"prompt": "a", "seed": "1"}', 'a.jsonl:1: seed is "1", not a whole number'),
        ("a.jsonl", '{"prompt": "a", "seed": null}', "a.jsonl:1: seed is null, not a whole number"),
        ("a.jsonl", '{"prompt": "a", "guidance_scale": NaN}', "a.jsonl:1: guidance_scale=nan"),
        ("a.jsonl", '\n{"prompt": "a", "height": 65}', "a.jsonl:2: height=65 is not a multiple of 64"),
        ("a.jsonl", '{"prompt": "a", "seed": -1}', "a.jsonl:1: seed=-1"),
    ],
)
def test_mistake_is_refused_with_file_and_line(tmp_path: Path, name: str, content: str | bytes, message: str):
    with pytest.raises(UserError) as caught:
        read_prompts(written(tmp_path, name, content), CONFIG)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="a.txt: cannot be read"):
        read_prompts(tmp_path / "a.txt", CONFIG)
