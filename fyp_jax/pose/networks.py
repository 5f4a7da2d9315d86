"""Networks that find people and their COCO joints in an image, in ONNX files: RTMPose with a YOLOX detector,
or RTMO, which needs no detector (Jiang et al. 2023; Lu et al. 2024). rtmlib runs and downloads them.

This is the extra `[pose]`: `pip install -e '.[pose]'`. Colours are in the order in which OpenMMLab trained
the networks: RTMPose sees RGB (`bgr_to_rgb=True` in its configs), YOLOX and RTMO see BGR. rtmlib's own demo
gives BGR to all of them (https://github.com/Tau-J/rtmlib/issues/48).
"""

import contextlib
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fyp_jax.errors import UserError, reason
from fyp_jax.media.images import Image

MIN_SCORE = 0.3  # of a detected person
JOINTS_OF_NETWORKS = (17, 26, 133)  # COCO, Halpe26, COCO-WholeBody; the first 17 of each are COCO's
DEFAULT_SIDES = {"rtmpose": (256, 192), "rtmo": (640, 640), "yolox": (640, 640)}
"""Height and width for networks that take images of any size: those of rtmlib's default models."""

FindPeople = Callable[[Image], Float[np.ndarray, "p 17 3"]]
"""RGB image -> people: x and y in pixels, and a confidence in 0..1."""


class NetworkFiles(NamedTuple):
    """ONNX files: RTMPose and its detector, or RTMO alone."""

    estimator: Path
    detector: Path | None


def find_networks(detector: Path | None, estimator: Path | None, one_stage: bool = False) -> NetworkFiles:
    """The networks to use: the files given; rtmlib downloads those that are not, at their first use.

    The default is rtmlib's `balanced` RTMPose with YOLOX; with `one_stage` it is RTMO. Raises UserError for
    files that are missing or do not fit together, without the extra `[pose]`, and without a network.
    """
    rtmlib = _import("rtmlib")
    if detector is not None and one_stage:
        raise UserError("--one-stage is RTMO, which needs no detector: leave --detector out")
    if estimator is None:
        models = rtmlib.Body.RTMO_MODE if one_stage else rtmlib.Body.MODE
        estimator = _download(models["balanced"]["pose"])
    kind = _Network(estimator, 1).kind
    if kind not in ("rtmpose", "rtmo"):
        raise UserError(f"{estimator}: is a detector; give it as --detector, and RTMPose as --estimator")
    if kind == "rtmo" and detector is not None:
        raise UserError(f"{estimator}: is RTMO, which needs no detector: leave --detector out")
    if kind == "rtmpose" and one_stage:
        raise UserError(f"{estimator}: is RTMPose, which needs a detector: leave --one-stage out")
    if kind == "rtmpose":
        detector = detector or _download(rtmlib.Body.MODE["balanced"]["det"])
        if _Network(detector, 1).kind != "yolox":
            raise UserError(f"{detector}: is no detector; --detector takes YOLOX, and --estimator takes this")
    return NetworkFiles(estimator, detector)


def load_networks(files: NetworkFiles, threads: int | None = None) -> FindPeople:
    """A function that finds the people of an image. `threads` is that of ONNX Runtime (None: all cores).

    Raises UserError for files that `find_networks` refuses.
    """
    rtmlib = _import("rtmlib")
    network = _Network(files.estimator, threads)
    if files.detector is None:
        rtmo = network.tool(rtmlib.RTMO, network.sides, score_thr=MIN_SCORE)
        return lambda image: _joints(*rtmo(_bgr(image)))
    detector = _Network(files.detector, threads)
    yolox = detector.tool(rtmlib.YOLOX, detector.sides, score_thr=MIN_SCORE)
    rtmpose = network.tool(rtmlib.RTMPose, (network.sides[1], network.sides[0]))

    def find_people(image: Image) -> Float[np.ndarray, "p 17 3"]:
        found = _detect(yolox, _bgr(image))
        # rtmlib would take the whole image for a person where there is none.
        return _joints(*rtmpose(image, found)) if len(found) else np.zeros((0, 17, 3))

    return find_people


def _detect(yolox: Any, bgr: Image) -> Float[np.ndarray, "p 4"]:
    """Boxes of persons as left, top, right, bottom in pixels."""
    padded, ratio = yolox.preprocess(bgr)
    outputs = yolox.inference(padded)
    if outputs[0].shape[-1] == 5:  # left, top, right, bottom, score; the classes, if any, apart
        if len(outputs) > 1:
            outputs[0][..., 4] *= outputs[1] == 0
        found = yolox.postprocess(outputs[0], ratio)
    else:
        yolox.det_mode = "multiclass"
        found, classes = yolox.postprocess(outputs[0], ratio)
        found = found.reshape(-1, 4)[classes == 0]
    found = np.asarray(found, float).reshape(-1, 4)
    return found[(found[:, 2:] - found[:, :2] >= 1).all(axis=1)]


