"""What fails beside the main thread, in libraries, takes a line each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dpo_jax.runtime import progress

FAILS = """
import asyncio, gc, logging, threading
from dpo_jax.runtime import progress
logging.basicConfig()
progress.tell_briefly()

class Lost(Exception):
    pass

async def fails(number):
    raise Lost(f"task {number}\\nand a page")

async def forgets():
    for number in range(3):
        asyncio.create_task(fails(number))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

def dies():
    raise OSError("the disk\\nand a page")

asyncio.run(forgets())
gc.collect()
class Left:  # as a task whose loop has ended
    def __del__(self):
        raise RuntimeError("Event loop is closed")

Left()
logging.getLogger("absl").error("[process=0] Failed to run 2 Handler Commit operations or the Commit callback")
for number in range(2):  # a full disk, of which each array and thread speaks
    logging.getLogger("absl").error("array %d: %s\\nNo space left on device", number, "x" * 900)
    logging.getLogger("asyncio").error("task %d: No space left on device", number)
logging.getLogger("absl").error("another disk: Read-only file system")
logging.getLogger("asyncio").error("slow\\nand a page")
try:
    dies()
except OSError:
    logging.getLogger("absl").exception("Orbax says %s", "this\\nand a page " + "x" * 9000)
thread = threading.Thread(target=dies)
thread.start()
thread.join()
"""


def test_a_line_each():
    said = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True).stderr
    assert [line.strip() for line in said.splitlines()] == [
        "ERROR:asyncio:Lost: task 0",
        f"ERROR:absl:array 0: {'x' * 291}",
        "ERROR:absl:another disk: Read-only file system",
        "ERROR:asyncio:slow",
        "ERROR:absl:Orbax says this",
        "beside  OSError: the disk",
    ]


def test_a_line_about_the_data_is_said_once_where_runs_follow_each_other(capsys: pytest.CaptureFixture[str]):
    with progress.each_once():
        for line in ("3 ties", "3 ties", "4 ties"):
            progress.say("data", line)
            progress.say("train", "again")
    progress.say("data", "3 ties")
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert lines == ["data 3 ties", "train again", "train again", "data 4 ties", "train again", "data 3 ties"]
