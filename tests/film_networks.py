"""Small ONNX networks of RTMPose's, YOLOX's and RTMO's input and output form, which find coloured discs, and
films of figures that have a disc of one colour at each joint."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

GREY, RADIUS_OF_COLOURS = 128, 110.0
SIMCC_SIDES = (384, 288)  # height and width, those of RTMPose-x
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # RGB
DISC = 4  # pixels


def directions(count: int) -> np.ndarray:
    """Directions that are spread evenly over the sphere (Fibonacci's spiral)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.pi * (1 + 5**0.5) * np.arange(count)
    r = np.sqrt(1 - z**2)
    return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)


def colours(people: int) -> np.ndarray:
    """RGB colours around grey, [people, 17, 3]."""
    return np.round(GREY + RADIUS_OF_COLOURS * directions(17 * people)).reshape(people, 17, 3)


def render(people: np.ndarray, palette: np.ndarray, height: int, width: int) -> np.ndarray:
    """Discs on grey for people [p 17 3] of one frame; a joint of confidence 0 has none."""
    canvas = Image.new("RGB", (4 * width, 4 * height), (GREY,) * 3)
    draw = ImageDraw.Draw(canvas)
    for person, palette_of_person in zip(people, palette, strict=True):
        for (x, y, confidence), colour in zip(person, palette_of_person, strict=True):
            if confidence:
                centre = (4 * (float(x) + 0.5), 4 * (float(y) + 0.5))  # (0, 0) is the first pixel's middle
                draw.circle(centre, 4 * DISC, fill=tuple(int(c) for c in colour))
    return np.asarray(canvas.reduce(4))


