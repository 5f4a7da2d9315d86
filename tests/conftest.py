"""Checks shapes at run time in all of fyp_jax, and has the fixtures that several files use."""

import collections
import importlib.util
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# Most of a test's time is compilation. XLA's CPU backend compiles the same programs in less than half of the
# time with its older emitters and in one thread.
COMPILE_FAST = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COMPILE_FAST}".strip()

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("fyp_jax", "beartype.beartype")  # before the first import of fyp_jax, and left in place

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from fake_hub import FakeHub  # noqa: E402
from fyp_jax.compilation_cache import cache_file, cached, enable_compilation_cache  # noqa: E402
from fyp_jax.convert.torch_key_mapping import from_torch  # noqa: E402
from fyp_jax.models import encoders, pose_encoder, unet  # noqa: E402
from fyp_jax.models.unet import UNet3DConfig  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)  # for tests of meshes; all other tests use the first device
jax.config.update("jax_numpy_rank_promotion", "raise")
# Small programs do not need the best code.
jax.config.update("jax_disable_most_optimizations", True)
# Commands that run in this process would turn the cache on for all tests after them.
jax.config.update("jax_enable_compilation_cache", False)


LONG_FILES = [
    "test_kill.py",
    "test_editing.py",
    "test_export_pytorch.py",
    "test_compile_tpu.py",
    "test_resume.py",
    "test_parallel.py",
    "test_loop.py",
    "test_models.py",
    "test_cached_latents.py",
    "test_tuneavideo_reference.py",
    "test_attention_kernels.py",
    "test_demo_browser.py",
    "test_long_clips.py",
    "test_evaluation.py",
    "test_mini_model.py",
    "test_notebook.py",
]
"""Files whose tests take minutes together, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest are tested first, then those of most tests, so that all workers end
    together. (pytest-xdist gives a worker one file at a time, in this order.) Tests of the TPU compiler are
    skipped where it is not installed."""
    count = collections.Counter(item.path for item in items)
    rank = {name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: (rank.get(item.path.name, len(rank)), -count[item.path], item.path))
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("tpu_compile"):
                item.add_marker(pytest.mark.skip(reason="the TPU compiler (libtpu) is not installed"))


def traced_once(name: str, fingerprint: Mapping[str, str], make: Callable[[], Any]) -> Any:
    """`compilation_cache.cached`, but a value that no file caches is made once in this process.

    Tracing the shapes of a model takes seconds.
    """
    if cache_file(name, fingerprint) is not None:
        return cached(name, fingerprint, make)
    key = name, json.dumps(dict(fingerprint), sort_keys=True)
    if key not in _TRACED:
        _TRACED[key] = pickle.dumps(make())
    return pickle.loads(_TRACED[key])


_TRACED: dict[tuple[str, str], bytes] = {}
encoders.cached = pose_encoder.cached = unet.cached = traced_once  # pyright: ignore

FIXTURES = Path(__file__).parent / "fixtures"


def slow(*values: Any) -> Any:
    """Values of a parametrized test that the default run leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


def synthesise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of the reference: the published PyTorch model was filled with the same numbers."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        x = 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    return x.astype(np.float32)


def tagged(tag: str, shape: tuple[int, ...]) -> np.ndarray:
    """An input of the reference, standard normal."""
    return np.random.default_rng(zlib.crc32(tag.encode())).standard_normal(shape).astype(np.float32)


def channels_last(x: np.ndarray) -> np.ndarray:
    """b c f h w -> b f h w c"""
    return x.transpose(0, 2, 3, 4, 1)


def synthetic_model(config: UNet3DConfig, layout: dict[str, Any]) -> dict[str, Any]:
    """Our parameters, from PyTorch arrays of these names and shapes."""
    return from_torch({name: synthesise(name, tuple(shape)) for name, shape in layout.items()}, config)


@pytest.fixture(scope="session", autouse=True)
def program_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the commands that tests run cache compiled programs; this process caches none."""
    folder = tmp_path_factory.mktemp("compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    return folder


@pytest.fixture
def cache_folder(tmp_path: Path) -> Iterator[Path]:
    """For one test this process caches what it compiles, as sample.py does, in a folder of its own."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
    enable_compilation_cache()
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


class Reference(NamedTuple):
    """A small model with the reference's weights, its inputs (channels last), its outputs (PyTorch's
    axes)."""

    config: UNet3DConfig
    state_dict: dict[str, np.ndarray]
    params: dict[str, Any]
    latents: jax.Array
    text: jax.Array
    uncond: jax.Array
    skeleton: jax.Array
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def reference() -> Reference:
    layout = json.loads((FIXTURES / "small_layout.json").read_text())
    config = UNet3DConfig(**layout["config"])
    state_dict = {name: synthesise(name, tuple(shape)) for name, shape in layout["state_dict"].items()}
    skeleton = np.random.default_rng(zlib.crc32(b"small/skeleton")).random((1, 3, 3, 64, 64))
    with np.load(FIXTURES / "small_reference.npz") as arrays:
        return Reference(
            config,
            state_dict,
            from_torch(state_dict, config),
            jnp.asarray(channels_last(tagged("small/sample", (1, 4, 3, 8, 8)))),
            jnp.asarray(tagged("small/text", (1, 7, 32))),
            jnp.asarray(tagged("small/uncond", (1, 7, 32))),
            jnp.asarray(skeleton.astype(np.float32).transpose(0, 1, 3, 4, 2)),
            dict(arrays),
        )


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion of random weights, written by PyTorch's diffusers and transformers."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    levels = 4  # three halvings: 8 pixels for one latent
    folder = tmp_path_factory.mktemp("pipeline")
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[16, 16, 32, 32],
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.13,
    )
    text_config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=[32, 64, 64, 64],
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    for part, model in (("vae", vae), ("text_encoder", CLIPTextModel(text_config)), ("unet", unet)):
        fill_torch(model)
        model.save_pretrained(folder / part)
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    ).save_pretrained(folder / "scheduler")
    tokenizer = resources.files("fyp_jax").joinpath("assets", "models", "sd14", "tokenizer")
    shutil.copytree(str(tokenizer), folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP of random weights, as PyTorch's transformers saves it."""
    import tiny_models

    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    side = 32
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {
        "vocab_size": 514,
        "max_position_embeddings": 77,
        "eos_token_id": 513,
        "bos_token_id": 512,
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config=tower | {"image_size": side, "patch_size": 8}, projection_dim=12
    )
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    transformers.CLIPTokenizer.from_pretrained(str(tiny_models.TOKENIZER)).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)
    return folder


def fill_torch(model: Any) -> None:
    """Numbers for a PyTorch module with which no layer, bias or normalisation is at its default."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(synthesise(name, tuple(parameter.shape))))


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub of this test's own, which huggingface_hub asks in this process. Nobody is logged in."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import reset_sessions

    with FakeHub() as hub:
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        files = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        reset_sessions()  # an open one may be offline
        yield hub
    reset_sessions()
