"""`gptjobs doctor`: is all well here?"""

from dataclasses import asdict

import click

from gptjobs.cli import output
from gptjobs.cli.place import Place, json_option, pass_place

_COLOURS = {"ok": "green", "skipped": None, "warning": "yellow", "problem": "red"}


@click.command(epilog="Example: gptjobs doctor")
@json_option
@pass_place
def doctor(place: Place, as_json: bool) -> int:
    """Check this host, the storage root, Redis and the workers. Exit 1 if there is a problem."""
    from gptjobs.doctor import examine
    from gptjobs.doctor.check import Verdict

    made = []
    for each in examine(place.settings):
        made.append(each)
        if not as_json:
            verdict = click.style(f"{each.verdict:<7}", fg=_COLOURS[each.verdict])
            output.result(f"{verdict}  {each.name:<10}  {each.says}")
            if each.hint:
                output.result(f"{'':21}hint: {each.hint}")
    if as_json:
        output.as_json({"checks": [asdict(each) for each in made]})
    return 1 if any(each.verdict is Verdict.PROBLEM for each in made) else 0
