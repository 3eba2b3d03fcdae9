from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effsam2_ray.errors import OutputError
from effsam2_ray.output import OutputFolder


def test_part_is_named_by_its_unit_and_holds_its_summary(tmp_path):
    output = OutputFolder(str(tmp_path / "out"))
    table = pa.table({"image_uid": [1, 2]}).replace_schema_metadata({"kept": "yes"})
    size = output.put_part("0000003-abcd", table, {"unit": "0000003-abcd", "images": 2})
    path = tmp_path / "out" / "part-0000003-abcd.parquet"
    assert path.stat().st_size == size
    assert pq.read_schema(path).metadata[b"kept"] == b"yes"
    assert output.read_unit_summary("0000003-abcd") == {"unit": "0000003-abcd", "images": 2}
    assert output.read_part("0000003-abcd")["image_uid"].to_pylist() == [1, 2]


def test_finished_units_are_the_parts_and_nothing_else(tmp_path):
    output = OutputFolder(str(tmp_path))
    assert output.finished_units() == set()
    output.put_part("0000000-aa", pa.table({"x": [1]}), {})
    output.put_json("summary.json", {})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.parquet").write_text("mine")
    assert output.finished_units() == {"0000000-aa"}


def test_first_claim_writes_job_and_second_finds_it(tmp_path):
    output = OutputFolder(str(tmp_path))
    job = {"fingerprint": {"merge.thresh": 0.8}, "created": "now"}
    assert output.claim(job) is False
    assert json.loads((tmp_path / "_meta" / "job.json").read_text()) == job
    assert output.claim({**job, "created": "later"}) is True
    assert output.read_job() == job


def test_claim_with_other_settings_lists_both_values(tmp_path):
    output = OutputFolder(str(tmp_path))
    output.claim({"fingerprint": {"merge.thresh": 0.8, "preset": "a"}})
    with pytest.raises(OutputError, match="other settings") as caught:
        output.claim({"fingerprint": {"merge.thresh": 0.7, "preset": "b"}})
    assert "merge.thresh: 0.8 in the output, 0.7 now" in str(caught.value)
    assert "preset: 'a' in the output, 'b' now" in str(caught.value)


def test_parts_without_a_job_are_not_written_over(tmp_path):
    output = OutputFolder(str(tmp_path))
    output.put_part("0000000-aa", pa.table({"x": [1]}), {})
    with pytest.raises(OutputError, match="holds parts but no _meta/job.json"):
        output.claim({"fingerprint": {}})


def test_damaged_job_is_an_output_error(tmp_path):
    output = OutputFolder(str(tmp_path))
    (tmp_path / "_meta").mkdir()
    (tmp_path / "_meta" / "job.json").write_text("{")
    with pytest.raises(OutputError, match="is not JSON"):
        output.claim({"fingerprint": {}})


def test_failures_table_has_its_schema_even_when_empty(tmp_path):
    output = OutputFolder(str(tmp_path))
    output.put_failures([])
    names = pq.read_schema(tmp_path / "_meta" / "failures.parquet").names
    assert names == ["image_uid", "image_uri", "member", "step", "status", "error", "attempts", "unit"]
