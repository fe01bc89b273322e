"""The commands for trained networks: `mtlcar predict`, `explain`, `export` and `diagnose`."""

import argparse
from collections.abc import Callable

DECODINGS = ("independent", "top_down", "marginal", "joint")
FORMATS = ("onnx", "pt2")
PREDICT_EPILOG = """\
RUN is a run directory, or the beginning of a fingerprint. Folders are searched for pictures. Nothing but the run is
needed: neither its data nor a weight file.

  mtlcar predict runs/cascade/4f0c81aa2b17 photo.jpg folder/
  mtlcar predict 4f0c photo.jpg --decoding joint --json
"""
EXPLAIN_EPILOG = """\
  mtlcar explain 4f0c photo.jpg -o why.png     where each task's network looks, side by side (Grad-CAM)
"""
EXPORT_EPILOG = """\
  mtlcar export 4f0c --format onnx             4f0c81aa2b17.onnx, checked against PyTorch
  mtlcar export 4f0c --format pt2 -o car.pt2
"""
DIAGNOSE_EPILOG = """\
Needs the run's data. Gradients are those of its best checkpoint on training images.

  mtlcar diagnose 4f0c                         conflict of the tasks' gradients layer by layer; what features hold
"""


def add_trained(add: Callable[..., argparse.ArgumentParser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    predict = add("predict", "What a trained network says of pictures.", epilog=PREDICT_EPILOG, formatter_class=raw)
    predict.add_argument("run", metavar="RUN", help="run directory")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="picture files and folders of them")
    how = predict.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON, one object a picture")
    how.add_argument("--csv", action="store_true", help="print CSV, one row a picture")
    predict.add_argument("-o", "--output", metavar="FILE", help="write to a file instead (.json, .csv or text)")
    predict.add_argument("--decoding", choices=DECODINGS, help="how levels are made consistent (default: joint)")
    predict.add_argument("--top", type=int, default=3, metavar="K", help="classes listed for each task (default: 3)")
    predict.add_argument("--batch-size", type=int, default=32, metavar="N", help="pictures at once (default: 32)")
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")

    explain = add("explain", "Where a trained network looks (Grad-CAM).", epilog=EXPLAIN_EPILOG, formatter_class=raw)
    explain.add_argument("run", metavar="RUN", help="run directory")
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="picture files and folders of them")
    explain.add_argument("-o", "--output", default="explained.png", metavar="FILE", help="PNG (default: explained.png)")
    explain.add_argument("--tasks", nargs="+", metavar="TASK", help="these tasks (default: all that are trained)")

    export = add("export", "A trained network as one file.", epilog=EXPORT_EPILOG, formatter_class=raw)
    export.add_argument("run", metavar="RUN", help="run directory")
    export.add_argument("--format", choices=FORMATS, required=True, help="ONNX, or torch.export's pt2")
    export.add_argument("-o", "--output", metavar="FILE", help="file to write (default: FINGERPRINT.onnx or .pt2)")

    diagnose = add("diagnose", "What tasks do to each other.", epilog=DIAGNOSE_EPILOG, formatter_class=raw)
    diagnose.add_argument("run", metavar="RUN", help="run directory")
    diagnose.add_argument("--batches", type=int, default=20, metavar="N", help="training batches (default: 20)")
    diagnose.add_argument("-o", "--output", metavar="DIR", help="folder (default: RUN/diagnosis)")
    diagnose.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run_trained(args: argparse.Namespace) -> int:
    if args.command == "predict":
        from mtlcar.inference import predict

        return predict.command(
            args.run,
            args.images,
            form="json" if args.json else "csv" if args.csv else None,
            output=args.output,
            decoding=args.decoding,
            top=args.top,
            batch_size=args.batch_size,
            device=args.device,
        )
    if args.command == "explain":
        from mtlcar.inference import explain

        return explain.command(args.run, args.images, output=args.output, tasks=args.tasks)
    if args.command == "export":
        from mtlcar.inference import export

        return export.command(args.run, form=args.format, output=args.output)
    from mtlcar.diagnosis import command

    return command(args.run, batches=args.batches, output=args.output, as_json=args.json)
