"""LoRA and embeddings of a config: how they are written, found, loaded, recorded, and refused."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from huggingface_hub.errors import OfflineModeIsEnabled

import style_files
import tiny_models
from cli_utils import assert_same
from fake_hub import FakeHub
from faults import TIMEOUT, time_limit
from fyp_jax.checkpoints.inference import save_inference
from fyp_jax.cli.sample import main, parse
from fyp_jax.config import load_config
from fyp_jax.console import run_cli
from fyp_jax.convert.lora import merge_lora, open_lora
from fyp_jax.convert.style_files import LORA_NAMES, find_style_file
from fyp_jax.convert.style_specs import EmbeddingSpec, LoraSpec, embedding_spec, lora_spec, style_list
from fyp_jax.convert.textual_inversion import read_embedding
from fyp_jax.errors import UserError
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.loading import Components, load_components
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.programs import sampling_fingerprint
from fyp_jax.tpu.programs import sampling_programs
from fyp_jax.training.config import TrainConfig

WIDTH = tiny_models.TEXT_ENCODER["hidden_size"]
MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CHANNELS = tiny_models.UNET.block_out_channels[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ink.safetensors, a LoRA of one layer, and cat.pt, with two vectors for <cat>."""
    folder = tmp_path_factory.mktemp("styles")
    arrays = style_files.layer(MODULE, (CHANNELS, WIDTH), 2)
    style_files.write(
        folder / "ink.safetensors", {f"unet.{MODULE}.lora.{role}.weight": x for role, x in arrays.items()}
    )
    style_files.write_embedding(folder / "cat.pt", "a1111", "<cat>", style_files.numbers("cat", 2, WIDTH))
    return folder


def config(model: Path, **changes: Any) -> SampleConfig:
    return SampleConfig(pretrained=str(model), random_init=True, **changes)


class Loaded(NamedTuple):
    """The tiny model as it is, and with styles."""

    plain: Components
    lora: Components
    both: Components
    """With the LoRA and the embedding."""


@pytest.fixture(scope="module")
def loaded(model: Path, files: Path) -> Loaded:
    lora, embedding = [f"{files}/ink.safetensors:0.7"], [str(files / "cat.pt")]
    return Loaded(
        load_components(config(model)),
        load_components(config(model, lora=lora, dtype="bfloat16")),
        load_components(config(model, lora=lora, embedding=embedding)),
    )


# ---- how they are written


@pytest.mark.parametrize(
    ("text", "name", "scale"),
    [
        ("ink.safetensors", "ink.safetensors", 1.0),
        ("ink.safetensors:0.7", "ink.safetensors", 0.7),
        ("ink.safetensors:-1", "ink.safetensors", -1.0),
        ("owner/name:.5", "owner/name", 0.5),
        (r"C:\styles\ink.safetensors", r"C:\styles\ink.safetensors", 1.0),
        (r"C:\styles\ink.safetensors:0.25", r"C:\styles\ink.safetensors", 0.25),
        ("C:/styles/ink.safetensors", "C:/styles/ink.safetensors", 1.0),
        ("a:b/ink.bin", "a:b/ink.bin", 1.0),
        ("a:0.3:0.5", "a:0.3", 0.5),
    ],
)
def test_scale_of_a_lora_is_after_the_last_colon(text: str, name: str, scale: float):
    assert lora_spec(text) == (name, scale)


def test_file_with_a_colon_in_its_name_is_taken_whole(tmp_path: Path):
    (tmp_path / "a:0.5").touch()
    assert lora_spec(str(tmp_path / "a:0.5")) == (str(tmp_path / "a:0.5"), 1.0)
    assert lora_spec(str(tmp_path / "a:0.5:2")) == (str(tmp_path / "a:0.5"), 2.0)
    assert embedding_spec(str(tmp_path / "a:0.5")) == (str(tmp_path / "a:0.5"), None)


@pytest.mark.parametrize(
    "text", ["x:0.7", "{folder}/y", "{folder}/a:0.5", "owner/name:0.1", "{folder}/a:0.5:2"]
)
def test_written_spec_is_read_back_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    """config.yaml of a clip has whole paths."""
    (tmp_path / "a:0.5").touch()
    (tmp_path / "x").touch()
    monkeypatch.chdir(tmp_path)
    spec = lora_spec(text.format(folder=tmp_path))
    written = str(spec)
    monkeypatch.chdir("/")
    again = lora_spec(written)
    assert again.scale == spec.scale
    assert again.name == str(tmp_path / spec.name if (tmp_path / spec.name).exists() else spec.name)


