"""A video's frames become pictures, and a run over frames becomes one label map a frame."""

from __future__ import annotations

import argparse
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from example_run import SIZE_HW, cut_again, draw_pictures, failed_row, image_row, put_run, scene_masks
from PIL import Image

from effsam2_ray.commands import frames as frames_command
from effsam2_ray.errors import ConfigError, InputError
from effsam2_ray.inputs.listing import build_work_list
from effsam2_ray.runs.export import export_run
from effsam2_ray.runs.export.items import ExportOptions
from effsam2_ray.runs.frames import write_frames

NUM_FRAMES = 12


def frame_pixels(number: int) -> np.ndarray:
    """Return a grey picture of a level of its own with a bright square that moves."""
    pixels = np.full((48, 64, 3), 10 + 12 * number, np.uint8)
    pixels[8:24, 4 * number : 4 * number + 12] = 250
    return pixels


def write_video(path: Path, codec: str = "ffv1", pixel_format: str = "bgr0", num_frames: int = NUM_FRAMES) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(frame_pixels(number), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pixel_format)))
        container.mux(stream.encode())
    return path


class TestFrames:
    def test_lossless_video_gives_its_pixels_back(self, tmp_path: Path) -> None:
        found = write_frames(str(write_video(tmp_path / "v.mkv")), str(tmp_path / "frames"))
        assert (found.decoded, found.written, found.error) == (12, 12, "")
        names = sorted(path.name for path in (tmp_path / "frames").iterdir())
        assert names == [f"{number:06d}.png" for number in range(12)]
        for number, name in enumerate(names):
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "frames" / name)), frame_pixels(number))

    def test_every_nth_frame_keeps_its_number(self, tmp_path: Path) -> None:
        found = write_frames(str(write_video(tmp_path / "v.mkv")), str(tmp_path / "frames"), every=5, file_format="jpg")
        assert (found.decoded, found.written) == (12, 3)
        assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [
            "000000.jpg",
            "000005.jpg",
            "000010.jpg",
        ]
        fifth = np.asarray(Image.open(tmp_path / "frames" / "000005.jpg")).astype(int)
        assert abs(fifth - frame_pixels(5)).mean() < 3  # JPEG

    def test_frames_come_in_the_order_in_which_they_are_shown(self, tmp_path: Path) -> None:
        # MPEG-4 with B frames stores them in another order.
        video = write_video(tmp_path / "v.mp4", "mpeg4", "yuv420p")
        write_frames(str(video), str(tmp_path / "frames"))
        levels = [np.asarray(Image.open(path))[40, 2, 0] for path in sorted((tmp_path / "frames").iterdir())]
        assert len(levels) == 12 and np.abs(np.array(levels, int) - (10 + 12 * np.arange(12))).max() < 8

    @pytest.mark.parametrize(("matrix", "quarters"), [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)])
    def test_rotation_of_a_phone_is_applied(self, tmp_path: Path, matrix: tuple[int, ...], quarters: int) -> None:
        video = write_video(tmp_path / "v.mp4", "mpeg4", "yuv420p", num_frames=2)
        write_frames(str(video), str(tmp_path / "flat"))
        data = bytearray(video.read_bytes())
        at = data.index(b"tkhd") + 4 + 40  # ISO 14496-12: the matrix of the track header
        a, b, c, d = (value << 16 for value in matrix)
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        video.write_bytes(data)
        write_frames(str(video), str(tmp_path / "turned"))
        flat, turned = (np.asarray(Image.open(tmp_path / kind / "000001.png")) for kind in ("flat", "turned"))
        np.testing.assert_array_equal(turned, np.rot90(flat, quarters))

    def test_a_video_that_is_cut_gives_the_frames_before_the_cut(self, tmp_path: Path) -> None:
        video = write_video(tmp_path / "v.mkv")
        data = video.read_bytes()
        video.write_bytes(data[: len(data) * 2 // 3])
        found = write_frames(str(video), str(tmp_path / "frames"))
        assert 0 < found.written < 12 and found.written == len(list((tmp_path / "frames").iterdir()))

    @pytest.mark.parametrize("content", [b"", b"no video at all", b"\x1a\x45\xdf\xa3" + bytes(500)])
    def test_what_is_no_video_is_an_input_error(self, tmp_path: Path, content: bytes) -> None:
        pytest.importorskip("av")
        (tmp_path / "v.mp4").write_bytes(content)
        with pytest.raises(InputError, match="v.mp4 cannot be decoded"):
            write_frames(str(tmp_path / "v.mp4"), str(tmp_path / "frames"))
        with pytest.raises(InputError, match="gone.mp4 is no file"):
            write_frames(str(tmp_path / "gone.mp4"), str(tmp_path / "frames"))

    def test_without_the_decoder_the_message_says_how_to_get_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(ConfigError, match="needs PyAV"):
            write_frames("v.mp4", str(tmp_path))

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        video = write_video(tmp_path / "v.mkv", num_frames=3)
        parser = argparse.ArgumentParser()
        frames_command.add_parser(parser.add_subparsers())
        parsed = parser.parse_args(["frames", str(video), "--output", str(tmp_path / "out"), "--every", "2"])
        assert parsed.run(parsed) == 0
        assert capsys.readouterr().out == f"2 of 3 frames: {tmp_path / 'out'}\n"


class TestLabelMapsOfFrames:
    def test_each_frame_has_a_map_of_its_name(self, tmp_path: Path) -> None:
        names = [f"{number:05d}.jpg" for number in range(5)]
        work_list = cut_again(build_work_list([draw_pictures(tmp_path / "frames", names)]), 2)
        run = put_run(
            tmp_path / "run",
            work_list,
            lambda number, image: failed_row(image) if number == 3 else image_row(image, scene_masks(number)),
        )
        export_run(run, str(tmp_path / "maps"), ExportOptions("label-png"), num_processes=1)
        found = sorted(path.name for path in (tmp_path / "maps").glob("*.png"))
        assert found == ["00000.png", "00001.png", "00002.png", "00004.png"]
        for number in (0, 1, 2, 4):
            image = Image.open(tmp_path / "maps" / f"{number:05d}.png")
            label_map = np.asarray(image)
            assert image.mode == "I;16" and label_map.shape == SIZE_HW
            # The objects of a drawn scene do not overlap, so each keeps all its pixels.
            for place, mask in enumerate(scene_masks(number), start=1):
                np.testing.assert_array_equal(label_map == place, mask)
            assert (label_map > 0).sum() == sum(mask.sum() for mask in scene_masks(number))
