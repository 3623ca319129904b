"""What workers count is added up, whatever becomes of the workers."""

from fastmta.metrics import OTHER, Ranked, Row, Sample
from fastmta.web.totals import NAMES, REMEMBERED, Totals


def counted(*rows: Row, name: str = "a_total") -> list[Sample]:
    labels = ("site", "end") if rows and rows[0][0] else ()
    return [Sample("counter", name, "A", labels, list(rows))]


def gauge(value: float) -> list[Sample]:
    return [Sample("gauge", "b", "B", (), [((), (value,))])]


def numbers(totals: Totals, name: str = "a_total") -> dict[tuple[str, ...], float]:
    [sample] = [sample for sample in totals.samples() if sample.name == name]
    return {values: number for values, (number,) in sample.rows}


def test_what_a_worker_had_counted_stays_when_it_ends_and_begins_anew() -> None:
    totals = Totals()
    totals.take(0, counted(((), (10,))))
    totals.take(1, counted(((), (5,))))
    totals.ended(0)
    assert numbers(totals) == {(): 15}
    totals.take(0, counted(((), (12,))))  # more than before: nothing but its end tells
    totals.take(1, counted(((), (6,))))
    assert numbers(totals) == {(): 28}


def test_who_does_not_answer_has_what_it_had() -> None:
    totals = Totals()
    totals.take(0, counted(((), (10,))) + gauge(3))
    totals.take(0, [])
    assert numbers(totals) == {(): 10}
    assert numbers(totals, "b") == {(): 3}


def test_more_may_come_while_somebody_reads() -> None:
    totals = Totals()
    totals.take(0, counted(((), (10,))) + gauge(3))
    reading = totals.samples()
    assert next(reading).name == "a_total"
    totals.take(0, counted(((), (11,))) + counted(((), (1,)), name="late_total"))
    assert [sample.name for sample in reading] == ["b"]
    assert numbers(totals, "late_total") == {(): 1}


def test_gauges_are_of_those_that_live() -> None:
    totals = Totals()
    totals.take(0, gauge(3))
    totals.take(1, gauge(4))
    assert numbers(totals, "b") == {(): 7}
    totals.ended(0)
    assert numbers(totals, "b") == {(): 4}


def test_a_name_that_loses_its_place_in_a_worker_keeps_what_it_had() -> None:
    totals = Totals()
    totals.take(0, counted((("mx.test", "delivered"), (10,)), ((OTHER, "delivered"), (1,))))
    totals.take(0, counted(((OTHER, "delivered"), (4,))))
    totals.take(0, counted((("mx.test", "delivered"), (2,)), ((OTHER, "delivered"), (4,))))
    assert numbers(totals) == {("mx.test", "delivered"): 12, (OTHER, "delivered"): 4}


def test_names_are_bounded_and_those_that_rest_make_room() -> None:
    now = 0.0
    totals = Totals(lambda: now)
    rows: list[Row] = [((f"mx{n}.test", "delivered"), (1,)) for n in range(NAMES + 10)]
    totals.take(0, counted(((OTHER, "delivered"), (0,)), *rows))
    known = numbers(totals)
    assert len(known) == NAMES + 1
    assert known[OTHER, "delivered"] == 10
    assert sum(known.values()) == NAMES + 10
    now = REMEMBERED
    later: Row = (("late.test", "delivered"), (3,))
    totals.take(0, counted(*rows[1:NAMES], later))  # the others have not changed
    assert numbers(totals)["late.test", "delivered"] == 3
    assert ("mx0.test", "delivered") not in numbers(totals)
    assert numbers(totals)[OTHER, "delivered"] == 10


def ranked(counts: dict[str, int]) -> dict[str, float]:
    told = Ranked("s_total", "S", "site", ("delivered",))
    for name, count in counts.items():
        told.add(name, (count,))
    told.rank()
    for name in counts:
        told.add(name, (1,))
    return {site: number for (site, _), (number,) in told.sample().rows}


def test_the_first_names_are_told_and_the_others_are_other() -> None:
    found = ranked({f"mx{n}.test": 2 for n in range(300)})
    assert len(found) == 101
    assert found["mx0.test"] == 3
    assert found[OTHER] == 3 * 200


def test_a_busy_name_takes_the_place_of_one_that_rests() -> None:
    found = ranked({f"mx{n}.test": 2 for n in range(300)} | {"busy.test": 1000})
    assert len(found) == 101
    assert found["busy.test"] == 1  # what it had before is among the others


def test_a_long_name_is_cut() -> None:
    assert max(map(len, ranked({"x" * 500: 1}))) == 128
