"""`python -m worker.export ROOT NAME FORMAT OUT`: a checkpoint for other programs, for `gptjobs checkpoints export`."""

import sys
from pathlib import Path

from gptjobs import checkpoint
from gptjobs.data import tokenizer
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout


def main() -> int:
    root, name, form, out = sys.argv[1:]
    layout = Layout(Path(root))
    try:
        found = checkpoint.read(layout, name)
        checkpoint.verify(layout, found)
        from worker.trainer import exported

        if form == "nanogpt":
            exported.nanogpt(layout, found, Path(out))
        else:
            files = tokenizer.files(layout, found.manifest.settled.train.encoding)
            exported.hugging_face(layout, found, Path(out), files)
    except GptjobsError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {out} cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