def test_token_of_an_embedding_is_after_the_last_colon():
    assert embedding_spec("cat.pt:<my-cat>") == ("cat.pt", "<my-cat>")
    assert embedding_spec(r"C:\cat.pt:<my-cat>") == (r"C:\cat.pt", "<my-cat>")
    assert embedding_spec(r"C:\cat.pt") == (r"C:\cat.pt", None)
    assert embedding_spec("owner/name") == ("owner/name", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["lora=ink:strong"], "lora=ink:strong: there is no file of this name, and 'strong' .* is no scale"),
        (["lora=ink:nan"], "the scale nan is not a finite number"),
        (["lora=ink:inf"], "the scale inf is not a finite number"),
        (["lora="], "lora=: name a file, a folder or a Hub id"),
        (["lora=:0.5"], "name a file"),
        (["lora=ink:"], "name a file"),
        (["lora=https://example.com/a.safetensors"], "addresses are not read; download the file"),
        (["embedding=:<cat>"], "embedding=:<cat>: name a file"),
        (["lora=[a: 0.7]"], "lora: {'a': 0.7} is not a text; put it in quotes"),
    ],
)
def test_style_that_is_no_name_is_refused(options: list[str], message: str):
    with pytest.raises(UserError, match=message):
        parse(["--prompt", "x", *options])


def test_styles_of_a_config_are_one_or_a_list(tmp_path: Path):
    assert parse(["--prompt", "x", "lora=[A:0.7,b/c:0.4]"]).lora == ["A:0.7", "b/c:0.4"]
    assert parse(["--prompt", "x", "lora=my style: a.safetensors:0.7"]).lora == [
        "my style: a.safetensors:0.7"
    ]
    assert parse(["--prompt", "x", r"embedding=C:\a.pt"]).embedding == [r"C:\a.pt"]
    (tmp_path / "a.yaml").write_text("prompt: x\nlora: ink:0.7\nembedding: [a.pt, 'b.pt:<b>']\n")
    found = load_config(SampleConfig, tmp_path / "a.yaml", ["embedding=${x}"])
    assert (found.prompt, found.lora, found.embedding) == (["x"], ["ink:0.7"], ["${x}"])


def test_training_takes_no_lora(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("{}")
    with pytest.raises(UserError, match="unknown key lora"):
        load_config(TrainConfig, tmp_path / "a.yaml", ["lora=ink.safetensors"])


# ---- how they are found


def test_hub_id_is_downloaded_by_its_usual_name_or_its_only_file(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, files in {
        "o/usual": ["README.md", "other.safetensors", LORA_NAMES[0]],
        "o/only": ["README.md", "ink.safetensors", "images/x.bin"],
        "o/two": ["ink.safetensors", "oil.safetensors"],
        "o/none": ["README.md"],
    }.items():
        fake_hub.add(name, {file: f"{name}/{file}".encode() for file in files})
    monkeypatch.chdir(tmp_path)
    for name, file in {
        "o/usual": f"o/usual/{LORA_NAMES[0]}",
        "o/only": "o/only/ink.safetensors",
        "o/two/oil.safetensors": "o/two/oil.safetensors",
    }.items():
        assert find_style_file(name, LORA_NAMES).read_bytes() == file.encode()
    with pytest.raises(UserError, match="o/two: holds several weight files .*name one of them: o/two/ink"):
        find_style_file("o/two", LORA_NAMES)
    with pytest.raises(UserError, match="o/none: holds no file of a style"):
        find_style_file("o/none", LORA_NAMES)
    with pytest.raises(UserError, match="o/usual/gone.bin: no such file or folder; as a Hub id it cannot"):
        find_style_file("o/usual/gone.bin", LORA_NAMES)


def test_hub_id_without_a_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="o/name: no such file or folder; .*offline, run `hf download o/"):
        find_style_file("o/name", LORA_NAMES)
    assert issubclass(OfflineModeIsEnabled, OSError)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "/a/b", "./a/b", r"C:\a\b.safetensors"])
def test_style_that_is_not_there_is_refused(name: str):
    with pytest.raises(UserError, match=re.escape(name) + ": no such file or folder"):
        open_lora(LoraSpec(name))


# ---- how they are loaded


