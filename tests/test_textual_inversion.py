"""Textual inversions: embeddings of prompts equal PyTorch's, and what fits no text encoder is refused."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from flax.traverse_util import flatten_dict

import style_files
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.style_specs import EmbeddingSpec
from fyp_jax.convert.textual_inversion import read_embedding
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import TOKEN_TABLE, LatentEncoders
from fyp_jax.pipeline.styles import Styles, unused_tokens

WIDTH = 32
PROMPTS = [
    "a <cat> on the moon",
    "<cat>",
    "A <cat>-like toy, and<cat>s!  <cat> <dog>",
    "a <CAT> is another word",
    "no token here",
    "<dog><cat><dog>",
    "深い森 <cat> ﾛﾎﾞｯﾄ",
]


class Model(NamedTuple):
    encoders: LatentEncoders
    params: dict[str, Any]


@pytest.fixture(scope="module")
def base(pipeline_folder: Path) -> Model:
    folder = PipelineFolder(str(pipeline_folder))
    encoders = folder.latent_encoders()
    return Model(encoders, folder.encoder_params(encoders, ("text_encoder",)))


def with_embeddings(base: Model, *specs: EmbeddingSpec) -> Model:
    styles = Styles([], [read_embedding(spec) for spec in specs])
    encoders = styles.encoders(base.encoders)
    return Model(encoders, styles.merge(base.params, encoders)[0])


def vectors(token: str, count: int) -> np.ndarray:
    return style_files.numbers(token, count, WIDTH)


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        pytest.param("diffusers", ".bin", marks=pytest.mark.slow),
        pytest.param("diffusers", ".safetensors", marks=pytest.mark.slow),
        ("a1111", ".pt"),
    ],
)
def test_embeddings_of_prompts_equal_those_of_pytorch(
    pipeline_folder: Path, base: Model, tmp_path: Path, form: str, suffix: str
):
    """One token of three vectors and one of a single vector, which may have no axis for its number."""
    pytorch: StableDiffusionPipeline = style_files.pytorch_pipeline(pipeline_folder)
    cat = style_files.write_embedding(tmp_path / f"1{suffix}", form, "<cat>", vectors("cat", 3))
    dog = style_files.write_embedding(tmp_path / f"2{suffix}", form, "<dog>", vectors("dog", 1)[0])
    for file in (cat, dog):
        pytorch.load_textual_inversion(str(tmp_path), weight_name=file.name)
    ours = with_embeddings(base, EmbeddingSpec(str(cat)), EmbeddingSpec(str(dog)))
    encode = jax.jit(ours.encoders.encode_text)
    for prompt in PROMPTS:
        expected, _ = pytorch.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        found = encode(ours.params, ours.encoders.tokenize(prompt)[0])
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=1e-5, err_msg=prompt)


def test_tokens_of_the_base_model_stay_as_they_are(base: Model, tmp_path: Path):
    file = style_files.write_embedding(tmp_path / "x.bin", "diffusers", "<cat>", vectors("cat", 2))
    ours = with_embeddings(base, EmbeddingSpec(str(file)))
    table, before = (
        flatten_dict(model.params["text_encoder"], sep="/")[TOKEN_TABLE] for model in (ours, base)
    )
    np.testing.assert_array_equal(table[: len(before)], before)
    np.testing.assert_array_equal(table[len(before) :], vectors("cat", 2))
    prompt = "a robot, on the moon"
    np.testing.assert_array_equal(ours.encoders.tokenize(prompt)[0], base.encoders.tokenize(prompt)[0])


def test_token_of_several_vectors_that_is_cut_off_is_told(base: Model, tmp_path: Path):
    file = style_files.write_embedding(tmp_path / "x.bin", "diffusers", "<cat>", vectors("cat", 70))
    encoders = with_embeddings(base, EmbeddingSpec(str(file))).encoders
    ids, cut = encoders.tokenize("a <cat> a <cat> end")
    assert ids.shape == (1, 77)
    assert cut == "<cat> end"
    assert encoders.tokenize("a <cat>")[1] == ""


def test_names_of_tokens_come_from_file_user_or_file_name(tmp_path: Path):
    write, x = style_files.write_embedding, vectors("x", 2)
    files = {
        "diffusers": write(tmp_path / "1.safetensors", "diffusers", "<key>", x),
        "a1111": write(tmp_path / "2.pt", "a1111", "inside", x),
        "emb_params": write(tmp_path / "bad-hands.safetensors", "a1111", "", x),
    }
    torch.save(torch.from_numpy(x), tmp_path / "alone.pt")
    found = {name: read_embedding(EmbeddingSpec(str(file))).token for name, file in files.items()}
    assert found == {"diffusers": "<key>", "a1111": "inside", "emb_params": "bad-hands"}
    for file in (*files.values(), tmp_path / "alone.pt"):
        embedding = read_embedding(EmbeddingSpec(str(file), "<mine>"))
        assert embedding.token == "<mine>"
        np.testing.assert_array_equal(embedding.vectors, x)


def test_folder_names_its_embedding(tmp_path: Path):
    style_files.write_embedding(tmp_path / "learned_embeds.bin", "diffusers", "<cat>", vectors("x", 1))
    style_files.write_embedding(tmp_path / "other.bin", "diffusers", "<dog>", vectors("x", 1))
    assert read_embedding(EmbeddingSpec(str(tmp_path))).token == "<cat>"
    (tmp_path / "learned_embeds.bin").rename(tmp_path / "third.bin")
    with pytest.raises(UserError, match="several weight files .*other.bin, third.bin.*name one of them: "):
        read_embedding(EmbeddingSpec(str(tmp_path)))


def test_half_precision_is_read_without_a_change_of_value(tmp_path: Path):
    x = vectors("x", 2)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tensor = torch.from_numpy(x).to(dtype)
        torch.save({"<cat>": tensor}, tmp_path / "x.bin")
        found = read_embedding(EmbeddingSpec(str(tmp_path / "x.bin"))).vectors
        np.testing.assert_array_equal(found, tensor.float().numpy())


def test_tokens_in_no_prompt_are_found(base: Model, tmp_path: Path):
    files = [
        style_files.write_embedding(tmp_path / f"{i}.bin", "diffusers", token, vectors(token, 2))
        for i, token in enumerate(("<cat>", "<dog>", "<hen>"))
    ]
    encoders = with_embeddings(base, *(EmbeddingSpec(str(file)) for file in files)).encoders
    assert unused_tokens(encoders, ["a <cat>", "a <DOG>, <hen>s"]) == ["<dog>"]
    assert unused_tokens(base.encoders, ["a <cat>"]) == []


# ---- what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"<cat>": torch.ones(2, 3, 4)}, r"an embedding is \[width\] or .*, not float32 of .*\[2, 3, 4\]"),
        ({"<cat>": torch.ones(0, 4)}, "an embedding is"),
        ({"<cat>": torch.tensor(1.0)}, "an embedding is"),
        ({"<cat>": torch.ones(4, dtype=torch.int32)}, "an embedding is .* not int32"),
        ({"<cat>": torch.full((4,), float("nan"))}, "holds numbers that are not finite"),
        ({"<cat>": torch.ones(514, 32)}, "514 vectors fit in no prompt"),
        ({"a": torch.ones(4), "b": torch.ones(4)}, r"is no textual inversion, .*\(has a, b\)"),
        ({"clip_l": torch.ones(4), "clip_g": torch.ones(4)}, "is a textual inversion of Stable Diffusion XL"),
        ({"unet.conv_in.lora_A.weight": torch.ones(4)}, "is a LoRA, which is given as lora=FILE"),
        ({"string_to_param": {"*": torch.ones(4)}, "name": 3}, "is no textual inversion"),
        ({"string_to_param": torch.ones(4), "name": "x"}, "is no textual inversion"),
        ({"string_to_param": {"*": 3}, "name": "x"}, "is no textual inversion"),
        ({3: torch.ones(4)}, "is no textual inversion"),
        ([torch.ones(4)], "is no textual inversion"),
        ({}, "is no textual inversion"),
        (torch.ones(4), "does not say its token; write embedding=.*x.pt:TOKEN"),
        ({" ": torch.ones(4)}, "' ' is no token"),
        ({"<\x1b[31m>": torch.ones(4)}, "is no token"),
        ({"<cat>": Path("x")}, "holds more than tensors; refused"),
    ],
)  # fmt: skip
def test_file_that_is_no_embedding_is_refused_by_name(tmp_path: Path, content: Any, message: str):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message) as caught:
        read_embedding(EmbeddingSpec(str(tmp_path / "x.pt")))
    assert str(tmp_path / "x.pt") in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.pt", "./a/b", "text.txt"])
def test_file_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("x")
    with pytest.raises(UserError, match=f"{name}: (no such file|not an embedding file)"):
        read_embedding(EmbeddingSpec(name))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([("!", 1)], "the tokenizer already has '!'; choose another token: embedding=FILE:TOKEN"),
        ([("<|endoftext|>", 1)], "already has '<|endoftext|>'"),
        ([("A", 1)], "already has 'A'"),
        ([("<cat>", 1), ("<cat>", 2)], "another embedding has the token '<cat>' already"),
        ([("<cat>", 2), ("<cat>_1", 1)], "already has '<cat>_1'"),
    ],
)
def test_token_that_the_tokenizer_has_is_refused(
    base: Model, tmp_path: Path, tokens: list[tuple[str, int]], message: str
):
    """The words of the small tokenizer are single characters."""
    specs = []
    for i, (token, count) in enumerate(tokens):
        file = style_files.write_embedding(tmp_path / f"{i}.bin", "diffusers", token, vectors(token, count))
        specs.append(EmbeddingSpec(str(file)))
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        with_embeddings(base, *specs)


def test_embedding_of_another_text_encoder_is_refused(base: Model, tmp_path: Path):
    file = tmp_path / "sd2.bin"
    torch.save({"<cat>": torch.ones(1, 1024)}, file)
    with pytest.raises(UserError, match="sd2.bin: its vectors have 1024 numbers, and the text encoder's 32 "):
        with_embeddings(base, EmbeddingSpec(str(file)))
