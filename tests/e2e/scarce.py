"""A worker on a device of little memory, `scarce.py FIT -m worker …`, and its trainers.

More windows at once than FIT find no room.
"""

import os
import sys
from pathlib import Path
from typing import Any


def worker(fit: int) -> int:
    from worker import attempt
    from worker.__main__ import main

    ordinary = attempt.trainer_command

    def command(config: Path, token: int) -> list[str]:
        return [__file__, str(fit), *ordinary(config, token)]

    attempt.trainer_command = command
    return main()


def trainer(fit: int) -> int:
    import torch

    from worker.trainer.__main__ import main
    from worker.trainer.model import GPT

    def with_little_memory(compute: Any) -> Any:
        def computed(model: GPT, tokens: Any, *others: Any) -> Any:
            if len(tokens) > fit:
                raise torch.OutOfMemoryError(f"no memory for {len(tokens)} at once")
            return compute(model, tokens, *others)

        return computed

    GPT.loss, GPT.losses = with_little_memory(GPT.loss), with_little_memory(GPT.losses)
    return main()


if __name__ == "__main__":
    fit, module = int(sys.argv[1]), sys.argv[3]
    del sys.argv[1:4]
    os._exit({"worker": worker, "worker.trainer": trainer}[module](fit))
