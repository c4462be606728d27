"""A preference corpus written and read as TensorFlow Datasets, without TensorFlow."""

import subprocess
import sys

import pytest

from dpo_jax.data.sources import PAIRS, read_sources
from dpo_jax.data.sources.tfds import write_corpus
from dpo_jax.errors import UserError
from dpo_jax.types import PreferencePair

MADE = [PreferencePair(f"{n}", f"p{n} ü\n", "c", f"r{n}", f"f:{n}") for n in range(20)]


@pytest.fixture
def corpus(tmp_path):
    pairs = [MADE[0]._replace(margin=0.25, weight=2.0, soft_label=0.75), *MADE[1:]]
    write_corpus({"train": pairs, "test": MADE[:3]}, str(tmp_path), name="my_pairs")
    return {"tfds": "my_pairs", "data_dir": str(tmp_path)}


def test_numbers_splits_and_slices(corpus):
    rows, _ = read_sources(PAIRS, [corpus])
    assert (rows[0].margin, rows[0].weight, rows[0].soft_label) == (0.25, 2.0, 0.75)
    assert (rows[1].margin, rows[1].weight, rows[1].soft_label) == (0.0, 1.0, 1.0)
    assert (rows[4].where, rows[4].source) == ("my_pairs train row 5", "my_pairs")
    assert len(read_sources(PAIRS, [{**corpus, "split": "test"}]).rows) == 3
    assert [row.prompt for row in read_sources(PAIRS, [{**corpus, "split": "train[:10%]"}]).rows] == [
        "p0 ü\n",
        "p1 ü\n",
    ]


def test_missing_rows_are_noticed(corpus, monkeypatch):
    from tensorflow_datasets.core.data_sources import array_record

    monkeypatch.setattr(array_record.ArrayRecordDataSource, "__len__", lambda self: 8)
    with pytest.raises(UserError, match="declares 20 rows, and 8 can be read"):
        read_sources(PAIRS, [corpus])


def test_what_cannot_be_read_or_written_is_said(corpus, tmp_path):
    with pytest.raises(UserError, match=r"no split 'tran'\. Did you mean 'train'"):
        read_sources(PAIRS, [{**corpus, "split": "tran"}])
    with pytest.raises(UserError, match=r"cannot be read \(DatasetNotFoundError\)"):
        read_sources(PAIRS, [{**corpus, "tfds": "your_pairs"}])
    with pytest.raises(UserError, match=r"my_pairs.1\.0\.0 is there already"):
        write_corpus({"train": MADE}, str(tmp_path), name="my_pairs")
    talk = MADE[0]._replace(prompt=({"role": "user", "content": "x"},))
    with pytest.raises(UserError, match="f:0: the corpus holds texts, not messages"):
        write_corpus({"train": [talk]}, str(tmp_path), name="talks")


def test_tensorflow_is_not_imported(corpus, tmp_path):
    code = (
        "import sys\nfrom dpo_jax.data.sources import PAIRS, read_sources\n"
        "from dpo_jax.data.sources.tfds import write_corpus\n"
        f"rows = read_sources(PAIRS, [{corpus!r}]).rows\n"
        f"write_corpus({{'train': rows}}, {str(tmp_path)!r}, name='again')\n"
        "print(len(rows), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["20", "False"]
