"""`python -m worker.sample FILE …`: text from a checkpoint, for `gptjobs checkpoints sample`."""

import argparse
import codecs
import itertools
import sys
from pathlib import Path

from gptjobs import checkpoint
from gptjobs.config import VOCABULARY
from gptjobs.data import encoding
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.sample")
    parser.add_argument("root", type=Path)
    parser.add_argument("name", help="of the checkpoint, relative to the root")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--device")
    for name, kind in (("temperature", float), ("top-k", int), ("top-p", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    asked = parser.parse_args()
    try:
        _sample(asked)
    except GptjobsError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def _sample(asked: argparse.Namespace) -> None:
    layout = Layout(asked.root)
    found = checkpoint.read(layout, asked.name)
    name = found.manifest.settled.train.encoding
    codec = encoding.codec(layout, name)
    prompt = codec.encode(asked.prompt)

    from worker.trainer.device import best_available, open_device
    from worker.trainer.generate import Sampling, generate
    from worker.trainer.state import load_model

    model = load_model(layout, found, open_device(asked.device or best_available(), "float32"))
    sampling = Sampling(temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, seed=asked.seed)
    as_text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    print(asked.prompt, end="", flush=True)
    made = generate(model, prompt, sampling, VOCABULARY[name])
    for token in itertools.islice(made, asked.tokens):
        print(as_text.decode(codec.bytes_of(token)), end="", flush=True)
    print(as_text.decode(b"", final=True))


if __name__ == "__main__":
    sys.exit(main())
