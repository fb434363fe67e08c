"""Real data: one reader a format, the task made of it, and the stage that puts it into a run."""

from divray.datasets.own import read_relations_file
from divray.datasets.source import Source
from divray.datasets.stage import examples_table, read_relations, read_seeds, table_examples
from divray.datasets.task import Task, load_task

__all__ = ["Source", "Task", "examples_table", "load_task", "read_relations", "read_relations_file", "read_seeds", "table_examples"]
