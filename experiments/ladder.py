"""The ladder: models of three sizes on text whose every repetition was drawn by chance, and what they memorized.

    python experiments/ladder.py --rung smallest    # minutes; resumes from its last checkpoint; safe to kill
    python experiments/ladder.py --rung 6M-small-seed0
    python experiments/ladder.py --rung all          # hours: three sizes, two texts, two seeds, one model at a time

1. Train each model that is not finished (`ladder_training`). The text is that of `ladder_corpus`: the shorter one holds
   the same inserted documents as the longer one, in less background. A seed decides the order of the background, where
   the copies stand and the first weights; which document is inserted how often is the same in all of them.
2. Measure every snapshot (`ladder_measure`), localize the memories in it (`ladder_where`), and transplant parts of the
   finished model into the snapshot from before the late documents (`ladder_transplant`).
3. Print the tables; `ladder_page` writes them for all models into docs/ladder.md.

A rung's folder holds its settings, training text, checkpoint, snapshots in float16, training.json and results.
"""

import ladder_measure
import ladder_transplant
import ladder_where
from corpus_training import keep_allocator
from inputs import start
from ladder_page import page_lines
from ladder_rungs import Settings, chosen
from ladder_training import train_rung
from outputs import write_page
from transformers.utils.logging import disable_progress_bar


def main(settings: Settings) -> None:
    """Train and measure the rungs one after the other.

    Args:
        settings: which.
    """
    keep_allocator()
    disable_progress_bar()
    done = {}
    for name, rung in chosen(settings).items():
        folder = settings.work / name
        train_rung(rung, folder)
        if settings.only == "train":
            continue
        ladder_measure.measure_rung(ladder_measure.Settings(work=settings.work), folder)
        ladder_where.locate_rung(ladder_where.Settings(work=settings.work), folder)
        ladder_transplant.transplant_rung(ladder_transplant.Settings(work=settings.work), folder)
        done[name] = folder
    if done:
        write_page(None, page_lines(done))


if __name__ == "__main__":
    start(main, Settings, __doc__)
