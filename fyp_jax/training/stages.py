"""The training stages, as data: what is trained, on which dataset, by which loss, and whether poses are used.

`pose` and `motion` are Follow Your Pose's two stages. `autoencoder` and `image` make a Stable Diffusion from
nothing, for sizes that nobody has trained; `decoder` trains the autoencoder's decoder alone. `video` trains a
whole UNet on clips. `one_shot` is Tune-A-Video.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fyp_jax.data.config import NO_RANDOM_CROP, ONE_CLIP, SYNTHETIC, DataConfig
from fyp_jax.errors import UserError
from fyp_jax.trees import match_patterns

CROSS_ATTENTION = r"unet/.*/attn[12]"
QUERIES = (CROSS_ATTENTION + r"/to_q/.*",)
TEMPORAL_ATTENTION = (r"unet/.*/attn_temp/.*",)
TEMPORAL = (r"unet/.*/(attn_temp|conv_temporal)/.*",)
SPATIAL = (
    r"unet/(conv_in|conv_norm_out|conv_out|time_embedding)/.*",
    r"unet/.*/(resnets|downsamplers|upsamplers)_\d+/.*",
    r"unet/.*/attentions_\d+/(norm|proj_in|proj_out)/.*",
    r"unet/.*/transformer_blocks_\d+/(norm[123]|norm_temp|ff)/.*",
    CROSS_ATTENTION + r"/to_(k|v|out_0)/.*",
)
"""All parameters of the UNet but the queries and the temporal layers."""


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str
    dataset: str
    """Kind of its data: the name of a TFDS dataset (`data.datasets`), or ONE_CLIP (`data.one_clip`)."""
    uses_pose: bool
    trainable: tuple[str, ...]
    """Regular expressions for whole parameter paths (`unet/...`, `pose_encoder/...`). All else is frozen."""
    loss: str = "diffusion"
    """A key of training.losses.LOSSES."""

    def trains(self, paths: Iterable[str]) -> dict[str, bool]:
        """For each parameter whether it is trained. Raises RuleMismatch for a pattern that matches
        nothing."""
        return match_patterns(self.trainable, paths)


STAGES = {
    stage.name: stage
    for stage in (
        # Follow Your Pose, section 3.1: the pose encoder alone learns, from pairs of image and pose.
        Stage("pose", dataset="pose_images", uses_pose=True, trainable=(r"pose_encoder/.*",)),
        # Section 3.2: the layers that join frames into a clip learn, from videos without poses.
        Stage("motion", dataset="captioned_videos", uses_pose=False, trainable=QUERIES + TEMPORAL),
        # Tune-A-Video (Wu et al. 2023), section 3.2: the same without temporal convolutions, on one clip.
        Stage("one_shot", dataset=ONE_CLIP, uses_pose=False, trainable=QUERIES + TEMPORAL_ATTENTION),
        # Rombach et al. 2022, section 3.1: the latent space that the other stages train in.
        Stage(
            "autoencoder", dataset="pose_images", uses_pose=False, trainable=(r"vae/.*",), loss="autoencoder"
        ),
        # The decoder alone: better pictures of latents that other models have learned already.
        Stage(
            "decoder",
            dataset="pose_images",
            uses_pose=False,
            trainable=(r"vae/(decoder|post_quant_conv)/.*",),
            loss="autoencoder",
        ),
        # Section 3.3 there: text-to-image; the text encoder learns together with the UNet.
        Stage(
            "image",
            dataset="pose_images",
            uses_pose=False,
            trainable=(*SPATIAL, *QUERIES, r"text_encoder/.*"),
        ),
        # The UNet as a whole, to overfit a few clips.
        Stage("video", dataset="captioned_videos", uses_pose=False, trainable=SPATIAL + QUERIES + TEMPORAL),
    )
}


def get_stage(name: str) -> Stage:
    """The stage of this name. Raises UserError with all names where there is none."""
    if name not in STAGES:
        raise UserError(f"stage={name}: the stages are {', '.join(STAGES)}")
    return STAGES[name]


def check_kind(kind: str, stage: Stage, source: str) -> None:
    """Raise UserError where the records of a source are not of the kind that a stage trains on."""
    if kind != stage.dataset:
        raise UserError(f"{source}: holds {kind}, but the {stage.name} stage trains on {stage.dataset}")


def check_cachable(data: DataConfig, stage: Stage) -> None:
    """Raise UserError where the latents of a stage's data cannot be cached, since they change in the run."""
    if trained := [
        name for name in ("vae", "text_encoder") if any(x.startswith(name) for x in stage.trainable)
    ]:
        raise UserError(
            f"stage={stage.name} trains the {trained[0].replace('_', ' ')}, so that what it makes of a clip "
            "changes at each step: there is nothing to cache"
        )
    if stage.dataset == ONE_CLIP:
        raise UserError(f"stage={stage.name} trains on one clip; latents are cached of folders of records")
    if data.random_crop is not None:
        raise UserError(f"data.random_crop={data.random_crop}: {NO_RANDOM_CROP}")
    if data.source.startswith(SYNTHETIC):
        raise UserError(
            f"data.path={data.source}: the synthetic world renders another scene for each example, so there "
            "is nothing to cache"
        )
