"""Ray Tune's half of `python -m bench.sweep`: a grid of configs with ASHA, each trial the same trainer process.

Run by an interpreter with ray[tune]; reads the request from standard input, writes the seconds and the best loss.
"""

import json
import subprocess
import sys
import time

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler


def train(config: dict) -> None:
    request = config["request"]
    command = [config["path"] if word == "CONFIG" else word for word in request["trainer"]]
    # the leash: the trainer ends with the process that holds its standard input
    trainer = subprocess.Popen(
        [*command, "--leash"], env=request["environment"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    for text in trainer.stdout:
        line = json.loads(text)
        if line["kind"] == "progress" and line["val_loss"] is not None and line["step"]:
            tune.report({"loss": line["val_loss"], "unit": round(line["step"] * request["units"] / line["end_step"])})
    trainer.wait()


def main() -> None:
    request = json.load(sys.stdin)
    ray.init(num_cpus=request["at_once"], include_dashboard=False, log_to_driver=False, configure_logging=False)
    space = {"path": tune.grid_search(request["configs"]), "request": request}
    units, factor = request["units"], request["factor"]
    scheduler = ASHAScheduler(time_attr="unit", max_t=units, grace_period=1, reduction_factor=factor)
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}), param_space=space,
        tune_config=tune.TuneConfig(metric="loss", mode="min", scheduler=scheduler),
        run_config=tune.RunConfig(verbose=0),
    )  # fmt: skip
    began = time.monotonic()
    results = tuner.fit()
    seconds = time.monotonic() - began
    whole = [each.metrics["loss"] for each in results if each.metrics and each.metrics.get("unit") == units]
    print(json.dumps({"seconds": seconds, "loss": min(whole)}))


if __name__ == "__main__":
    main()
