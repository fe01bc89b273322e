"""`mtlcar export RUN --format onnx|pt2`: a trained network as one file, checked against it before it has its name."""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcar import __version__
from mtlcar.errors import UserError
from mtlcar.listing.finding import find_run
from mtlcar.listing.tables import notice
from mtlcar.runs.files import replacing

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mtlcar.inference.export_module import Exportable
    from mtlcar.inference.network import TrainedNetwork

INPUT = "image"
OPSET = 18
KEY = "mtlcar"
"""Of the JSON in the file: ONNX `metadata_props`, and a pt2's extra files."""


def command(run: str, *, form: str, output: str | None = None) -> int:
    """Write the file, and say how far its outputs are from the network's.

    Returns:
        0; 1 where the network cannot be exported, or the outputs differ: then nothing is written.

    Raises:
        UserError: no such run, an ending that is not the format's, a package that is missing.
    """
    require(form)
    run_dir = find_run(run).directory
    path = Path(output or f"{run_dir.name}.{form}")
    if path.suffix.lower() != f".{form}":
        raise UserError(f"{path}: --format {form} writes .{form} files. Give -o a name that ends so, or none.")
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give the file to write, such as {path / (run_dir.name + '.' + form)}.")

    import torch

    from mtlcar.inference.network import load_network
    from mtlcar.inference.verify import ExportFailedError
    from mtlcar.runs.evaluate import stored_config
    from mtlcar.runs.training import quiet_lightning

    quiet_lightning()
    cfg = stored_config(run_dir, [])
    torch.set_num_threads(cfg.threads)
    network = load_network(run_dir, cfg)
    try:
        difference, about = export(network, path, form)
    except ExportFailedError as error:
        notice(f"{path} was not written. {error}")
        return 1
    images = "any number of pictures" if about["input"]["batch"] is None else "one picture at a time"
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB; takes {images} of any size, uint8 RGB; outputs "
        f"{', '.join(about['outputs'])}; largest difference from PyTorch {difference:.1g} (of scores; of values as a "
        "share)"
    )
    return 0


def require(form: str) -> None:
    """UserError where a package that the format needs is not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if form == "onnx" and missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}. Install with: pip install 'mtlcar[export]'")


def export(network: "TrainedNetwork", path: Path, form: str) -> tuple[float, dict[str, Any]]:
    """Write `path` once its outputs are the network's -> the largest difference, and what the file says of itself.

    Raises:
        ExportFailedError: the exporter cannot translate the network, or the file's outputs differ.
    """
    import torch

    from mtlcar.inference.export_module import Exportable, describe
    from mtlcar.inference.exported import ExportedNetwork
    from mtlcar.inference.verify import ExportFailedError, compare

    module = Exportable(network).eval()
    with torch.no_grad(), _quiet():
        try:
            program, batch = _trace(module, network.image_size)
            names = list(module(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)))
            about = describe(network, __version__)
            about["input"]["batch"], about["outputs"] = batch, names
            with replacing(path) as temporary:
                own = temporary.with_name(temporary.name + path.suffix)  # exporters and readers look at the ending
                try:
                    _write(program, own, form, names, about)
                    difference = compare(module, ExportedNetwork(own), network.image_size)
                    own.replace(temporary)
                finally:
                    own.unlink(missing_ok=True)
        except (ExportFailedError, OSError, UserError):
            raise
        except Exception as error:  # exporters fail in as many ways as networks differ
            words = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise ExportFailedError(
                f"{form}: the network cannot be exported ({type(error).__name__}: {words})."
            ) from error
    return difference, about


def _trace(module: "Exportable", size: int) -> "tuple[ExportedProgram, int | None]":
    """The program, and the number of images it takes (None: any). Height and width are open."""
    import torch

    auto = torch.export.Dim.AUTO
    # `len(tensor)` in a network fixes the number of images; the slower way by bytecode (strict) leaves it open.
    for batch, strict in ((2, False), (2, True), (1, False)):
        # no side is a multiple of another or of the network's, so that none is taken for a constant
        image = torch.randint(0, 256, (batch, 3, size + 7, size + 11), dtype=torch.uint8, generator=_seeded())
        dims = {2: auto, 3: auto} if batch == 1 else {0: auto, 2: auto, 3: auto}
        try:
            program = torch.export.export(module, (image,), dynamic_shapes=(dims,), strict=strict)
        except Exception:
            if not strict:
                raise
            continue
        taken = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == INPUT)
        if batch == 1 or not str(taken.meta["val"].shape[0]).isdecimal():  # a symbol: any number
            break
    return program, 1 if batch == 1 else None


def _write(program: "ExportedProgram", path: Path, form: str, names: list[str], about: Mapping[str, Any]) -> None:
    import torch

    text = json.dumps(about)
    if form == "pt2":
        torch.export.save(program, path, extra_files={KEY: text})
        return
    made = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=names, verbose=False
    )
    assert made is not None
    made.model.metadata_props[KEY] = text
    made.save(path, external_data=False)


def _seeded() -> Any:
    import torch

    return torch.Generator().manual_seed(0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters print, log and warn of their own doing, which no user could change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
