"""Real data: one reader a format, the task made of it, and the stage that puts it into a run."""

from divray.datasets.marked import read_relations_file
from divray.datasets.source import Source
from divray.datasets.stage import read_relations, read_seeds
from divray.datasets.tables import examples_table, table_examples
from divray.datasets.task import Task, load_task

__all__ = ["Source", "Task", "examples_table", "load_task", "read_relations", "read_relations_file", "read_seeds", "table_examples"]
