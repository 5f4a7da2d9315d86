"""Models go to the Hub and come back: the real huggingface_hub against a Hub on 127.0.0.1."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict
from huggingface_hub import constants, lfs
from safetensors.numpy import save_file

import single_files
import tiny_models
from cli_utils import SCRIPTS, Run, assert_mistake, assert_same, run_script
from fake_hub import FakeHub
from fyp_jax.checkpoints.inference import inference_shapes, load_inference, save_inference
from fyp_jax.convert.export_formats import EXPORT_FORMATS
from fyp_jax.convert.followyourpose_checkpoint import find_checkpoint, find_pose_encoder
from fyp_jax.convert.hub import HubName, parse_hub_name
from fyp_jax.convert.hub_upload import without_places
from fyp_jax.convert.model_card import USAGE
from fyp_jax.convert.open_pipeline import open_pipeline
from fyp_jax.convert.style_files import LORA_NAMES, find_style_file
from fyp_jax.errors import UserError
from fyp_jax.models.random_params import random_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

STEP = 7
WEIGHTS = [
    "follow_your_pose.safetensors",
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion, with options of sampling."""
    folder = tmp_path_factory.mktemp("base")
    path = tiny_models.write_weights(tiny_models.write_pipeline(folder / "sizes"), folder / "private name")
    (path / "sampling_params.json").write_text('{"num_inference_steps": 3}')
    return path


def save(folder: Path, base: Path, seed: int) -> dict[str, Any]:
    params = random_params(inference_shapes(tiny_models.UNET), seed=seed)
    save_inference(folder, STEP, tiny_models.UNET, params, {"stage": "motion", "pretrained": str(base)})
    return params


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "motion"
    save(folder, base, seed=5)
    return folder


