import csv
import io

from cmd_extract.manifest.table import csv_bytes


def test_every_cell_is_read_back_from_the_file() -> None:
    rows = [["video_id", "message"], ["a", "progress 1\rprogress 2"], ["b", 'a "quoted", long\nmessage'], ["", "7"]]
    text = csv_bytes(rows).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows


def test_bytes_of_file_names_that_are_not_utf8_are_kept() -> None:
    assert csv_bytes([[b"\xff.mp4".decode(errors="surrogateescape")]]) == b"\xff.mp4\n"
