"""ONNX Runtime and OpenVINO: writing a model for them, and reading it back.

A network takes images float32 [B,3,S,S] of values 0 to 1 (RGB, S the run's --size) and gives logits
[B,n_logits,S,S]; the normalisation is inside.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fewmask.engines.signals import own_signal_stack
from fewmask.inference import BATCH, PORTION, Network
from fewmask.segmentation import predicted
from fewmask.types import UserError

NEAR = 0.99
"""Share of the pixels to which int8 gives the original's class, or another scheme is tried."""
Writer = Callable[[nn.Module, Path, Tensor], Network]
"""(network, file to write, images to trace it with) -> the network read back from that file."""


def needs(name: str) -> ModuleType:
    """A package of the extra `export`. Raises UserError where it is missing."""
    # OpenVINO and NNCF report their use over the network unless this package is missing. (Where
    # a program has imported them before, that is its own choice.)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{name} is needed for this. Install the extra `export` (pip install '.[export]')"
        ) from None


def exported(network: nn.Module, images: Tensor) -> Any:
    """The network as torch.export gives it, for batches of any number of images."""
    if len(images) == 1:  # a dimension of 1 would be taken for one that never changes
        images = torch.cat([images, images])
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(network, (images,), dynamic_shapes=({0: batch},), strict=False)


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Whatever a library raises, as a UserError that begins with `what`; OSErrors as they are."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as problem:  # OpenVINO's, NNCF's and ONNX Runtime's share no other base
        why = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise UserError(f"{what} ({why})") from problem


def write_onnx(network: nn.Module, path: Path, images: Tensor) -> Network:
    """Write one .onnx file. Raises UserError where a package is missing."""
    needs("onnxscript")
    torch.onnx.export(
        exported(network, images),
        f=str(path),
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    return read_onnx(path)


def read_onnx(path: Path) -> Network:
    """The network of an .onnx file, on the CPU."""
    runtime = needs("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def write_openvino(network: nn.Module, path: Path, images: Tensor) -> Network:
    """Write an .xml file and its .bin. Raises UserError where the package is missing."""
    openvino = needs("openvino")
    save_openvino(openvino.convert_model(exported(network, images)), path)
    return read_openvino(path)


def save_openvino(converted: Any, path: Path) -> None:
    """Raises OSError where there is no room."""
    try:
        needs("openvino").save_model(converted, str(path), compress_to_fp16=False)
    except RuntimeError as problem:  # its own words don't say which file, nor why
        raise OSError(
            errno.EIO, "openvino could not save it: no room or no permission"
        ) from problem


def read_openvino(path: Path) -> Network:
    """The network of an .xml file, on the CPU and in float32 (int8 where it was quantised)."""
    return compiled(str(path))


def compiled(model: Any, *, bf16: bool = False) -> Network:
    """The network of an OpenVINO model, or of its file.

    A batch is cut into portions, whose maps stay in a core's cache (int8, ResNet-18, 256 px, one
    core: 78 images/s in fours, 52 in sixteens), and streams work on them beside each other, each by
    its share of the threads. Images go in as they lie in memory, with their channels last.
    """
    openvino = needs("openvino")
    core, threads = openvino.Core(), torch.get_num_threads()
    streams = min(threads, BATCH // PORTION)
    # By itself it computes in bf16 where the processor can, and would differ from the original.
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
    }
    read = core.read_model(model) if isinstance(model, str) else model.clone()
    steps = openvino.preprocess.PrePostProcessor(read)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    with own_signal_stack():
        ready = core.compile_model(steps.build(), "CPU", settings)
    requests = [ready.create_infer_request() for _ in range(streams)]

    def network(images: Tensor) -> Tensor:
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        portion = max(1, min(PORTION, -(-len(pixels) // streams)))
        # In turn: OpenVINO's own queue would call Python from threads of its own.
        under_way: deque[Any] = deque()
        found = []
        for place, first in enumerate(range(0, len(pixels), portion)):
            if len(under_way) == streams:
                found.append(_output(under_way.popleft()))
            request = requests[place % streams]
            request.start_async({0: pixels[first : first + portion]})
            under_way.append(request)
        return torch.cat(found + [_output(request) for request in under_way])

    return network


def _output(request: Any) -> Tensor:
    """A request's output when it is done; a copy, for its own memory is its next one's."""
    request.wait()
    return torch.from_numpy(request.get_output_tensor(0).data.copy())


def agreement(one: Network, other: Network, images: Tensor) -> float:
    """The share of pixels of images [N,3,S,S] to which both give one class."""
    same = total = 0
    with torch.inference_mode():
        for part in torch.split(images, 16):
            equal = predicted(one(part)) == predicted(other(part))
            same, total = same + int(equal.sum()), total + equal.numel()
    return same / total


def write_int8(network: nn.Module, path: Path, images: Tensor) -> Network:
    """As `write_openvino`, its convolutions and matrix products in int8, calibrated on `images`.

    Post-training quantisation by NNCF (Kozlov et al. 2020, arXiv:2002.08679): weights symmetric and
    per channel, activations by the mean extremes of the calibration images, biases corrected. Where
    that gives other classes to 1 % of the pixels or more, NNCF's scheme for transformers is tried
    as well, which leaves scales and shifts between layers in float32 (DenseNet has many), and the
    nearer one is written. Half of the images calibrate, the other half compare (`halves`). Raises
    UserError where a package is missing.
    """
    images, others = halves(images)
    openvino = needs("openvino")
    with _quiet(), own_signal_stack():
        nncf = needs("nncf")
        converted = openvino.convert_model(exported(network, images))
        calibration = nncf.Dataset([image.numpy() for image in torch.split(images, 1)])
        best = (-1.0, None)
        for scheme in (None, nncf.ModelType.TRANSFORMER):
            made = nncf.quantize(
                converted,
                calibration,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images),
                model_type=scheme,
            )
            agreed = agreement(network, compiled(made), others)
            if agreed > best[0]:
                best = (agreed, made)
            if agreed >= NEAR:
                break
    save_openvino(best[1], path)
    return read_openvino(path)


def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """Every other of the images [N,3,S,S], and those between; all twice below 16."""
    return (images[::2], images[1::2]) if len(images) >= 16 else (images, images)


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars on standard output, and talks on both streams."""
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


WRITERS: dict[str, Writer] = {"onnx": write_onnx, "openvino": write_openvino}
READERS: dict[str, Callable[[Path], Network]] = {"onnx": read_onnx, "openvino": read_openvino}