def _joints(places: np.ndarray, scores: np.ndarray) -> Float[np.ndarray, "p 17 3"]:
    """People of rtmlib's keypoints [p j 2] and scores [p j], without those of which nothing was found."""
    confidence = np.clip(scores[:, :17, None], 0, 1)
    people = np.concatenate([np.where(confidence > 0, places[:, :17], 0), confidence], axis=-1, dtype=float)
    return people[(people[..., 2] > 0).any(axis=1)]


def _bgr(image: Image) -> Image:
    return np.ascontiguousarray(image[..., ::-1])


class _Network:
    """An ONNX file as a session of ONNX Runtime, with its kind and the height and width of its input."""

    def __init__(self, file: Path, threads: int | None):
        onnxruntime = _import("onnxruntime")
        if not file.is_file():
            raise UserError(f"{file}: no such file; --detector and --estimator take ONNX files")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, too
        options.intra_op_num_threads = threads or 0
        known = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise UserError(f"{file}: is no network that ONNX Runtime can load ({reason(error)})") from error
        self.file = file
        self.kind, self.sides = self._recognise()

    def _recognise(self) -> tuple[str, tuple[int, int]]:
        """The kind, by the outputs for a grey image, and height and width of the input."""
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            raise UserError(f"{self.file}: takes {[x.shape for x in inputs]}, and not one image [1, 3, h, w]")
        fixed = isinstance(shape[2], int) and isinstance(shape[3], int)
        sides: tuple[int, int] = (shape[2], shape[3]) if fixed else DEFAULT_SIDES["rtmo"]
        outputs = self._run(sides)
        kind = _kind(outputs)
        if kind is None:
            shapes = [output.shape for output in outputs]
            raise UserError(f"{self.file}: is neither RTMPose, RTMO nor YOLOX: its outputs are {shapes}")
        if not fixed and sides != DEFAULT_SIDES[kind]:
            sides = DEFAULT_SIDES[kind]
            outputs = self._run(sides)
        self._check_joints(kind, outputs, sides)
        return kind, sides

    def _run(self, sides: tuple[int, int]) -> list[np.ndarray]:
        try:
            image = np.full((1, 3, *sides), 114, np.float32)
            return self.session.run(None, {self.session.get_inputs()[0].name: image})
        except Exception as error:
            raise UserError(f"{self.file}: fails on an image ({reason(error)})") from error

    def _check_joints(self, kind: str, outputs: list[np.ndarray], sides: tuple[int, int]) -> None:
        if kind == "yolox":
            return
        joints = outputs[0].shape[1] if kind == "rtmpose" else outputs[1].shape[2]
        if joints not in JOINTS_OF_NETWORKS:
            raise UserError(f"{self.file}: finds {joints} joints; needs COCO's 17 (or 26, or 133) of a body")
        bins = tuple(output.shape[2] for output in outputs)
        if kind == "rtmpose" and bins != (2 * sides[1], 2 * sides[0]):
            raise UserError(
                f"{self.file}: its SimCC outputs have {bins} bins for an image of {sides[1]}x{sides[0]}; "
                "RTMPose has two for each pixel"
            )

    def tool(self, kind: Any, input_size: tuple[int, int], **settings: Any) -> Any:
        """rtmlib's class of this kind, with our session."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it loads
            tool = kind(str(self.file), model_input_size=input_size, **settings)
        tool.session = self.session
        return tool


def _kind(outputs: list[np.ndarray]) -> str | None:
    """The kind of a network, by the axes of its outputs."""
    axes = [output.ndim for output in outputs]
    if axes == [3, 3]:  # SimCC of x [1 j bins], and of y
        return "rtmpose"
    if axes == [3, 4] and outputs[0].shape[2] == 5 and outputs[1].shape[3] == 3:  # boxes, joints [1 p j 3]
        return "rtmo"
    if axes == [3] and outputs[0].shape[2] >= 5:  # [1 p 5], or of the grid: [1 n 5 + classes]
        return "yolox"
    if axes == [3, 2] and outputs[0].shape[2] == 5:  # boxes with scores, labels
        return "yolox"
    return None


def _download(url: str) -> Path:
    """The network at this address, which rtmlib keeps in its own cache folder."""
    download = _import("rtmlib.tools.file").download_checkpoint
    try:
        return Path(download(url))
    except Exception as error:  # of the network, of the disk, or of a broken archive
        raise UserError(
            f"{url} cannot be downloaded ({reason(error)}); fetch and unpack it elsewhere, and give the "
            "networks as --detector YOLOX.onnx --estimator RTMPOSE.onnx, or as --estimator RTMO.onnx alone"
        ) from error


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"poses from a film need {error.name}, which is not installed: pip install -e '.[pose]'"
        ) from error
    except ImportError as error:  # OpenCV, on a machine without a display
        raise UserError(
            f"{name} cannot be imported ({reason(error)}); where this is OpenCV's window system, "
            "pip install --force-reinstall opencv-python-headless"
        ) from error