class Graph:
    """An ONNX graph in the making: each call adds a node and gives the name of its output."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def __call__(self, kind: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        name = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def match(self, image: str, palette: np.ndarray, mean: Any, std: Any) -> str:
        """[1 k h w]: 1 where a pixel has colour k (RGB order), falling to 0 with the distance in colour.

        A 1x1 convolution over x, y, z and their square sum gives the squared distance to each colour.
        Erosion by a pixel takes away edges, where the colours of two discs mix.
        """
        k, around = len(palette), palette - GREY
        scale = self("Mul", image, self.constant(np.reshape(std, (1, 3, 1, 1))))
        pixel = self("Add", scale, self.constant(np.reshape(np.asarray(mean) - GREY, (1, 3, 1, 1))))
        channels = self("Concat", pixel, self("ReduceSumSquare", pixel, axes=[1]), axis=1)
        reach2 = (35.0 if k > 17 else 50.0) ** 2
        weights = np.concatenate([2 * around, -np.ones((k, 1))], axis=1) / reach2
        bias = 1 - np.square(around).sum(axis=1) / reach2
        kernel = self.constant(weights.reshape(k, 4, 1, 1))
        matched = self("Relu", self("Conv", channels, kernel, self.constant(bias), kernel_shape=[1, 1]))
        eroded = self("MaxPool", self("Neg", matched), kernel_shape=[3, 3], pads=[1] * 4)
        return self("Neg", eroded)

    def save(self, file: Path, sides: tuple[int, int], outputs: dict[str, list[Any]]) -> Path:
        values = [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name == "labels" else TensorProto.FLOAT, axes
            )
            for name, axes in outputs.items()
        ]
        image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *sides])
        graph = helper.make_graph(self.nodes, "coloured joints", [image], values, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, str(file))
        return file


def swap_to_bgr(palette: np.ndarray) -> np.ndarray:
    return palette[..., ::-1]


def save_rtmpose(file: Path, joints: int = 17, bins: int = 2) -> Path:
    """SimCC of x and y: rows and columns of the matches summed, twice as fine, and smoothed."""
    g = Graph()
    palette = colours(1)[0]
    palette = np.concatenate([palette, palette[:1].repeat(max(0, joints - 17), axis=0)])[:joints]
    matched = g.match("input", palette, MEAN, STD)
    for axis, name in ((2, "simcc_x"), (3, "simcc_y")):
        profile = g("ReduceSum", matched, g.constant([axis], np.int64), keepdims=0)
        scales = g.constant([1, 1, bins])
        fine = g("Resize", profile, "", scales, mode="linear")
        width = 4 * DISC + 1
        kernel = g.constant(np.ones((joints, 1, width)) / width)
        smooth = g("Conv", fine, kernel, group=joints, pads=[width // 2] * 2)
        g("Div", smooth, g("Add", smooth, g.constant(0.05)), to=name)
    return g.save(file, SIMCC_SIDES, {"simcc_x": ["batch", joints, "wx"], "simcc_y": ["batch", joints, "wy"]})


def _box(g: Graph, matched: str) -> list[str]:
    """left, top, right, bottom [1 1] of all that is matched, and a score: 0.9 where something is."""
    any_colour = g("ReduceMax", matched, axes=[1], keepdims=0)  # [1 h w]
    parts = {}
    for axis, names in ((1, ("left", "right")), (2, ("top", "bottom"))):
        there = g("ReduceMax", any_colour, axes=[axis], keepdims=0)  # [1 side]
        there = g("Sign", there)
        first = g("ArgMax", there, axis=1, keepdims=1)
        last = g("ArgMax", there, axis=1, keepdims=1, select_last_index=1)
        parts[names[0]] = _to_float(g, first)
        parts[names[1]] = g("Add", _to_float(g, last), g.constant(1.0))
    score = g("ReduceMax", any_colour, axes=[1, 2], keepdims=0)
    score = g("Mul", g("Sign", g("Reshape", score, g.constant([1, 1], np.int64))), g.constant(0.9))
    return [parts["left"], parts["top"], parts["right"], parts["bottom"], score]


def _to_float(g: Graph, name: str) -> str:
    out = f"n{len(g.nodes)}"
    g.nodes.append(helper.make_node("Cast", [name], [out], to=TensorProto.FLOAT))
    return out


def save_yolox(file: Path, side: int = 320) -> Path:
    """Boxes with scores and labels, as exported with NMS: a person, and a chair over all of the image."""
    g = Graph()
    matched = g.match("input", swap_to_bgr(colours(1)[0]), [0, 0, 0], [1, 1, 1])
    person = g("Concat", *_box(g, matched), axis=1)  # [1 5]
    person = g("Reshape", person, g.constant([1, 1, 5], np.int64))
    g("Concat", person, g.constant([[[0, 0, side, side, 0.95]]]), axis=1, to="dets")
    g("Identity", g.constant([[0, 56]], np.int64), to="labels")
    return g.save(file, (side, side), {"dets": [1, "n", 5], "labels": [1, "n"]})


def save_raw_yolox(file: Path, side: int = 320) -> Path:
    """The grid of YOLOX without NMS: its first cell has the person's box, its second one a chair's."""
    g = Graph()
    matched = g.match("input", swap_to_bgr(colours(1)[0]), [0, 0, 0], [1, 1, 1])
    left, top, right, bottom, score = _box(g, matched)
    cells = sum((side // stride) ** 2 for stride in (8, 16, 32))
    half, stride = g.constant(0.5), g.constant(8.0)
    middle = [g("Div", g("Mul", g("Add", *ends), half), stride) for ends in ((left, right), (top, bottom))]
    sizes = [g("Log", g("Div", g("Sub", *ends), stride)) for ends in ((right, left), (bottom, top))]
    classes = g.constant([[1, 0]])
    person = g(
        "Reshape", g("Concat", *middle, *sizes, score, classes, axis=1), g.constant([1, 1, 7], np.int64)
    )
    others = np.zeros((1, cells - 1, 7))
    others[0, 0] = [10, 10, np.log(10), np.log(10), 0.95, 0, 1]
    g("Concat", person, g.constant(others), axis=1, to="output")
    return g.save(file, (side, side), {"output": [1, cells, 7]})


def save_rtmo(file: Path, people: int, side: int = 320) -> Path:
    """Boxes and joints of people who each have 17 colours: the middles of the matches.

    The score is higher for a person further left, so that the order of two people changes as they cross.
    """
    g = Graph()
    matched = g.match("input", swap_to_bgr(colours(people).reshape(-1, 3)), [0, 0, 0], [1, 1, 1])
    mass = g("ReduceSum", matched, g.constant([2, 3], np.int64), keepdims=0)  # [1 k]
    total = g("Add", mass, g.constant(1e-6))
    ramp = np.arange(side, dtype=np.float32)
    middles = []
    for values in (ramp.reshape(1, 1, 1, side), ramp.reshape(1, 1, side, 1)):
        weighted = g("Mul", matched, g.constant(values))
        middles.append(g("Div", g("ReduceSum", weighted, g.constant([2, 3], np.int64), keepdims=0), total))
    seen = g("Div", mass, g("Add", mass, g.constant(0.2)))
    shape = g.constant([1, people, 17, 1], np.int64)
    columns = [g("Reshape", x, shape) for x in (*middles, seen)]
    g("Concat", *columns, axis=3, to="keypoints")
    places = g("Concat", *columns[:2], axis=3)
    low, high = (g(f"Reduce{kind}", places, axes=[2], keepdims=0) for kind in ("Min", "Max"))  # [1 p 2]
    mean = g("ReduceMean", columns[2], axes=[2], keepdims=0)  # [1 p 1]
    x = g("Slice", low, g.constant([0], np.int64), g.constant([1], np.int64), g.constant([2], np.int64))
    further = g("Sub", g.constant(1.0), g("Div", x, g.constant(2.0 * side)))
    g("Concat", low, high, g("Mul", mean, further), axis=2, to="dets")
    return g.save(file, (side, side), {"dets": [1, people, 5], "keypoints": [1, people, 17, 3]})