@pytest.fixture
def alice(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The Hub, on which this process is logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return fake_hub


def export(checkpoint: Path, out: Path, *args: object, form: str = "pipeline") -> Run:
    common = "--checkpoint", checkpoint, "--out", out, "--format", form, "--license", "openrail++"
    return run_script(SCRIPTS / "export_pytorch.py", *common, *args)


def weight_files(files: list[str]) -> list[str]:
    return [file for file in files if file.endswith((".safetensors", ".bin"))]


# ---- a push, and what comes back


@pytest.mark.slow
def test_pushed_model_is_loaded_by_its_name_with_the_same_weights(
    alice: FakeHub, base: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = export(checkpoint, tmp_path / "out", "--push-to-hub", "clips", "--private")
    assert run.status == 0, run.err
    assert f"{alice.endpoint}/alice/clips (private)" in run.out
    repository = alice.repositories["alice/clips"]
    assert repository.private
    assert alice.objects, "nothing went over Git LFS"

    alice.requests.clear()
    loaded = FollowYourPosePipeline.from_pretrained("alice/clips")
    assert weight_files(alice.downloads("alice/clips")) == WEIGHTS
    expected = FollowYourPosePipeline.from_pretrained(base, checkpoint=checkpoint)
    assert loaded.weights["crc32"] == expected.weights["crc32"]
    assert_same(loaded.params, expected.params)
    assert loaded.defaults == expected.defaults
    assert loaded.defaults.num_inference_steps == 3
    assert loaded.weights["provenance"]["stage"] == "motion"

    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache of bob"))
    with pytest.raises(UserError, match="the Hub has no alice/clips, or it is private; log in"):
        FollowYourPosePipeline.from_pretrained("alice/clips")


@pytest.mark.slow
def test_pushed_files_tell_nothing_of_this_machine(alice: FakeHub, checkpoint: Path, tmp_path: Path):
    for form in ("pipeline", "safetensors"):
        assert export(checkpoint, tmp_path / form, "--push-to-hub", form, form=form).status == 0
        for name, content in alice.repositories[f"alice/{form}"].files.items():
            assert str(tmp_path.parent).encode() not in content, f"{name} names a folder of this machine"
    provenance = json.loads(alice.repositories["alice/pipeline"].files["conversion.json"])["provenance"]
    assert provenance == {"stage": "motion", "pretrained": "private name", "step": STEP}
    assert without_places({"a": ["/x/y", "runs/z", "gs://b/c"], "d": {"e": "C:\\f\\g"}}) == {
        "a": ["y", "runs/z", "c"], "d": {"e": "g"}
    }  # fmt: skip


@pytest.mark.slow
def test_second_push_replaces_the_files_of_the_first(
    alice: FakeHub, base: Path, checkpoint: Path, tmp_path: Path
):
    """Shards of the first export would be read beside the file of the second."""
    push = "--push-to-hub", "alice/clips"
    assert export(checkpoint, tmp_path / "one", *push, "--max-shard-size", "30KB").status == 0
    repository = alice.repositories["alice/clips"]
    shards = [file for file in repository.files if "-of-" in file]
    assert len(shards) > 5
    repository.tag("sharded")
    repository.commit({**repository.files, "samples/mine.png": b"by hand"})

    changed = save(tmp_path / "other", base, seed=6)
    assert_mistake(
        export(tmp_path / "other", tmp_path / "two", *push),
        "alice/clips: exists already (--overwrite replaces the files of an earlier export)",
    )
    assert export(tmp_path / "other", tmp_path / "two", "--model-card").status == 0
    (tmp_path / "two" / "notes.txt").write_text("for me alone")
    assert export(tmp_path / "other", tmp_path / "two", *push, "--overwrite").status == 0
    assert (tmp_path / "two" / "notes.txt").is_file()
    assert "notes.txt" not in repository.files, "only what an export wrote goes to the Hub"
    files = sorted(repository.files)
    assert weight_files(files) == WEIGHTS
    assert not [file for file in files if file.endswith(".index.json")]
    assert repository.files["samples/mine.png"] == b"by hand"

    assert_same(FollowYourPosePipeline.from_pretrained("alice/clips").params["unet"], changed["unet"])
    before = load_inference(checkpoint)[1]
    loaded = FollowYourPosePipeline.from_pretrained("alice/clips@sharded")
    assert_same(loaded.params["unet"], before["unet"])
    assert_same(loaded.params["pose_encoder"], before["pose_encoder"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "name", "messages"),
    [
        (None, "clips", ["clips: nobody is logged in to the Hub; run `hf auth login`"]),
        ("hf_wrong", "clips", ["clips: the Hub does not take this token"]),
        ("hf_read", "clips", ["alice/clips: this token may not write to repositories of alice"]),
        (
            "hf_alice",
            "bob/clips",
            ["bob/clips: this token may not write to repositories of bob", "another name"],
        ),
        ("hf_alice", "a b/c", ["a b/c: the Hub does not take it"]),
    ],
)
def test_push_without_the_right_is_refused_before_anything_is_written(
    fake_hub: FakeHub,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    name: str,
    messages: list[str],
):
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    fake_hub.add("bob/clips", {"README.md": b"a model of another"})
    run = export(checkpoint, tmp_path / "out", "--push-to-hub", name)
    assert_mistake(run, *messages)
    assert not (tmp_path / "out").exists()
    assert list(fake_hub.repositories) == ["bob/clips"]


@pytest.mark.slow
def test_push_without_network_is_one_line(
    alice: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    push = "--push-to-hub", "clips"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        constants, "ENDPOINT", "http://127.0.0.1:9"
    )  # the port of discarding, which is closed
    from huggingface_hub.utils import reset_sessions

    reset_sessions()
    assert_mistake(export(checkpoint, tmp_path / "out", *push), "clips: HF_HUB_OFFLINE is set")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    reset_sessions()
    assert_mistake(
        export(checkpoint, tmp_path / "out", *push), "clips: the Hub cannot be asked (ConnectionError"
    )


@pytest.mark.slow
def test_private_push_to_a_public_repository_is_refused(alice: FakeHub, checkpoint: Path, tmp_path: Path):
    """It stays public when it exists, whatever a push asks for."""
    alice.add("alice/clips", {})
    run = export(checkpoint, tmp_path / "out", "--push-to-hub", "clips", "--private")
    assert_mistake(run, "alice/clips: exists and is public; make it private in its settings")


@pytest.mark.slow
def test_repository_that_no_export_wrote_is_not_overwritten(alice: FakeHub, checkpoint: Path, tmp_path: Path):
    alice.add("alice/clips", {"thesis.txt": b"mine"})
    run = export(checkpoint, tmp_path / "out", "--push-to-hub", "clips", "--overwrite")
    assert_mistake(run, "alice/clips: has no conversion.json, so no export wrote it")
    assert alice.repositories["alice/clips"].files == {"thesis.txt": b"mine"}


@pytest.mark.slow
def test_interrupted_upload_changes_nothing_and_goes_on_where_it_ended(
    alice: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lfs, "http_backoff", functools.partial(lfs.http_backoff, max_retries=0))
    alice.break_upload = lambda oid: len(alice.objects) >= 2
    push = "--push-to-hub", "clips"
    run = export(checkpoint, tmp_path / "out", *push)
    assert run.status == 2
    last = run.err.splitlines()[-1]
    assert last.startswith("error: alice/clips: the upload did not finish (ConnectionError")
    assert f"the export is in {tmp_path / 'out'}; the same command with --overwrite" in last
    assert list(alice.repositories["alice/clips"].files) == [".gitattributes"]
    arrived = set(alice.objects)
    assert len(arrived) >= 2

    alice.break_upload = lambda oid: False
    alice.requests.clear()
    run = export(checkpoint, tmp_path / "out", *push, "--overwrite")
    assert run.status == 0, run.err
    sent = {path.removeprefix("/lfs/") for method, path in alice.requests if method == "PUT"}
    assert sent
    assert not sent & arrived, "a file that had arrived was sent again"


@pytest.mark.slow
def test_license_that_the_hub_does_not_know_is_told(alice: FakeHub, checkpoint: Path, tmp_path: Path):
    run = export(checkpoint, tmp_path / "out", "--push-to-hub", "clips", "--license", "mine")
    assert run.status == 2
    assert (
        'alice/clips: the Hub does not take it (Invalid metadata in README.md. - "license" must be' in run.err
    )


# ---- the model card


def card(text: str) -> tuple[dict[str, Any], str]:
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


@pytest.mark.slow
def test_model_card_is_written_without_a_network(checkpoint: Path, tmp_path: Path):
    """conftest sets HF_HUB_OFFLINE."""
    from fyp_jax.evaluation.scene_set import SceneScores, Score

    scores = {"pose_accuracy": (0.9, 0.8, 0.95), "edge_width": (3.25, 3.0, 3.5)}
    interval = {name: Score(*x, clips=(x[0],))._asdict() for name, x in scores.items()}
    rows = {name: interval.get(name, interval["edge_width"]) for name in SceneScores._fields}
    rows["character"] = None  # no clips with this score
    (tmp_path / "scores.json").write_text(json.dumps({"ground truth": rows, "full model": rows}))
    out = tmp_path / "dancers"
    run = export(checkpoint, out, "--model-card", "--metrics", tmp_path / "scores.json")
    assert run.status == 0, run.err
    header, body = card((out / "README.md").read_text())
    assert header["license"] == "openrail++"
    assert header["library_name"] == "diffusers"
    assert header["pipeline_tag"] == "text-to-video"
    assert {"fyp_jax", "jax", "follow-your-pose"} <= set(header["tags"])
    assert "base_model" not in header, "a folder of this machine is no model of the Hub"
    (index,) = header["model-index"]
    values = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert (values["pose_accuracy"], values["edge_width"]) == (0.9, 3.25)
    assert "character" not in values
    assert 'FollowYourPosePipeline.from_pretrained("OWNER/dancers")' in body
    assert 'StableDiffusionPipeline.from_pretrained("OWNER/dancers")' in body
    assert "| full model | 0.900 (0.800 to 0.950)" in body
    assert "| stage of training | motion |" in body
    assert "README.md" in json.loads((out / "conversion.json").read_text())["other_files"]
    run = export(checkpoint, tmp_path / "again", "--model-card", "--metrics", out / "conversion.json")
    assert_mistake(run, "conversion.json: not the scores.json of evaluate.py")


@pytest.mark.slow
def test_card_names_the_base_model_and_takes_its_license(
    alice: FakeHub, base: Path, checkpoint: Path, tmp_path: Path
):
    alice.add("CompVis/stable-diffusion-v1-4", base)
    run = run_script(
        SCRIPTS / "export_pytorch.py",
        *("--checkpoint", checkpoint, "--out", tmp_path / "out", "--format", "pipeline", "--push-to-hub"),
        *("clips", "--pipeline", "CompVis/stable-diffusion-v1-4"),
    )
    assert run.status == 0, run.err
    header, body = card(alice.repositories["alice/clips"].files["README.md"].decode())
    assert header["license"] == "creativeml-openrail-m"
    assert header["base_model"] == "CompVis/stable-diffusion-v1-4"
    assert "model-index" not in header, "there are no scores"
    assert 'FollowYourPosePipeline.from_pretrained("alice/clips")' in body


@pytest.mark.slow
def test_card_of_unknown_license_asks_for_it(checkpoint: Path, tmp_path: Path):
    args = "--checkpoint", checkpoint, "--out", tmp_path / "out", "--format", "pipeline", "--model-card"
    run = run_script(SCRIPTS / "export_pytorch.py", *args)
    assert_mistake(run, "the model card needs the licence", "give --license ID")
    assert not (tmp_path / "out").exists()


def test_every_export_format_has_a_card():
    assert set(USAGE) == set(EXPORT_FORMATS)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--private"], "--private is of --push-to-hub"),
        (["--metrics", "x.json"], "are of the model card"),
        (["--push-to-hub", "a/b", "--format", "pipeline", "safetensors"], "a repository has one format"),
    ],
)
def test_options_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path, args: list[str], message: str):
    assert_mistake(export(checkpoint, tmp_path / "out", *args), message)


