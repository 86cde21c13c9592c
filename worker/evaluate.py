"""`python -m worker.evaluate ROOT CHECKPOINT CONTEXT TOKENS`: a checkpoint's losses on the first held-out windows
of its data, at a context of one's choice, for `gptjobs compare --eval-context`.

As JSON: the mean loss of each window, in nats a token. The windows are those that training evaluates on.
"""

import json
import sys
from pathlib import Path

from gptjobs import checkpoint
from gptjobs.errors import GptjobsError, Refused
from gptjobs.layout import Layout
from worker.child import log
from worker.trainer.batches import Batches
from worker.trainer.device import best_available, open_device
from worker.trainer.held_out import losses_on_held_out
from worker.trainer.state import load_model


def main() -> int:
    root, name, context, tokens = sys.argv[1:]
    layout = Layout(Path(root))
    try:
        print(json.dumps(losses(layout, name, int(context), int(tokens))))
    except GptjobsError as error:
        log(f"error: {error.message}")
        return error.exit_code
    return 0


def losses(layout: Layout, name: str, context: int, tokens: int) -> list[float]:
    """Raises Refused where the data has no window of that context, or the model no position for it."""
    found = checkpoint.read(layout, name)
    manifest, device = found.manifest, open_device(best_available(), "float32")
    train, rows = manifest.settled.train, manifest.settled.model.n_positions
    if context > rows:
        raise Refused(f"its position table has {rows} rows")
    file = layout.token_file(manifest.data_name, manifest.data_digest or "", train.encoding)
    data, model = Batches(file, train.block_size, train.seed), load_model(layout, found, device)
    return losses_on_held_out(model, data, context, tokens, device)


if __name__ == "__main__":
    sys.exit(main())
