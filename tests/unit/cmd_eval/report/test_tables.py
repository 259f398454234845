from __future__ import annotations

import numpy as np
import pytest

from cmd_eval.report.build import result_sections
from cmd_eval.report.confusion import MAX_CLASSES_IN_TABLE, row_shares, view_confusion
from cmd_eval.report.summary import main_results
from cmd_eval.report.tables import (
    Cell,
    Table,
    accuracy_block,
    auxiliary_block,
    decoupling_block,
    features_name,
    mean_cell,
    newest_splits,
    percent,
    published_table,
    retrieval_blocks,
    value_cell,
)
from cmd_eval.results.published import identify_dataset
from tests.unit.cmd_eval.report import result_files as results


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_values_are_formatted() -> None:
    assert percent(0.1234) == "12.3"
    assert percent(None) == "–"  # noqa: RUF001 (dash)
    assert value_cell({"value": 0.5, "low": 0.25, "high": 1.0}) == Cell(text="50.0", note="25.0–100.0")  # noqa: RUF001 (dash)
    assert value_cell({"value": 0.5, "low": None, "high": None}) == Cell(text="50.0")
    assert value_cell(None).text == value_cell({"value": None}).text == percent(None)
    assert mean_cell({"value": 0.5, "spread": 0.02, "splits": 3}) == Cell(text="50.0", note="± 2.0")
    assert mean_cell({"value": 0.5, "spread": None, "splits": 1}) == Cell(text="50.0")
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        Table(caption="", columns=["a", "b"], rows=[[Cell(text="1")]])


def test_retrieval_tables_compare_features_with_chance() -> None:
    untrained = results.retrieval(results.provenance(untrained=True), value=0.4)
    grids = results.retrieval(results.provenance(checkpoint=None, step=None, features="motion descriptor"), value=0.6)
    by_group = results.retrieval(target="group")
    better = [
        results.retrieval(results.provenance(readout=name), value=value)
        for name, value in (("grid-ordered", 0.8), ("ordered", 0.7))
    ]
    first, second, mean = retrieval_blocks([grids, by_group, untrained, *better, results.retrieval()])
    assert texts(first.table) == [
        ["trained network, step 9", "mean", "50.0", "70.0"],
        ["trained network, step 9", "ordered", "70.0", "90.0"],
        ["trained network, step 9", "grid-ordered", "80.0", "100.0"],
        ["untrained network", "mean", "40.0", "60.0"],
        ["motion grids", "", "60.0", "80.0"],
        ["chance", "", "33.0", "80.0"],
    ]
    assert first.table.name == "Retrieval by label: split1, 20 queries (test), 40 gallery videos (train)"
    assert first.table.quiet_rows == 1
    assert "20 queries (test), 40 gallery videos (train)" in first.table.caption
    assert second.table.caption.startswith("Retrieval by group")
    assert len(first.details) == 5
    assert texts(first.details[0])[0] == ["left", "7", "50.0", "70.0"]
    assert texts(mean.table)[0][1:] == ["3", "40.0", "40.0"]
    assert mean.notes == ["3 videos were left out"]


def test_of_two_results_with_the_same_splits_the_newer_is_shown() -> None:
    block, _ = retrieval_blocks([results.retrieval(value=0.1), results.retrieval(value=0.7)])
    assert texts(block.table)[0][2] == "70.0"


def test_results_that_differ_in_what_is_excluded_have_their_own_mean() -> None:
    plain, without = results.retrieval(), results.retrieval()
    without["splits"][0]["exclude_same"] = "group"
    *_, mean = retrieval_blocks([plain, without])
    name = "trained network, step 9, by label"
    assert [row[0] for row in texts(mean.table)] == [name, f"{name}, without videos of the query's group"]


def test_leave_one_out_is_described() -> None:
    record = results.retrieval()
    record["splits"][0]["split_column"] = "leave-one-out"
    assert "20 queries, each against all other videos" in retrieval_blocks([record])[0].table.caption


