"""What a dashboard is made of: rows of charts and figures."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Literal, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

from grafana.queries import Query

Unit = Literal["cps", "Bps", "s", "bytes", "short", "percentunit", "none"]
SOURCE = DataSourceRef("prometheus", "${datasource}")
WIDTH = 24  # of Grafana's grid


class Chart(NamedTuple):
    """Lines over time."""

    title: str
    about: str
    unit: Unit
    queries: Sequence[Query]
    stacked: bool = False


class Figure(NamedTuple):
    """One number; from `bad` on it is red."""

    title: str
    about: str
    unit: Unit
    query: Query
    bad: float | None = None


class Row(NamedTuple):
    title: str
    panels: Sequence[Chart | Figure]


class Board(NamedTuple):
    uid: str
    title: str
    about: str
    rows: Sequence[Row]


def build(board: Board) -> Dashboard:
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["fastmta", "mail"])
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("fastmta").type(DashboardLinkType.DASHBOARDS).tags(["fastmta"])
        )
        .with_variable(_datasource())
        .with_variable(_instance())
    )
    numbers = iter(range(1, 1000))
    for row in board.rows:
        made.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            width = _width(row, panel)
            drawn = _figure(panel) if isinstance(panel, Figure) else _chart(panel)
            made.with_panel(drawn.id(next(numbers)).span(width))
    return made.build()


def _width(row: Row, panel: Chart | Figure) -> int:
    """Figures share one line; of charts, two or three are side by side."""
    if isinstance(panel, Figure):
        return WIDTH // sum(isinstance(each, Figure) for each in row.panels)
    charts = sum(isinstance(each, Chart) for each in row.panels)
    return WIDTH // (2 if charts in (2, 4) else 3)


def _datasource() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _instance() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("instance")
        .label("Instance")
        .datasource(SOURCE)
        .query("label_values(fastmta_workers, instance)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _chart(chart: Chart) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(chart.title)
        .description(chart.about)
        .datasource(SOURCE)
        .unit(chart.unit)
        .axis_soft_min(0)  # what is below is shown: a certificate that has expired
        .height(8)
        .line_width(1)
        .fill_opacity(20 if chart.stacked else 8)
        .show_points(kinds.VisibilityMode.NEVER)
        .stacking(
            common.StackingConfig().mode(
                kinds.StackingMode.NORMAL if chart.stacked else kinds.StackingMode.NONE
            )
        )
        .legend(
            common.VizLegendOptions()
            .display_mode(kinds.LegendDisplayMode.LIST)
            .placement(kinds.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(kinds.TooltipDisplayMode.MULTI)
            .sort(kinds.SortOrder.DESCENDING)
        )
    )
    for letter, query in zip(ascii_uppercase, chart.queries, strict=False):
        panel.with_target(_target(letter, query))
    return panel


def _figure(figure: Figure) -> stat.Panel:
    steps = [Threshold(None, "green")]
    if figure.bad is not None:
        steps.append(Threshold(figure.bad, "red"))
    return (
        stat.Panel()
        .title(figure.title)
        .description(figure.about)
        .datasource(SOURCE)
        .unit(figure.unit)
        .height(4)
        .color_mode(kinds.BigValueColorMode.VALUE)
        .graph_mode(kinds.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(_target("A", figure.query))
    )


def _target(letter: str, query: Query) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .ref_id(letter)
        .datasource(SOURCE)
        .expr(query.expression)
        .legend_format(query.legend or "__auto")
        .range()
    )
