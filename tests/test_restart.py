"""A job of a hundred thousand images that is nearly done goes on at once, and touches nothing that is done."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from label_process import GRID, finish, kill_all, start, wait_for
from PIL import Image

from effsam2_ray import Labeller
from effsam2_ray.demo.scenes import draw_scene
from effsam2_ray.inputs.work_list import Unit, WorkList
from effsam2_ray.output import OutputFolder
from effsam2_ray.pipeline.writer import summarize
from effsam2_ray.schema import build_table, result_columns, run_schema

NUM_IMAGES = 100_000
UNFINISHED = (97, -1)


def finish_units(out: Path, work_list: WorkList, unfinished: set[int], picture: bytes) -> None:
    """Write parts of all other units, each row with the masks of the same picture."""
    labelled = Labeller.from_weights("demo").label(picture)
    row = {
        "preset": "low_latency",
        "weights": "demo",
        "status": "ok",
        **result_columns(labelled, keep_candidates=False),
    }
    one = build_table([row], run_schema({}, keep_candidates=False))

    def part(unit: Unit) -> pa.Table:
        table = one.take([0] * unit.num_images)
        for name in ("image_uid", "image_uri"):
            place = table.schema.get_field_index(name)
            values = pa.array([getattr(image, name) for image in unit.images], table.schema.field(place).type)
            table = table.set_column(place, table.schema.field(place), values)
        return table

    output = OutputFolder(str(out))
    for number, unit in enumerate(work_list.units()):
        if number not in unfinished:
            table = part(unit)
            output.put_part(unit.unit_id, table, summarize(unit.unit_id, table, []))


def test_a_job_that_is_nearly_done_goes_on_at_once_and_touches_nothing_that_is_done(tmp_path):
    folder, out, log = tmp_path / "in", tmp_path / "out", tmp_path / "files.log"
    folder.mkdir()
    # Through a storage that notes every access; finished images are not even there.
    lines = "".join(f"logged://{folder}/{n:06d}.png\n" for n in range(NUM_IMAGES))
    (tmp_path / "list.txt").write_text(lines)
    command = ([f"logged://{tmp_path}/list.txt"], out, *GRID)
    first = start(*command, faults=tmp_path, names="files")
    wait_for((out / "_meta" / "work_list.parquet").exists, first)
    kill_all(first)

    work_list = WorkList.from_bytes((out / "_meta" / "work_list.parquet").read_bytes())
    assert work_list.num_images == NUM_IMAGES and not list(out.glob("*.parquet"))
    todo = {number % len(work_list) for number in UNFINISHED}
    images = [image.image_uri.removeprefix("logged://") for number in todo for image in work_list.unit(number).images]
    assert 0 < len(images) <= NUM_IMAGES // 100
    buffer = io.BytesIO()
    Image.fromarray(draw_scene(0, (64, 64)).image).save(buffer, "PNG")
    Path(images[0]).write_bytes(buffer.getvalue())
    Path(images[1]).write_bytes(b"no picture, so that this takes no time")
    for path in images[2:]:
        os.link(images[1], path)
    finish_units(out, work_list, todo, buffer.getvalue())
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(finished) == len(work_list) - len(todo)
    log.unlink()

    begin = time.monotonic()
    process = start(*command, faults=tmp_path, names="files")
    wait_for(log.exists, process, 0.02)
    first_read_s = time.monotonic() - begin
    wait_for(lambda: len(list(out.glob("*.parquet"))) > len(finished), process, 0.02)
    first_part_s = time.monotonic() - begin
    code, output = finish(process)
    print(f"first new image read after {first_read_s:.1f} s, first new part after {first_part_s:.1f} s,")
    print(f"end after {time.monotonic() - begin:.1f} s")
    assert code == 0 and f"Resuming: {len(finished)} of {len(work_list)} units are done" in output, output

    assert {line.split(maxsplit=1)[1] for line in log.read_text().splitlines()} == set(images)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    uids = pq.read_table(out, columns=["image_uid"])["image_uid"].to_pylist()
    assert len(set(uids)) == len(uids) == NUM_IMAGES
    summary = json.loads((out / "_meta" / "summary.json").read_text())
    assert (summary["images"], summary["images_this_time"]) == (NUM_IMAGES, len(images))
    assert summary["statuses"] == {"ok": NUM_IMAGES - len(images) + 1, "not_image": len(images) - 1}
