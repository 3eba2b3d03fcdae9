"""The measurements as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from effsam2_ray.benchmark.growth import Curve
from effsam2_ray.benchmark.timing import Spread

MIB = 2**20

HEADER = """# Benchmarks

Each section is what one run of `jobs/benchmark.py` measured; its command stands below its title. Compare figures within
a section only. Ratios were measured side by side, in turns, in one process. Prompts are those that the method's source
reports (107 and 213 an image): a picture's own medoids, cut or filled up with random points to that number.
"""


def markdown(results: Mapping[str, Any], command: str, chart: str | None = None) -> str:
    """Return a page of tables.

    Args:
        results: what `run.measure` returns, with what Ray costs under `ray` and `segmenter_busy_share` where it was
            measured.
        command: line that measures it anew.
        chart: file name of the growth curves' picture, beside the page.
    """
    return "\n".join([*_opening(results, command), *_ratios(results), *_steps(results), *_comparisons(results)]) + (
        "\n" + "\n".join([*_rates(results), *_reruns(results), *_growth(results, chart)]) + "\n"
    )


def with_section(page: str, section: str) -> str:
    """Return a page with a section in place of the one of the same title, or at its end.

    Args:
        page: Markdown whose sections begin with ``## ``; "" begins a new one.
        section: what `markdown` returns.
    """
    opening, *sections = f"\n{page or HEADER}".split("\n## ")
    title = section.removeprefix("## ").splitlines()[0]
    kept = [each for each in sections if each.splitlines()[0] != title]
    place = next((n for n, each in enumerate(sections) if each.splitlines()[0] == title), len(sections))
    kept.insert(place, section.removeprefix("## "))
    return "\n\n## ".join(part.strip() for part in [opening, *kept]) + "\n"


def curves_of(results: Mapping[str, Any]) -> list[Curve]:
    """Return the growth curves in what `run.measure` returns."""
    return [
        Curve(
            curve["quantity"],
            tuple(curve["values"]),
            tuple(Spread(**seconds) for seconds in curve["seconds"]),
            curve["note"],
        )
        for curve in results["growth"]
    ]


def _opening(results: Mapping[str, Any], command: str) -> Iterator[str]:
    machine, model, limits = results["machine"], results["model"], results["limits"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['torch_threads']} of {machine['cpus']} CPUs"
    yield f"## {model['name']}, {model['device']}, {model['dtype']}\n"
    if model["note"]:
        yield f"**{model['note'][0].upper()}{model['note'][1:]}.**\n"
    if model["compile_s"] is not None:
        yield f"Compiled; the cold start took {model['compile_s']:.0f} s.\n"
    yield (
        f"By `{command}` on {machine['date']}, on {where} (load {machine['load_average_1min']:.1f} when it began); "
        f"torch {machine['versions']['torch']}. "
        f"Encoder at {model['image_size']} px, {model['patches']} patches; cut-offs {model['pred_iou_thresh']:g} and "
        f"{model['stability_score_thresh']:g}. "
        f"{len(results['pictures'])} pictures, the first of {_size(results['pictures'][0]['height_width'])} pixels. "
        "Warm; medians, quartiles in brackets. "
        f"Limits of the device, measured: {limits['float32_flops'] / 1e9:,.0f} GFLOP/s in float32"
        + (f", {limits['half_flops'] / 1e9:,.0f} in {model['dtype']}" if limits["half_flops"] else "")
        + f"; {limits['bytes_per_s'] / 1e9:,.1f} GB/s read and written.\n"
    )


def _ratios(results: Mapping[str, Any]) -> Iterator[str]:
    yield "### Ratios, side by side in one process\n"
    yield "| ours against | times faster |"
    yield "| --- | --- |"
    for name, value in results["ratios"].items():
        if value is None:
            continue
        shown = (
            ", ".join(f"{key} {each:.1f}" for key, each in value.items()) if isinstance(value, dict) else f"{value:.2f}"
        )
        yield f"| {name.replace('_', ' ')} | {shown} |"
    if results.get("segmenter_busy_share") is not None:
        share = results["segmenter_busy_share"]
        yield f"\nA segmenter that sleeps instead of computing is busy {share:.1%} of the time."
    yield ""


def _steps(results: Mapping[str, Any]) -> Iterator[str]:
    for preset, steps in results["steps"].items():
        yield f"### Steps of one picture, {preset} at the source's number of prompts\n"
        yield "| step | ms | rate | share of the limit | host MiB | device MiB | |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        for step in steps:
            rate = ""
            if "flops_per_s" in step:
                rate = f"{step['flops_per_s'] / 1e9:,.1f} GFLOP/s"
            elif "bytes_per_s" in step:
                rate = f"{step['bytes_per_s'] / 1e9:,.2f} GB/s"
            share = f"{step['share_of_limit']:.0%}" if rate else ""
            host, device = _memory(step.get("memory"))
            yield f"| {step['name']} | {_ms(step['seconds'])} | {rate} | {share} | {host} | {device} | {step['note']} |"
        yield ""


def _comparisons(results: Mapping[str, Any]) -> Iterator[str]:
    yield "### Beside the peers\n"
    yield "| what | who | ms | ours is faster by | |"
    yield "| --- | --- | --- | --- | --- |"
    for name, each in results["comparisons"].items():
        facts = ", ".join(
            f"{key.replace('_', ' ')} {value:g}"
            for key, value in each.items()
            if key not in ("what", "seconds", "ratio")
        )
        for number, (who, seconds) in enumerate(each["seconds"].items()):
            ratio = each["ratio"].get(who)
            times = f"{ratio['median']:.2f} [{ratio['low']:.2f} to {ratio['high']:.2f}]" if ratio else ""
            yield f"| {name if not number else ''} | {who} | {_ms(seconds)} | {times} | {facts if not number else ''} |"
    yield ""


def _rates(results: Mapping[str, Any]) -> Iterator[str]:
    yield "### Images a second\n"
    yield "| what | images/s | prompts an image | batch | host MiB | device MiB |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for preset, rate in results["images_per_s"].items():
        host, device = _memory(rate["memory"])
        yield (
            f"| bare labeller, {preset} | {rate['images_per_s']:.2f} | {rate['prompts']:.1f} | {rate['batch_size']} "
            f"| {host} | {device} |"
        )
    ray = results.get("ray")
    if ray:
        yield f"| bare labeller, {ray['preset']}, {ray['num_cpus']} CPUs | {ray['bare_images_per_s']:.2f} | | | | |"
        yield f"| through Ray, {ray['preset']}, {ray['num_cpus']} CPUs | {ray['ray_images_per_s']:.2f} | | | | |"
    large = results["large_picture"]
    host, device = _memory(large["memory"])
    yield (
        f"\nOne picture of {_size(large['height_width'])} pixels with {large['prompts']} prompts "
        f"({large['candidates']} candidates): {large['seconds']:.1f} s, {host} MiB on the host above the loaded model"
        + (f", {device} MiB on the device" if device else "")
        + f"; the budget is {large['budget_bytes'] // MIB} MiB.\n"
    )
    if "numerics" in results:
        numerics = results["numerics"]
        yield (
            f"Numerics: {numerics['dtype']} against float32, mean best-match mask IoU {numerics['mean_iou']:.4f} over "
            f"{numerics['num_masks']} masks of the built-in pictures.\n"
        )


def _growth(results: Mapping[str, Any], chart: str | None) -> Iterator[str]:
    if "growth" not in results:
        return
    yield "### How cost grows\n"
    if chart:
        yield f"![Seconds a picture against prompts, size, batch and masks]({chart})\n"
    for curve in results["growth"]:
        growth = "faster than linear" if curve["super_linear"] else "not faster than linear"
        yield f"| {curve['quantity']} | " + " | ".join(f"{value:.3g}" for value in curve["values"]) + " |"
        yield "| --- |" + " --- |" * len(curve["values"])
        yield "| ms a picture | " + " | ".join(_ms(seconds) for seconds in curve["seconds"]) + " |"
        yield "| images/s | " + " | ".join(f"{1 / seconds['median']:.3g}" for seconds in curve["seconds"]) + " |"
        note = curve["note"]
        yield f"\nPower {curve['power']:.2f} at the upper end ({growth}). {note[0].upper()}{note[1:]}.\n"


def _reruns(results: Mapping[str, Any]) -> Iterator[str]:
    if "reruns" not in results:
        return
    reruns = results["reruns"]
    yield f"### Runs that share work, {reruns['num_images']} images\n"
    yield "| what | ms an image |"
    yield "| --- | --- |"
    for preset, seconds in reruns["alone_s"].items():
        yield f"| {preset}, a run of its own through Ray | {1e3 * seconds:.1f} |"
    yield f"| all in one pass through Ray | {1e3 * reruns['together_s']:.1f} |"
    for preset, seconds in reruns["bare_label_s"].items():
        yield f"| {preset}, bare labeller, one thread | {1e3 * seconds:.1f} |"
    for preset, seconds in reruns["remerge_s"].items():
        candidates = reruns["candidates"][preset]
        yield f"| {preset}, merged anew from {candidates:.1f} candidates an image, one thread | {1e3 * seconds:.2f} |"
    yield ""


def _ms(seconds: Mapping[str, float]) -> str:
    median, low, high = (1e3 * seconds[key] for key in ("median", "low", "high"))
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:,.{digits}f} [{low:,.{digits}f} to {high:,.{digits}f}]"


def _memory(memory: Mapping[str, Any] | None) -> tuple[str, str]:
    if memory is None:
        return "", ""
    device = memory["device_bytes"]
    return f"{memory['host_bytes'] / MIB:.0f}", "" if device is None else f"{device / MIB:.0f}"


def _size(height_width: tuple[int, int]) -> str:
    return f"{height_width[1]:,} x {height_width[0]:,}"
