"""Heads on top of a student: their modules, and the folders that hold them."""

from reuse_distill.student.tasks.head_folder import LoadedHead, load_head, save_head
from reuse_distill.student.tasks.task_head import HeadConfig, TaskHead

__all__ = ["HeadConfig", "LoadedHead", "TaskHead", "load_head", "save_head"]