# ---- loading by name


def test_one_module_downloads():
    package = SCRIPTS.parent / "fyp_jax"
    found = {path.name for path in package.rglob("*.py") if "huggingface_hub" in path.read_text()}
    assert found == {"hub.py", "hub_upload.py", "model_card.py"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/name", ("user/name", None, None)),
        ("user/name@v1.0", ("user/name", "v1.0", None)),
        ("user/name@feature%2Fx/a/b.bin", ("user/name", "feature/x", "a/b.bin")),
        ("user/name@refs/pr/1", ("user/name", "refs/pr/1", None)),
        ("user/name/ink.safetensors", ("user/name", None, "ink.safetensors")),
        *[(name, None) for name in ("mini", "/a/b", "./a/b", "~/a", "gs://a/b", "C:\\a\\b", "a/b/", "a/b@")],
    ],
)
def test_names_of_the_hub(name: str, expected: tuple[str | None, ...] | None):
    assert parse_hub_name(name) == (None if expected is None else HubName(*expected))


def test_unknown_revision_and_gated_repository_are_told(fake_hub: FakeHub, base: Path):
    repository = fake_hub.add("somebody/base", base)
    with pytest.raises(UserError, match="somebody/base@v9: .*: somebody/base has no revision v9"):
        open_pipeline("somebody/base@v9")
    repository.gated = True
    with pytest.raises(UserError, match="somebody/base: .*accept its terms at .*, and log in"):
        open_pipeline("somebody/base")


