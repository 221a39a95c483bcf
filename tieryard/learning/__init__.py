"""Learning from measured outcomes: tables of prompts and scores in, a quality model and its figures out.

Reading a table needs nothing optional. Training needs the extra `train`, and pictures the extra `pictures`.
"""

from tieryard.learning.tables import Table, read_prompts, read_table

__all__ = ["Table", "read_prompts", "read_table"]
