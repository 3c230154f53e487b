"""Teachers: frozen models whose layers a student imitates."""

from reuse_distill.distill.teachers.protocol import Teacher, TeacherInfo, TeacherPass
from reuse_distill.distill.teachers.source import open_teacher

__all__ = ["Teacher", "TeacherInfo", "TeacherPass", "open_teacher"]
