"""An exported network at work: its file alone, without the run, its checkpoint or its configuration."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlcar.errors import UserError
from mtlcar.inference.consistent import level_probabilities
from mtlcar.tasks import TaskSet

if TYPE_CHECKING:
    from mtlcar.data.decode import ImageDecoder

KEY = "mtlcar"
SCHEMA = 1


class ExportedNetwork:
    """A file of `mtlcar export`; ONNX runs in ONNX Runtime, pt2 in PyTorch, both on the CPU.

    Args:
        path: an .onnx or .pt2 file.

    Attributes:
        about: what the file says of itself, see `export_module.describe`.
        tasks: the tasks it predicts, with classes and units.

    Raises:
        UserError: no such file, not one of `mtlcar export`, or a package is missing.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file. `mtlcar export RUN --format onnx` writes one.")
        if path.suffix.lower() not in (".onnx", ".pt2"):
            raise UserError(f"{path}: expected a file of `mtlcar export`, .onnx or .pt2.")
        try:
            text = self._open_onnx(path) if path.suffix.lower() == ".onnx" else self._open_pt2(path)
            self.about: dict[str, Any] = json.loads(text)
            if self.about["schema"] != SCHEMA:
                raise ValueError(f"schema {self.about['schema']}; this version of mtlcar reads {SCHEMA}")
            self.tasks = TaskSet.from_dict(self.about)
        except ImportError as error:
            raise UserError(f"{path} needs {error.name}. Install with: pip install 'mtlcar[export]'") from error
        except Exception as error:  # both libraries raise nearly anything on files that are not theirs
            raise UserError(
                f"{path} is no file of `mtlcar export`, or it is damaged ({type(error).__name__})."
            ) from error

    def _open_onnx(self, path: Path) -> str:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        self._run = lambda pixels: dict(zip(names, session.run(None, {"image": pixels}), strict=True))
        return str(session.get_modelmeta().custom_metadata_map[KEY])

    def _open_pt2(self, path: Path) -> str:
        import torch

        extra = {KEY: ""}
        module = torch.export.load(path, extra_files=extra).module()

        def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                return {name: x.numpy() for name, x in module(torch.from_numpy(pixels)).items()}

        self._run = run
        return extra[KEY]

    def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 RGB [N, 3, H, W] of any size -> the file's outputs, [N] or [N, classes] each."""
        if self.about["input"]["batch"] is None:
            return self._run(np.ascontiguousarray(pixels))
        each = [self._run(np.ascontiguousarray(pixels[i : i + 1])) for i in range(len(pixels))]
        return {name: np.concatenate([found[name] for found in each]) for name in each[0]}

    @property
    def decoder(self) -> "ImageDecoder":
        """Picture file -> uint8 RGB [S, S, 3], as the run's images were made; the file's own resizing keeps it so."""
        from mtlcar.data.decode import ImageDecoder

        return ImageDecoder(self.about["input"]["size"], self.about["input"]["resize"], None)

    def predict(self, files: Sequence[Path]) -> dict[str, np.ndarray]:
        """The file's outputs for pictures, [N] or [N, classes] each: what `mtlcar predict` says by default.

        Raises:
            DamagedImageError: a picture that cannot be decoded.
        """
        return self.outputs(np.stack([self.decoder(Path(file)).transpose(2, 0, 1) for file in files]))

    def probabilities(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Class probabilities [N, C] of every level as `mtlcar predict` prints them: of the consistent paths, where the
        file has each head's own. Empty where scores are none."""
        end = "_probabilities"
        own = {name.removesuffix(end): x for name, x in outputs.items() if name.endswith(end)}
        return level_probabilities(own, self.tasks, self.about["decoding"])
