"""Whether a checkpoint is whole: the bytes its manifest tells, tensors that can be read, and, of gptjobs' own, weights
that are numbers."""

import math
import zipfile
from array import array
from collections.abc import Callable

from gptjobs import checkpoint, foreign, unpickle
from gptjobs.checkpoint import Checkpoint
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout


def fault(layout: Layout, found: Checkpoint, advance: Callable[[int], None] = lambda count: None) -> str | None:
    """What is wrong with it, in words, or None. `advance` is told the bytes that were hashed."""
    path = layout.path(found.name)
    try:
        if differs := checkpoint.fault(layout, found, advance):
            return differs
        contents = foreign.describe(path)
        for name, tensor in contents.tensors.items() if found.manifest.layout == foreign.OWN else ():
            if not all(_is_finite(piece) for piece in unpickle.numbers(path, tensor)):
                return f"{name} has values that are not finite"
    except (GptjobsError, OSError, zipfile.BadZipFile) as error:
        return error.message if isinstance(error, GptjobsError) else str(error)
    return None


def _is_finite(piece: bytes) -> bool:
    """Of float32: a sum of doubles is finite exactly where all of them are."""
    return math.isfinite(sum(array("f", piece)))
