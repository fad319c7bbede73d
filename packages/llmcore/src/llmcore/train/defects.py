"""A defect that a run meets, which nobody who only trains can mend: its traceback is kept for a report."""

import contextlib
import traceback
from pathlib import Path

from llmcore.errors import LLMError
from llmcore.train.memory import is_out_of_memory

NAME = "defects.log"


def note_defect(folder: Path, error: BaseException, *, step: int, rank: int = 0) -> None:
    """Append the traceback of a defect to the log in a run's private `folder`, and have the error say so."""
    if not is_defect(error):
        return
    path = folder / NAME
    told = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as log:
        log.write(f"after step {step}, in process {rank}:\n{told}\n")
        error.add_note(f"This is also in {path}.")


def is_defect(error: BaseException) -> bool:
    """Whether an error is ours: not a user's mistake, a disk, memory, or a signal."""
    return isinstance(error, Exception) and not isinstance(error, LLMError | OSError) and not is_out_of_memory(error)