def test_accuracy_tables_have_a_row_per_split_and_a_mean() -> None:
    record = results.probe()
    record["mean"] = [{"target": "label", "top1": {"value": 0.55, "spread": 0.1, "splits": 2}}]
    block = accuracy_block([record, results.probe(method="knn")], "caption")
    rows = texts(block.table)
    assert rows[0] == [
        "logistic regression, trained network, step 9",
        "label",
        "split1",
        "40",
        "20",
        "60.0",
        "100.0",
        "33.3",
    ]
    assert block.table.rows[0][0].note == "C = 10"
    assert rows[1][2] == "2 splits"
    assert block.table.rows[1][5] == Cell(text="55.0", note="± 10.0")
    assert rows[2][0].startswith("k-NN")
    record["mean"][0]["top1"]["splits"] = 1
    assert len(accuracy_block([record], "").table.rows) == 1, "the mean of one split is not shown"


def test_accuracy_tables_show_the_newest_result_and_the_parts() -> None:
    old, new, val = results.recognition(), results.recognition(), results.recognition()
    new["splits"][0]["top1"] = results.figure(0.9)
    val["splits"][0]["test_part"] = "val"
    other = results.recognition(results.provenance(checkpoint_sha256="f" * 64))
    block = accuracy_block([old, val, other, new], "")
    assert [(row[2].note, row[5].text) for row in block.table.rows] == [
        ("val / train", "60.0"),
        ("test / train", "60.0"),
        ("test / train", "90.0"),
    ]
    assert len(newest_splits([old, new])) == 1
    # With several checkpoints, each split has its own provenance.
    both = results.recognition(results.provenance(checkpoint=None, checkpoint_sha256=None, step=None))
    first = both["splits"][0]
    both["splits"] = [first | {"provenance": results.provenance(step=n, checkpoint_sha256=str(n))} for n in (3, 4)]
    names = [row[0].text for row in accuracy_block([both], "").table.rows]
    assert names == ["fine-tuned, trained network, step 3", "fine-tuned, trained network, step 4"]


def test_trained_networks_come_first() -> None:
    untrained = results.probe(results.provenance(untrained=True))
    grids = results.probe(results.provenance(checkpoint=None, checkpoint_sha256=None, features="motion descriptor"))
    records = [untrained, grids, results.probe()]
    starts = ["trained network", "untrained network", "motion grids"]
    rows = texts(accuracy_block(records, "").table)
    assert [row[0].removeprefix("logistic regression, ").partition(", step")[0] for row in rows] == starts
    kinds = {"probe": records, "retrieval": [results.retrieval(record["provenance"]) for record in records]}
    shown = main_results(kinds)
    assert [result.details.partition(",")[0] for result in shown] == starts * 2
    assert len({result.measure for result in shown[:3]}) == 1, "results of one measure are together"


def test_captions_explain_chance() -> None:
    kinds = {"probe": [results.probe()], "recognition": [results.recognition()]}
    for section in result_sections(kinds, None):
        sentence = "Chance is the accuracy of predicting the class of a random training video."
        assert section.blocks[0].table.caption.endswith(sentence)


def test_recognition_without_the_number_of_training_videos() -> None:
    block = accuracy_block([results.recognition()], "caption")
    assert texts(block.table)[0][:5] == ["fine-tuned, trained network, step 9", "label", "split1", percent(None), "20"]
    assert texts(block.details[0])[-1] == ["down", "0", percent(None)]
    assert block.notes == ["top-5 is not meaningful: the classifier has 3 classes"]


def test_auxiliary_tables_pair_runs_of_the_same_seed_and_split() -> None:
    record = results.auxiliary()
    block = auxiliary_block(record)
    assert texts(block.table) == [
        ["0", "split1", "30.0", "50.0", "+20.0"],
        ["1", "split1", "40.0", "45.0", "+5.0"],
    ]
    assert "+12.5 points (95 % interval -2.0 to +27.0) over 2 pairs" in block.table.caption
    del record["runs"][-1]
    assert texts(auxiliary_block(record).table)[1][3:] == [percent(None)] * 2


def test_decoupling_tables_end_with_chance() -> None:
    table = decoupling_block(results.decoupling()).table
    assert texts(table) == [
        ["both heads", "40.0", "50.0", "40.0", "50.0"],
        ["one", "40.0", "50.0", "40.0", "50.0"],
        ["chance", "10.0", "20.0", "10.0", "20.0"],
    ]


