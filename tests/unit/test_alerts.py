"""The files in deploy/ for Prometheus and Grafana: what they ask for is there; promtool where it is installed."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptjobs import metrics
from gptjobs.cli import gptjobs
from tests.unit.test_docs import commands

REPOSITORY = Path(__file__).parents[2]
ALERTS = yaml.safe_load((REPOSITORY / "deploy" / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((REPOSITORY / "deploy" / "grafana" / "dashboards" / "gptjobs.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAMES = {each.name for each in metrics.METRICS}
"""of all"""


def promtool(*arguments: str, stdin: str = "") -> None:
    """Fails with what it says."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not on the PATH; on Debian it is in the package prometheus")
    done = subprocess.run([path, *arguments], input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def names_in(query: str) -> set[str]:
    return set(re.findall(r"\bgptjobs_\w+", query))


def labels_in(query: str) -> dict[str, set[str]]:
    """The labels that a query selects by, of each metric."""
    found: dict[str, set[str]] = {}
    for name, selectors in re.findall(r"\b(gptjobs_\w+)\{([^}]*)\}", query):
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors))
    return found


def test_the_docs_list_every_alert() -> None:
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    assert re.findall(r"^\| `(Gptjobs\w+)`", text, re.M) == [rule["alert"] for rule in ALERTS]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_are_there_and_says_what_to_type(rule: Mapping[str, Any]) -> None:
    assert names_in(rule["expr"]) <= NAMES
    assert names_in(rule["expr"]) or rule["expr"].startswith("up{")
    said = rule["annotations"]
    known = {name for name, _ in commands(gptjobs, "gptjobs")}
    typed = re.findall(r"\bgptjobs(?: [a-z]+)+", said["description"])
    assert typed or "docker compose" in said["description"]
    assert [each for each in typed if not any(f"{each} ".startswith(f"{name} ") for name in known)] == []
    assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_panel_asks_for_metrics_that_are_there(title: str, query: str) -> None:
    assert names_in(query) <= NAMES
    assert names_in(query) or "ALERTS" in query


def test_queries_select_by_labels_that_the_metrics_have() -> None:
    labels = {each.name: set(each.labels) for each in metrics.METRICS}
    for query in (*(rule["expr"] for rule in ALERTS), *(query for _, query in QUERIES)):
        for name, selected in labels_in(query).items():
            assert selected <= labels[name], (name, query)


def test_every_alert_is_shown_to_fire_and_not_to_fire() -> None:
    told = yaml.safe_load((REPOSITORY / "tests" / "unit" / "alerts.yml").read_text())["tests"]
    cases = [(case["alertname"], "exp_alerts" in case) for test in told for case in test["alert_rule_test"]]
    assert set(cases) == {(rule["alert"], fires) for rule in ALERTS for fires in (True, False)}


def test_promtool_takes_the_configuration_and_the_alerts() -> None:
    promtool("check", "config", str(REPOSITORY / "deploy" / "prometheus.yml"))


def test_promtool_finds_each_alert_to_fire_when_it_should() -> None:
    promtool("test", "rules", str(REPOSITORY / "tests" / "unit" / "alerts.yml"))


def test_promtool_takes_the_dashboards_queries(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$name", ".*")} for number, (_, query) in enumerate(QUERIES)
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "panels.yml"))


def test_the_stack_has_each_file_where_prometheus_looks_and_publishes_no_workers_port() -> None:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    config = yaml.safe_load((REPOSITORY / "deploy" / "prometheus.yml").read_text())
    mounts = dict(each.split(":")[:2] for each in services["prometheus"]["volumes"])
    folder = Path(mounts["./deploy/prometheus.yml"]).parent
    assert [folder / name for name in config["rule_files"]] == [Path(mounts["./deploy/alerts.yml"])]
    flower, worker = config["scrape_configs"]
    assert flower["static_configs"] == [{"targets": ["flower:5555"]}]
    (found,) = worker["dns_sd_configs"]
    assert found["names"] == ["worker"]
    assert services["worker"]["command"][-2:] == ["--metrics", f"0.0.0.0:{found['port']}"]
    assert "ports" not in services["worker"]
    assert {each["job_name"] for each in (flower, worker)} == set(re.findall(r"flower|worker", ALERTS[-1]["expr"]))
