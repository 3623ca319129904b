"""Dashboards and alerts: as the code makes them, about metrics that exist, with words to each."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from grafana.__main__ import BOARDS, FOLDER, text
from grafana.layout import Board
from tests.integration.servers import program
from tests.test_documents import declared_metrics

ROOT = Path(__file__).parent.parent
ALERTS = ROOT / "grafana" / "alerts.yml"
RULES = re.findall(
    r"- alert: (\w+)\n +expr: (?:>-\n)?(.+?)\n(?: +for: \w+\n)? +labels: .+?"
    r"summary: (.+?)\n +runbook: (.+?)\n",
    ALERTS.read_text(),
    re.S,
)


def panels(board: Board) -> list[dict[str, Any]]:
    made = json.loads((FOLDER / f"{board.uid}.json").read_text())["panels"]
    return [panel for panel in made if panel["type"] != "row"]


def names(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads; a histogram's series by the histogram's name."""
    found = re.findall(r"fastmta_\w+", expression)
    return {re.sub("_(bucket|sum|count)$", "", name) for name in found}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_json_is_what_the_code_makes(board: Board) -> None:
    """If it is not: python -m grafana."""
    assert (FOLDER / f"{board.uid}.json").read_text() == text(board)


def test_there_is_no_other_dashboard() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {board.uid for board in BOARDS}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_fill_their_rows_and_have_words(board: Board) -> None:
    made = json.loads((FOLDER / f"{board.uid}.json").read_text())["panels"]
    assert len({panel["id"] for panel in made}) == len(made)
    for panel in panels(board):
        assert panel["description"].endswith(".")
        assert panel["targets"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_every_metric_is_on_a_dashboard_and_no_other() -> None:
    shown = {
        name
        for board in BOARDS
        for panel in panels(board)
        for target in panel["targets"]
        for name in names(target["expr"])
    }
    assert shown == declared_metrics()


def test_alerts_read_metrics_that_exist_and_have_a_runbook() -> None:
    assert len(RULES) == ALERTS.read_text().count("- alert: ") > 10
    runbook = (ROOT / "docs" / "operating.md").read_text()
    headings = re.findall(r"^#### (\w+)$", runbook, re.M)
    assert headings == [name for name, *_ in RULES]
    for name, expression, _, line in RULES:
        assert names(expression) <= declared_metrics()
        assert line.endswith(f"(docs/operating.md#{name.lower()}).")


def test_alerts_fire_when_they_are_to_and_not_before() -> None:
    for command in (
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ):
        done = subprocess.run(
            [program("promtool"), *command],
            cwd=ROOT / "grafana",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    tested = (ROOT / "grafana" / "alerts_test.yml").read_text()
    assert set(re.findall(r'alertname="(\w+)"', tested)) == {name for name, *_ in RULES}
