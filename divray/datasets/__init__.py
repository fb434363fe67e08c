"""Real data: one reader a format, the task made of it, and the stage that puts it into a run."""

from divray.datasets.own import Source, read_relations_file
from divray.datasets.stage import Task, examples_table, load_task, read_relations, read_seeds, table_examples

__all__ = ["Source", "Task", "examples_table", "load_task", "read_relations", "read_relations_file", "read_seeds", "table_examples"]