def test_published_results_on_other_data_are_marked() -> None:
    table = published_table(None, ("retrieval R@10",))
    assert "on other data than this report and cannot be compared" in table.caption
    assert "arXiv:2104.00862" in table.caption
    assert [row[-2:] for row in texts(table)] == [["66.9", "50.0"], ["65.2", "48.5"], ["65.8", "51.4"]]
    same = published_table("HMDB51", ("fine-tuned top-1", "retrieval R@1"))
    assert "on HMDB51, the dataset of this report" in same.caption
    assert same.columns[-1] == "HMDB51"
    assert texts(table)[0][:5] == ["retrieval R@10", "CMD", "C3D", "112 px", "UCF101"]
    later = {row[1]: row[2:5] for row in texts(published_table("UCF101", ("retrieval R@1",)))}
    assert later["CoCLR"] == ["S3D", "128 px", "UCF101"]
    assert later["MSCL"][1:] == [percent(None)] * 2, "not recorded"
    assert {row[0] for row in texts(same)} == {"fine-tuned top-1"}, "measures without published results are left out"


def test_published_datasets_are_identified_by_their_classes() -> None:
    ucf = ["ApplyEyeMakeup", "BandMarching", "YoYo", *(f"class{n}" for n in range(98))]
    assert identify_dataset(ucf) == "UCF101"
    assert identify_dataset(["", *ucf]) == "UCF101"
    assert identify_dataset(ucf[:-1]) is None
    assert identify_dataset(["brush_hair", "draw_sword", "shoot_bow", *map(str, range(48))]) == "HMDB51"
    assert identify_dataset([]) is None


def test_sections_depend_on_the_results() -> None:
    everything = {
        "retrieval": [results.retrieval()],
        "probe": [results.probe()],
        "recognition": [results.recognition()],
        "auxiliary": [results.auxiliary()],
        "decoupling": [results.decoupling()],
    }
    sections = {section.anchor: section for section in result_sections(everything, None)}
    assert list(sections) == ["retrieval", "recognition", "probe", "auxiliary", "decoupling"]
    assert sections["retrieval"].published
    assert sections["recognition"].published
    assert not sections["probe"].published
    assert result_sections({}, None) == []


def test_confusion_is_a_table_or_a_picture() -> None:
    split = results.probe()["splits"][0]
    view = view_confusion("t", split)
    assert [[cell.count for cell in row] for row in view.rows] == split["confusion"]
    assert view.rows[0][1].share == pytest.approx(2 / 7)
    assert view.confused
    assert texts(view.confused) == [["left", "right", "2 of 7"], ["right", "left", "1 of 7"]]
    many = MAX_CLASSES_IN_TABLE + 1
    perfect = view_confusion("t", {"classes": [str(n) for n in range(many)], "confusion": np.eye(many).tolist()})
    assert perfect.rows == []
    assert perfect.confused is None
    assert perfect.picture
    assert perfect.picture.uri.startswith("data:image/png;base64,")
    assert perfect.picture.width == many
    np.testing.assert_array_equal(row_shares(np.array([[0, 0], [1, 3]])), [[0, 0], [0.25, 0.75]])
    with pytest.raises(ValueError, match=r"\(2, 2\) counts for 3 classes"):
        view_confusion("t", {"classes": ["a", "b", "c"], "confusion": [[1, 0], [0, 1]]})


def test_names_of_features_tell_readouts_standardization_and_precision_apart() -> None:
    changes = (
        {},
        {"readout": "ordered"},
        {"standardized": True},
        {"readout": "ordered", "standardized": True},
        {"precision": "bf16"},
        {"precision": "bf16", "clips": 1, "standardized": True},
    )
    names = [features_name(results.provenance(**change)) for change in changes]
    assert names == [
        "trained network, step 9",
        "trained network, step 9, readout ordered",
        "trained network, step 9, standardized",
        "trained network, step 9, readout ordered, standardized",
        "trained network, step 9, bf16",
        "trained network, step 9, 1 clip per video, bf16, standardized",
    ]
    hand_crafted = results.provenance(checkpoint=None, features="motion descriptor", standardized=True)
    assert features_name(hand_crafted) == "motion grids, standardized"
