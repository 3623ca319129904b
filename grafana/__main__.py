"""Write the dashboards that Grafana imports; a test sees that they are up to date."""

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.delivery import DELIVERY
from grafana.layout import Board, build
from grafana.mailboxes import MAILBOXES
from grafana.overview import OVERVIEW
from grafana.storage import STORAGE

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = [OVERVIEW, DELIVERY, STORAGE, MAILBOXES]


def text(board: Board) -> str:
    return JSONEncoder(sort_keys=True, indent=2).encode(build(board)) + "\n"


if __name__ == "__main__":
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(text(board))
