"""Two students of a trade-off in folders of one name shared one compression: the second was never compressed."""

from __future__ import annotations

from reuse_distill.distill.tradeoff.grid import GridPoint
from reuse_distill.distill.tradeoff.point_stages import compression_name


def test_compressions_of_two_students_have_two_folders() -> None:
    one, other, again = (
        GridPoint(name, "rows", (0.5,), student=student)
        for name, student in (("a", "runs/a/student"), ("b", "runs/b/student"), ("c", "runs/a/student"))
    )
    assert compression_name(one, 0) != compression_name(other, 0)
    assert compression_name(one, 0) == compression_name(again, 0)