def test_styles_are_in_weights_and_record(loaded: Loaded, files: Path):
    plain, styled = loaded.plain, loaded.both
    (lora,), (embedding,) = styled.weights["lora"], styled.weights["embedding"]
    assert (lora["file"], lora["scale"], lora["ranks"]) == (str(files / "ink.safetensors"), 0.7, [2])
    assert lora["layers"] == {"UNet attention": 1, "UNet convolution": 0, "text encoder": 0}
    assert embedding["file"] == str(files / "cat.pt")
    assert (embedding["token"], embedding["vectors"]) == ("<cat>", 2)
    assert styled.weights["crc32"] != plain.weights["crc32"]
    assert "lora" not in plain.weights
    json.dumps(styled.weights)

    before, after = (flatten_dict(x.params["unet"], sep="/") for x in (plain, styled))
    changed = [path for path, x in after.items() if not np.array_equal(x, before[path])]
    assert changed == ["down_blocks_0/attentions_0/transformer_blocks_0/attn2/to_k/kernel"]
    arrays = style_files.layer(MODULE, (CHANNELS, WIDTH), 2)
    expected = before[changed[0]] + 0.7 * (arrays["up"] @ arrays["down"]).T
    np.testing.assert_allclose(after[changed[0]], expected, atol=1e-6)
    assert styled.programs.encoders.tokenize("<cat>")[0][0, 1:3].tolist() == [514, 515]


def test_compiled_programs_depend_on_the_number_of_tokens_and_not_on_lora(loaded: Loaded, model: Path):
    """Weights are arguments of the programs."""
    plain, lora, both = (
        sampling_fingerprint(config(model), x.programs, jax.local_devices()[:1])
        for x in (loaded.plain, loaded.lora, loaded.both)
    )
    assert plain == lora
    assert [name for name in plain if plain[name] != both[name]] == ["text_encoder"]


@pytest.mark.slow
def test_programs_that_are_saved_for_a_config_fit_its_embeddings(loaded: Loaded, model: Path, files: Path):
    """compile_tpu.py --save reads the embeddings, too; a change of their number is found."""
    styled = config(model, embedding=[str(files / "cat.pt")], num_frames=1, height=64, width=64)
    devices = jax.local_devices()[:1]
    saved = sampling_programs(styled, devices).fingerprint
    assert saved == sampling_fingerprint(styled, loaded.both.programs, devices)
    assert saved != sampling_fingerprint(styled, loaded.plain.programs, devices)


def test_lora_is_added_before_weights_are_rounded(loaded: Loaded):
    rounded, exact = loaded.lora.params, loaded.both.params
    for part in ("unet", "pose_encoder"):
        assert_same(rounded[part], jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), exact[part]))


def test_styles_for_python_are_one_or_several_or_none(tmp_path: Path):
    assert style_list(None) == []
    assert style_list("a:0.5") == ["a:0.5"]
    assert style_list(tmp_path / "a") == [str(tmp_path / "a")]
    assert style_list(["a:0.5", tmp_path / "b"]) == ["a:0.5", str(tmp_path / "b")]


@pytest.mark.slow
def test_from_pretrained_takes_one_style_or_several(model: Path, files: Path, tmp_path: Path):
    tiny_models.write_weights(model, tmp_path / "base")
    arrays = load_components(config(model)).params

    trained = {part: arrays[part] for part in ("unet", "pose_encoder")}
    save_inference(
        tmp_path / "checkpoint", 1, tiny_models.UNET, trained, {"pretrained": str(tmp_path / "base")}
    )
    load = FollowYourPosePipeline.from_pretrained
    one = load(tmp_path / "checkpoint", lora=files / "ink.safetensors", embedding=files / "cat.pt")
    two = load(
        tmp_path / "checkpoint",
        lora=[f"{files}/ink.safetensors:0.25", f"{files}/ink.safetensors:0.75"],
        embedding=[f"{files}/cat.pt:<my-cat>"],
    )
    for path, x in flatten_dict(one.params, sep="/").items():
        np.testing.assert_allclose(x, flatten_dict(two.params, sep="/")[path], atol=1e-6)
    assert [len(x.weights["lora"]) for x in (one, two)] == [1, 2]
    assert two.weights["embedding"][0]["token"] == "<my-cat>"


def test_missing_style_is_told_before_weights_are_read(tmp_path: Path):
    with pytest.raises(UserError, match="gone.safetensors: no such file"):
        load_components(SampleConfig(pretrained=str(tmp_path / "nowhere"), lora=["gone.safetensors"]))


