"""Teachers: frozen models whose layers a student imitates."""

from distill.teachers.protocol import Teacher, TeacherInfo, TeacherPass
from distill.teachers.source import open_teacher

__all__ = ["Teacher", "TeacherInfo", "TeacherPass", "open_teacher"]
