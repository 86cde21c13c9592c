"""`python -m worker.locate TOKENS BLOCK SEED COUNT SEEN…`: where so many windows of a job's order begin, in tokens,
after each of these numbers of windows.

For `gptjobs data locate`; as JSON. The order is worked out where it is made, with numpy and torch.
"""

import json
import sys
from pathlib import Path

from worker.trainer.batches import Batches


def main() -> None:
    file, *words = sys.argv[1:]
    block, seed, count, *places = map(int, words)
    data = Batches(Path(file), block, seed)
    print(json.dumps([data.starts(seen, count) for seen in places]))


if __name__ == "__main__":
    main()
