"""Golden sets: prompts whose good answers are known, from a file or a public data set, and how answers are scored."""

from tieryard.golden.advice import advice
from tieryard.golden.importers import Kind, import_set
from tieryard.golden.items import GoldenSet, Item
from tieryard.golden.reading import parse_golden
from tieryard.golden.scorers import Score, micro_f1, score

__all__ = ["GoldenSet", "Item", "Kind", "Score", "advice", "import_set", "micro_f1", "parse_golden", "score"]