@pytest.mark.slow
def test_model_that_was_loaded_once_is_loaded_offline(
    alice: FakeHub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub.utils import reset_sessions

    assert export(checkpoint, tmp_path / "out", "--push-to-hub", "clips").status == 0
    alice.add("alice/ink", {"ink.safetensors": b"lora"})
    before = FollowYourPosePipeline.from_pretrained("alice/clips")
    find_style_file("alice/ink", LORA_NAMES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset_sessions()
    alice.requests.clear()
    after = FollowYourPosePipeline.from_pretrained("alice/clips")
    assert after.weights["crc32"] == before.weights["crc32"]
    assert find_style_file("alice/ink", LORA_NAMES).read_bytes() == b"lora"
    assert alice.requests == []
    with pytest.raises(UserError, match="alice/other: .*run `hf download alice/other` on another one"):
        FollowYourPosePipeline.from_pretrained("alice/other")


@pytest.mark.slow
def test_checkpoint_of_ours_needs_no_unet_of_its_base_on_the_hub(
    fake_hub: FakeHub, base: Path, checkpoint: Path
):
    fake_hub.add("somebody/base", base)
    FollowYourPosePipeline.from_pretrained("somebody/base", checkpoint=checkpoint)
    found = weight_files(fake_hub.downloads("somebody/base"))
    assert found == ["text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"]


@pytest.mark.slow
def test_single_file_of_the_hub_is_downloaded(fake_hub: FakeHub, tmp_path: Path):
    arrays = single_files.single_file(single_files.Sizes(vae_widths=(32,) * 4), is_sd2=False)
    file = single_files.save(arrays, tmp_path / "model.safetensors")
    fake_hub.add("somebody/files", {"sd/model.safetensors": file.read_bytes(), "other.ckpt": b"not needed"})
    folder = open_pipeline("somebody/files/sd/model.safetensors")
    np.testing.assert_array_equal(
        folder.lazy_state_dict("unet")["conv_in.bias"].read(),
        arrays["model.diffusion_model.input_blocks.0.0.bias"].numpy(),
    )
    assert fake_hub.downloads("somebody/files") == ["sd/model.safetensors"]
    with pytest.raises(UserError, match="somebody/files/none.ckpt: .*: somebody/files has no such file"):
        open_pipeline("somebody/files/none.ckpt")


def test_pose_encoder_of_the_hub_is_downloaded(fake_hub: FakeHub, tmp_path: Path):
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "pose.safetensors")
    content = (tmp_path / "pose.safetensors").read_bytes()
    fake_hub.add("somebody/poses", {"pose_encoder.safetensors": content})
    assert find_pose_encoder("somebody/poses/pose_encoder.safetensors").read_bytes() == content


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (
            ["model.safetensors", "pytorch_model.bin", "../pose_encoder.safetensors", "../vae.bin"],
            "a/b/checkpoint-7",
            ["checkpoint-7/model.safetensors", "pose_encoder.safetensors"],
        ),
        (
            ["pytorch_model.bin", "pose_encoder.pth", "random.pkl"],
            "a/b/checkpoint-7",
            ["checkpoint-7/pose_encoder.pth", "checkpoint-7/pytorch_model.bin"],
        ),
        (
            ["../unet.safetensors", "../pose_encoder.safetensors", "../README.md"],
            "a/b",
            ["pose_encoder.safetensors", "unet.safetensors"],
        ),
    ],
)
def test_checkpoint_on_the_hub_is_downloaded_without_what_is_not_needed(
    fake_hub: FakeHub, files: list[str], name: str, expected: list[str]
):
    paths = [os.path.normpath(f"checkpoint-7/{file}") for file in files]
    fake_hub.add("a/b", {path: path.encode() for path in paths})
    folder = find_checkpoint(name)
    assert fake_hub.downloads("a/b") == expected
    assert folder.name == ("checkpoint-7" if name.endswith("7") else folder.name)
    for file in expected:
        assert (folder.parent if name.endswith("7") else folder).joinpath(file).is_file()


