"""`python -m worker.locate ROOT JOB steps|windows FIRST LAST [TOKEN]`: where windows begin, in tokens: those that a
job saw at these steps, or those at these places of its order that the attempt TOKEN did not leave out, from the
first to before the last.

For `gptjobs data locate` and `diagnose`; as JSON, a list for each step, or one. The order is worked out where it is
made, with numpy and torch.
"""

import json
import sys
from pathlib import Path

from gptjobs.checkpoint import read_attempt
from gptjobs.course import course_of
from gptjobs.layout import Layout
from worker.trainer.batches import Batches


def main() -> None:
    root, job, kind, *numbers = sys.argv[1:]
    layout, (first, last, *token) = Layout(Path(root)), map(int, numbers)
    course = course_of(layout, job)
    attempt = read_attempt(layout, job, token[0]) if token else course.attempt
    data = Batches.of_plan(layout, course.plan, attempt)
    if kind == "windows":
        print(json.dumps(data.kept(first, last).tolist()))
        return
    seen, batch, found = course.windows, course.plan.settled.train.batch_size, []
    begin = course.steps.start
    if not data.leaves_out:
        seen, begin = seen + (first - begin) * batch, first
    for step in range(begin, last):
        following = data.following(seen, batch)
        seen = following.end
        if step >= first:
            found.append(following.starts.tolist())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