@pytest.mark.slow
def test_run_with_styles_repeats_from_its_config(
    model: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    """The styles are named from a folder that the second run is not in."""
    runs = tmp_path / "runs"
    argv = ["sample.py", f"pretrained={model}", "random_init=true", "num_inference_steps=2", "num_frames=2"]
    argv += ["height=64", "width=64", f"output_dir={runs}", "--prompt", "a <cat> on the moon"]
    styles = ["lora=ink.safetensors:0.7", "embedding=[cat.pt, 'cat.pt:<dog>']"]
    monkeypatch.chdir(files)
    monkeypatch.setattr("sys.argv", [*argv, *styles])
    assert run_cli(main) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(re.match(r"ink.safetensors +0.7 +2 +1 +0 +0$", line) for line in lines), lines
    assert "embedding cat.pt: token <cat>, 2 vectors" in lines
    assert "no prompt has the token of an embedding: <dog>" in caplog.text
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sample.py", "--config", str(runs / "0000" / "config.yaml")])
    assert run_cli(main) == 0
    monkeypatch.setattr("sys.argv", argv)
    assert run_cli(main) == 0
    clips = [next((runs / f"{i:04d}").glob("*.mp4")) for i in range(3)]
    assert clips[0].read_bytes() == clips[1].read_bytes()
    assert clips[0].read_bytes() != clips[2].read_bytes()
    records = [json.loads(clip.with_suffix(".json").read_text())["weights"] for clip in clips]
    assert records[0] == records[1]
    assert records[0]["crc32"] != records[2]["crc32"]


# ---- damaged files


def damage(rng: random.Random, data: bytes) -> bytes:
    """The file with some bytes changed, removed, repeated or cut off."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(content) or 1)
        kind = rng.randrange(5)
        if kind == 0:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del content[at : at + rng.randint(1, 40)]
        elif kind == 2:
            content[at:at] = content[at : at + rng.randint(1, 40)]
        elif kind == 3 and rng.random() < 0.3:
            del content[at:]
        else:
            content[at : at + 1] = (
                bytes([content[at] ^ (1 << rng.randrange(8))]) if at < len(content) else b""
            )
    return bytes(content)


def change_names(rng: random.Random, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with parts of names, shapes or types that do not belong there."""
    words = ["lora_", "up", "down", "unet", "to_q", "alpha", ".", "_", "weight", "hada_w1_a", "\x00", "é", ""]
    changed = {}
    for name, x in arrays.items():
        parts = re.split(r"([._])", name)
        for _ in range(rng.choice([0, 0, 1, 3])):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        if rng.random() < 0.2:
            x = rng.choice(
                [
                    x[..., None],
                    x[None],
                    x.ravel()[:0],
                    x.astype(np.int16),
                    x.ravel(),
                    x.astype(np.float64) * 1e300,
                ]
            )
        if rng.random() < 0.9:
            changed["".join(parts)] = x
    return changed


@pytest.mark.parametrize("cases", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_styles_are_read_or_refused_in_one_line(
    loaded: Loaded, files: Path, tmp_path: Path, cases: int
):
    """No traceback and no hang, whatever the bytes, the names or the shapes are."""
    params = loaded.plain.params
    whole = (files / "ink.safetensors").read_bytes()
    layer = style_files.layer(MODULE, (CHANNELS, WIDTH), 2)
    arrays = style_files.kohya({"unet": {MODULE: layer}, "text_encoder": {}}, 1.0)
    style_files.write(files / "ink.bin", arrays)
    style_files.write_embedding(
        files / "cat.safetensors", "diffusers", "<cat>", style_files.numbers("cat", 2, WIDTH)
    )

    def lora(file: Path) -> None:
        merge_lora(params, open_lora(LoraSpec(str(file))))

    def embedding(file: Path) -> None:
        read_embedding(EmbeddingSpec(str(file)))

    readers: list[tuple[Callable[[Path], None], str, bytes]] = [
        (lora, ".safetensors", whole),
        (lora, ".bin", (files / "ink.bin").read_bytes()),
        (embedding, ".pt", (files / "cat.pt").read_bytes()),
        (embedding, ".safetensors", (files / "cat.safetensors").read_bytes()),
    ]

    outcomes = {"read": 0, "refused": 0}
    rng = random.Random(0)
    for case in range(cases):
        if case % 5 == 4:
            read, file = lora, tmp_path / "x.safetensors"
            style_files.write(file, change_names(rng, arrays))
        else:
            read, suffix, data = readers[case % 5]
            file = tmp_path / f"x{suffix}"
            file.write_bytes(damage(rng, data))
        try:
            with time_limit(TIMEOUT):
                read(file)
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > cases // 50, outcomes
