"""The config of scripts/edit.py."""

from dataclasses import dataclass, field

from fyp_jax.config import config_field
from fyp_jax.editing.options import EditOptions
from fyp_jax.errors import UserError
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import check_edit_params
from fyp_jax.pose.config import PoseConfig


@dataclass
class EditConfig(SampleConfig):
    """One run of scripts/edit.py: a clip, the prompt that describes it, and the prompts that change it."""

    video: str | None = config_field(
        None, "the clip to edit: a video file, or a bundled clip (robot); null with edit.method=generate"
    )
    video_stride: int = config_field(1, "take every n-th frame of the clip")
    video_start: int = config_field(0, "first frame of the clip to take, counted from 0")
    source: str = config_field("", "the source prompt: what the clip shows")
    edit: EditOptions = field(default_factory=EditOptions)
    source_pose: PoseConfig = field(default_factory=lambda: PoseConfig(path=None, stride=1))
    pose: PoseConfig = field(default_factory=lambda: PoseConfig(path=None))
    inversion: str | None = config_field(
        None, "an .npz file with the clip's inversion; it is made there if there is none yet"
    )

    def check(self) -> None:
        """Raise UserError for values that have the right type but make no edit."""
        super().check()
        self.edit.check()
        if not self.source.strip():
            raise UserError("the source prompt is empty: give --source TEXT, which says what the clip shows")
        if self.invert is not None:
            raise UserError(
                f"invert={self.invert}: an edit inverts its clip itself; give --video FILE instead"
            )
        generate = self.edit.method == "generate"
        if generate and self.video is not None:
            raise UserError(f"video={self.video} and edit.method=generate exclude each other: leave one out")
        if generate and self.inversion is not None:
            raise UserError(f"inversion={self.inversion}: edit.method=generate has no clip; leave it out")
        if not generate and self.video is None and self.inversion is None:
            raise UserError("there is no clip: give --video FILE, or --method generate")
        check_edit_params(self)
        if -1 in (self.mesh.data, self.mesh.frame):
            raise UserError("an edit takes no -1 in its mesh: give mesh.data and mesh.frame as numbers")
        if self.aot_path is not None:
            raise UserError(f"aot_path={self.aot_path}: programs compiled before are for sample.py alone")
        if self.edit.null_text and self.mesh.data * self.mesh.frame > 1:
            raise UserError("edit.null_text=true runs on one device: set mesh.data=1 mesh.frame=1")

    @property
    def in_windows(self) -> bool:
        """Never: an edit makes a clip of any length as a whole."""
        return False