DIFFUSERS = """
import json, sys, zlib
import torch
from diffusers import StableDiffusionPipeline
from fyp_jax import FollowYourPosePipeline
from fyp_jax.convert.torch_key_mapping import image_unet_to_torch
from fyp_jax.convert.lazy import to_lazy_tree

theirs = StableDiffusionPipeline.from_pretrained("alice/clips").unet.state_dict()
ours = FollowYourPosePipeline.from_pretrained("alice/clips")
spatial = image_unet_to_torch(to_lazy_tree(ours.params["unet"]))
assert sorted(spatial) == sorted(theirs), set(spatial) ^ set(theirs)
for name, x in spatial.items():
    assert torch.equal(torch.from_numpy(x.read().copy()), theirs[name]), name
print(len(spatial), ours.weights["crc32"])
"""


@pytest.mark.slow
def test_diffusers_and_ours_load_the_same_weights_from_one_hub(
    alice: FakeHub, base: Path, checkpoint: Path, tmp_path: Path
):
    """A process of its own, which knows the Hub by HF_ENDPOINT alone."""
    assert export(checkpoint, tmp_path / "out", "--push-to-hub", "clips", "--private").status == 0
    environment = {name: x for name, x in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": alice.endpoint, "HF_HOME": str(tmp_path / "home")}
    environment |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": str(SCRIPTS.parent)}
    command = [sys.executable, "-c", DIFFUSERS]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = FollowYourPosePipeline.from_pretrained(base, checkpoint=checkpoint)
    found, crc32 = map(int, run.stdout.split()[-2:])
    assert 20 < found < len(flatten_dict(expected.params["unet"], sep="/"))
    assert crc32 == expected.weights["crc32"]
