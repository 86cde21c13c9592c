"""`python -m gptjobs.doctor ROOT`: the checks of a storage root, a line of JSON each, as it is made."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from gptjobs.doctor import root

if __name__ == "__main__":
    for check in root.examine(Path(sys.argv[1])):
        print(json.dumps(asdict(check)), flush=True)
