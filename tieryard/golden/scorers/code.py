"""The scorer of programs: runs the item's unit tests on the answer's code, in the sandbox."""

from __future__ import annotations

import ast
import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from tieryard.golden import sandbox
from tieryard.golden.sandbox import Outcome
from tieryard.golden.scorers.base import Score, Scorer, Unfit, Wanted, fenced

CHECK = "check"
_INDENT = "    "
# Where a completion begins to tell of something else: the stop sequences of Chen et al. 2021 (arXiv:2107.03374), 2.1.
_RUNS_ON = re.compile(r"\n(?:class|def|#|@|if|print|```)")


class UnitTests(Scorer):
    """1 where the answer's code passes `tests`, else 0: pass@1 of one sample (Chen et al. 2021, arXiv:2107.03374).

    The code is the answer, or its fenced block that defines `entry_point` (else its longest block). Code that does not
    define it is taken for the rest of `prefix`, and cut where it runs on. `tests` is Python that defines
    `check(candidate)`, which asserts; names that `prefix` defines are there for it. The answer's code runs in another
    process than the tests: arguments and results cross as plain values (None, bool, int, float, complex, str, bytes,
    list, tuple, dict, set, frozenset), so it can change no argument and return no object of its own making.
    """

    compares: ClassVar[str] = "references"
    name: Literal["unit_tests"] = "unit_tests"
    tests: str
    entry_point: str
    prefix: str = ""
    timeout_s: float = Field(default=10.0, gt=0, le=60)

    @field_validator("entry_point")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not name.isidentifier():
            raise ValueError("write the name of the function that the tests call")
        return name

    @field_validator("tests", "prefix")
    @classmethod
    def _is_python(cls, code: str) -> str:
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            at = f" in its line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            raise ValueError(f"no Python{at}: {error.args[0] if error.args else error}") from None
        return code

    def check(self, wanted: Wanted) -> None:  # noqa: ARG002  # the tests say it all
        if not _defines(self.tests, CHECK):
            raise Unfit("scorer.tests", f"write Python that defines {CHECK}(candidate)")

    def rate(self, answer: str, wanted: Wanted) -> Score:  # noqa: ARG002
        verdict = sandbox.run_tests(
            program=self.program(answer),
            entry_point=self.entry_point,
            prefix=self.prefix,
            tests=self.tests,
            timeout_s=self.timeout_s,
        )
        return Score(float(verdict.outcome is Outcome.PASS), f"{verdict.outcome}: {verdict.reason}")

    def program(self, answer: str) -> str:
        """What is run: `prefix`, and the answer's code after it."""
        blocks = fenced(answer)
        defining = [block for block in blocks if _defines(block, self.entry_point)]
        code = defining[-1] if defining else max(blocks, key=len, default=answer)
        if _defines(code, self.entry_point) or not self.prefix:
            return f"{self.prefix}\n{code}"
        return self.prefix.rstrip(" \t") + _indented(_RUNS_ON.split(code)[0])


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b|^{re.escape(name)}\s*=", code, re.MULTILINE) is not None


def _indented(code: str) -> str:
    """A function's body that may have lost the indentation of its first line, or of all of them: chat models strip."""
    lines = code.strip("\n").split("\n")
    if lines[0][:1].isspace():
        return "\n".join(lines)
    after = next((line for line in lines[1:] if line.strip()), "")
    usual = len(_INDENT) if lines[0].rstrip().endswith(":") else 0
    if len(after) - len(after.lstrip()) > usual:
        return "\n".join([_INDENT + lines[0], *lines[1:]])
    return "\n".join(_INDENT + line if line.strip() else line for line in lines)
