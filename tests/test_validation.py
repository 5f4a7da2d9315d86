"""Validation clips are sampled with the config's options; options that it leaves open are as in training."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny_models
from fyp_jax.data.config import DataConfig
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import make_mesh
from fyp_jax.pipeline.programs import SamplingPrograms
from fyp_jax.training.config import LogConfig, TrainConfig, ValidationConfig
from fyp_jax.training.logs import TrainingLog
from fyp_jax.training.state import init_state
from fyp_jax.training.validation import Validation

SIDE, FRAMES = 128, 2


@pytest.fixture
def denoise_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Latents and static arguments of each denoising step; no program of the pipeline runs."""
    calls = []

    def run(programs: SamplingPrograms, name: str, *args: Any, **static: Any) -> Any:
        if name == "denoise":
            calls.append((np.asarray(args[1]), static))
            return args[1:3]
        spec = programs.encoders.spec
        if name == "encode_text":
            return jnp.zeros((1, spec.tokens, spec.text_width))
        if name == "encode_pose":
            return []
        assert name == "decode"
        return jnp.zeros((1, FRAMES, SIDE, SIDE, 3), jnp.uint8)

    monkeypatch.setattr(SamplingPrograms, "run", run)
    return calls


def validate(folder: Path, training_correlation: float, **options: Any) -> None:
    """One validation clip with these options, in a run that trains with this noise correlation."""
    validation = ValidationConfig(
        sample_interval=1, prompt=["a robot"], num_frames=FRAMES, num_inference_steps=1, **options
    )
    config = TrainConfig(
        noise_correlation=training_correlation,
        data=DataConfig(height=SIDE, width=SIDE),
        validation=validation,
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    models = tiny_models.models("motion", ExecutionConfig())
    state = init_state({}, {}, optax.sgd(1.0), use_ema=False, mesh=mesh)
    log = TrainingLog(folder, 0, 1, LogConfig(), active=False)
    Validation(config, models, mesh, FRAMES).run(1, state, log)


@pytest.mark.parametrize(("in_validation", "expected"), [(None, 0.6), (0.0, 0.0), (0.3, 0.3)])
def test_validation_noise_has_the_correlation_of_training_unless_given(
    denoise_calls: list, tmp_path: Path, in_validation: float | None, expected: float
):
    validate(tmp_path, 0.6, noise_correlation=in_validation)
    ((noise, _),) = denoise_calls
    assert noise.shape == (1, FRAMES, SIDE // 8, SIDE // 8, 4)
    np.testing.assert_allclose(np.corrcoef(noise[0].reshape(FRAMES, -1))[0, 1], expected, atol=0.1)


@pytest.mark.parametrize("pose_guidance", [True, False])
def test_validation_uses_its_own_pose_guidance(denoise_calls: list, tmp_path: Path, pose_guidance: bool):
    validate(tmp_path, 0.0, pose_guidance=pose_guidance)
    ((_, static),) = denoise_calls
    assert static["pose_guidance"] is pose_guidance
