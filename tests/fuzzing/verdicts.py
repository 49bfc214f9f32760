"""What a case led to: read, refused with one sentence, or a finding."""

import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from mechmem.data.errors import InputError
from tests.fuzzing.cases import Case
from tests.fuzzing.limits import ForbiddenError, TooSlowError, Watch, limited

READ, REFUSED = "read", "refused"
LONGEST_SENTENCE = 4000


@dataclass(frozen=True)
class Verdict:
    """What a case led to.

    Attributes:
        kind: name of the case's kind.
        outcome: "read", "refused", or what is wrong.
        where: of a finding: the error's type and the last line of mechmem that it passed, so that equals are counted.
        detail: the sentence of a refusal, the traceback of a finding.
        seconds: of CPU.
    """

    kind: str
    outcome: str
    where: str = ""
    detail: str = ""
    seconds: float = 0.0

    @property
    def is_finding(self) -> bool:
        """Whether it must not happen."""
        return self.outcome not in (READ, REFUSED)


def judge(case: Case, folder: Path, watch: Watch) -> Verdict:
    """Write the case's files, read them under all limits, and say what happened."""
    case.write(folder)
    began = time.process_time()
    outcome, where, detail = READ, "", ""
    try:
        with limited(watch, folder):
            case.kind.read(folder)
    except InputError as error:
        outcome, detail = REFUSED, str(error)
        if "\n" in detail or not detail.strip() or len(detail) > LONGEST_SENTENCE:
            outcome, where = "not one sentence", _place(error)
            detail = f"{len(detail)} characters: {detail[:300]!r}"
    except TooSlowError as error:
        outcome, where, detail = "too slow", _place(error), traceback.format_exc()
    except MemoryError as error:
        outcome, where, detail = "too much memory", _place(error), traceback.format_exc()
    except (ForbiddenError, Exception) as error:
        outcome, where, detail = "traceback", _place(error), traceback.format_exc()
    return Verdict(case.kind.name, outcome, where, detail[-6000:], time.process_time() - began)


def _place(error: BaseException) -> str:
    """The kind of error and the innermost function of mechmem that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/mechmem/" in frame.filename]
    if not frames:
        frames = traceback.extract_tb(error.__traceback__)[-1:]
    last = frames[-1]
    return f"{type(error).__name__} in {last.filename.split('/mechmem/')[-1]}:{last.name}"
