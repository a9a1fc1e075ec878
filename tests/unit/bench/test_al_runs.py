"""Finished curves stay: an interrupted benchmark goes on where it was."""

import pytest

from services.trainer.comparison.cells import Cell, CellResult, Point
from tests.bench.al.runs import Kept, work_off
from tests.bench.al.worlds import Part

PART = Part("vgg16", ("random", "margin"), (100, 101))


def made_up(part: Part, cell: Cell) -> CellResult:
    return CellResult(cell, (Point(100, 0.5, 0.5, 0.05, 1.0, 0.3, 0.0, None, 0.1),))


def one_fails(part: Part, cell: Cell) -> CellResult:
    if (cell.strategy, cell.seed) == ("margin", 101):
        raise RuntimeError("out of memory")
    return made_up(part, cell)


def must_not_run(part: Part, cell: Cell) -> CellResult:
    raise AssertionError("it is there already")


@pytest.fixture
def kept(tmp_path) -> Kept:
    return Kept(tmp_path / "curves")


def silent(done: int, of: int) -> None: ...


def test_what_is_finished_is_not_run_again(kept):
    assert work_off([PART], kept, 2, silent, made_up) == []
    assert [r.cell for r in kept.found([PART])] == PART.cells()
    assert work_off([PART], kept, 2, silent, must_not_run) == []


def test_a_failed_curve_is_told_and_due_again(kept):
    (told,) = work_off([PART], kept, 1, silent, one_fails)
    assert "margin/101" in told
    assert "out of memory" in told
    assert [cell.key for _, cell in kept.missing([PART])] == ["vgg16/logistic/margin/101"]


def test_half_a_file_is_no_result(kept):
    cell = PART.cells()[0]
    kept.write(PART, made_up(PART, cell))
    kept.path(PART, cell).write_text('{"cell": ')
    assert kept.read(PART, cell) is None


def test_another_protocol_does_not_find_the_old_curves(kept):
    cell = PART.cells()[0]
    kept.write(PART, made_up(PART, cell))
    assert kept.read(Part(PART.world, PART.strategies, PART.seeds, random_share=0.1), cell) is None


def test_forgetting_makes_everything_due(kept):
    kept.write(PART, made_up(PART, PART.cells()[0]))
    kept.forget()
    assert len(kept.missing([PART])) == 4


def test_progress_ends_at_the_whole(kept):
    seen = []
    work_off([PART], kept, 1, lambda done, of: seen.append((done, of)), made_up)
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
