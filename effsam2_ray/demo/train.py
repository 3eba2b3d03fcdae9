"""Training of the demo weights: two processes of one thread each, resumable after a kill at any time."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from effsam2_ray.demo.objective import Taught, batch_loss
from effsam2_ray.demo.optimization import Optimizers, initialize, learning_rate, trainable_parameters
from effsam2_ray.demo.scene_pool import ScenePool
from effsam2_ray.model.build import build_model, load_config
from effsam2_ray.model.small_sam2 import SmallSAM2

DEMO_CONFIG = resources.files("effsam2_ray.demo") / "sam2_demo.yaml"

EMA_DECAY = 0.995
# Until here the losses are those of a start (see `batch_loss`).
EARLY_STEPS = 150
SAVE_EVERY_S = 60.0
LOG_EVERY_STEPS = 20
# Two processes on two quiet cores; --minutes is turned into steps with these.
STEPS_A_MINUTE_256 = 57.0
STEPS_A_MINUTE_512 = 30.0
FINE_TUNE_SHARE = 0.55
# Exported mask logits are this many times those trained. Masks stay as they are. But SAM 2's cut-off of the stability
# score, which asks what a step of 1 in the logits changes, then keeps nine good masks (IoU from 0.8) in ten instead of
# one in two, and one bad one (under 0.5) in eight: measured on 80 even-seeded scenes that no training saw.
MASK_LOGIT_SCALE = 3.0
# The rate at which the second phase takes over from the first.
FINE_TUNE_PEAK = 0.4


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one picture size.

    Attributes:
        image_size: side of the pictures, pixels.
        num_steps: length of the phase.
        num_images, num_prompts: pictures a process and step, and prompts a picture.
        num_scenes: size of the pool of scenes.
        peak: highest learning rate, as a multiple of the base rates.
        warmup_steps: linear rise at the start.
        flat_share: share of the steps before the rate falls (a cosine).
        end: where the rate ends, as a share of the peak; the next phase goes on there after its own short rise.
    """

    image_size: int
    num_steps: int
    num_images: int
    num_prompts: int
    num_scenes: int
    peak: float
    warmup_steps: int
    flat_share: float
    end: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What to train.

    Attributes:
        phases: in their order.
        seed: of initial values and batches.
        num_processes: each with its own batches, gradients averaged.
        initial_weights: a file that `export` of this version wrote, to start from instead of random values.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    num_processes: int = 2
    initial_weights: Path | None = None


def make_plan(
    steps: int,
    fine_tune_steps: int,
    *,
    num_scenes: int = 8000,
    seed: int = 0,
    num_processes: int = 2,
    initial_weights: Path | None = None,
) -> Plan:
    """Return the plan: `steps` at 256 px, then `fine_tune_steps` at 512 px; gentler from `initial_weights`."""
    peak = 1.0 if initial_weights is None else 0.6
    end = FINE_TUNE_PEAK / peak if fine_tune_steps else 0.0
    main = Phase(256, steps, 8, 8, num_scenes, peak=peak, warmup_steps=100, flat_share=0.5, end=end)
    fine = Phase(
        512, fine_tune_steps, 3, 8, max(1, num_scenes // 4), peak=FINE_TUNE_PEAK, warmup_steps=10, flat_share=0.1
    )
    return Plan((main, fine), seed, num_processes, initial_weights)


def steps_for(minutes: float) -> tuple[int, int]:
    """Return (steps at 256 px, steps at 512 px) that take about this many minutes on two quiet cores."""
    fine_tune = minutes * FINE_TUNE_SHARE
    return round((minutes - fine_tune) * STEPS_A_MINUTE_256), round(fine_tune * STEPS_A_MINUTE_512)


def train(plan: Plan, work_dir: Path) -> None:
    """Train, or go on from the checkpoint in `work_dir`, until the plan's end.

    A checkpoint made under another plan is continued under this one: its phase and step are kept, so that a longer or
    shorter plan moves the point where the learning rate falls.

    Args:
        plan: what to train.
        work_dir: holds the scene pools and `checkpoint.pt`; made if missing.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    meeting_point = work_dir / f"processes.{os.getpid()}"
    torch.multiprocessing.spawn(_train_process, (plan, work_dir, meeting_point), nprocs=plan.num_processes)  # type: ignore[attr-defined]
    meeting_point.unlink(missing_ok=True)


def export(work_dir: Path, destination: Path) -> None:
    """Write the averaged weights of the checkpoint as `{"model": state_dict}` in half precision, atomically.

    Mask logits are scaled by `MASK_LOGIT_SCALE`.
    """
    averaged = torch.load(work_dir / "checkpoint.pt", map_location="cpu", weights_only=True)["averaged"]
    scaled = scale_mask_logits(averaged, MASK_LOGIT_SCALE)
    _save({"model": {name: value.half() for name, value in scaled.items()}}, destination)


def scale_mask_logits(state: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """Return a state dict of SAM 2 with the decoder's last layer scaled, and so its mask logits, by `factor`."""
    hypernetworks = "sam_mask_decoder.output_hypernetworks_mlps."
    last = max(int(name.split(".")[4]) for name in state if name.startswith(hypernetworks))
    return {
        name: value * factor if name.startswith(hypernetworks) and f".layers.{last}." in name else value
        for name, value in state.items()
    }


def _end_with_parent() -> None:
    """End this process when its parent does, however that ends: orphans would go on writing the checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def wait() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _train_process(rank: int, plan: Plan, work_dir: Path, meeting_point: Path) -> None:
    _end_with_parent()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=plan.num_processes)
    torch.manual_seed(plan.seed)
    model = build_model(load_config(str(DEMO_CONFIG)))
    assert isinstance(model, SmallSAM2)
    initialize(model)
    if plan.initial_weights is not None:
        saved = torch.load(plan.initial_weights, map_location="cpu", weights_only=True)["model"]
        saved = scale_mask_logits({name: value.float() for name, value in saved.items()}, 1 / MASK_LOGIT_SCALE)
        model.load_state_dict(saved)
    state = _State(model, plan, work_dir / "checkpoint.pt")
    state.restore()
    taught = Taught.wrap(model.train())
    for index in range(state.phase, len(plan.phases)):
        phase = plan.phases[index]
        if index > state.phase:
            state.phase, state.phase_step = index, 0
        _run_phase(rank, plan, phase, taught, state, ScenePool(work_dir / "scenes", phase.image_size, phase.num_scenes))
    if rank == 0:
        state.save()
    dist.destroy_process_group()


def _run_phase(rank: int, plan: Plan, phase: Phase, taught: Taught, state: _State, pool: ScenePool) -> None:
    taught.model.set_image_size(phase.image_size)
    started, first_step, saved = time.monotonic(), state.phase_step, time.monotonic()
    recent: list[dict[str, float]] = []
    while state.phase_step < phase.num_steps:
        rng = np.random.default_rng([plan.seed, state.phase, state.phase_step, rank])
        batch = pool.batch(rng, phase.num_images, phase.num_prompts)
        early = plan.initial_weights is None and state.phase == 0 and state.phase_step < EARLY_STEPS
        rate = phase.peak * learning_rate(
            state.phase_step, phase.num_steps, phase.warmup_steps, phase.flat_share, phase.end
        )
        loss, figures = batch_loss(taught, batch, early=early)
        loss.backward()
        state.optimizers.step(rate)
        state.average()
        state.phase_step += 1
        recent.append(figures)
        if rank == 0 and state.phase_step % LOG_EVERY_STEPS == 0:
            pace = 60 * (state.phase_step - first_step) / (time.monotonic() - started)
            means = " ".join(f"{name} {np.mean([f[name] for f in recent]):.3f}" for name in figures)
            print(f"{phase.image_size} px step {state.phase_step}/{phase.num_steps} rate {rate:.3f} {means} "
                  f"{pace:.1f} steps/min", flush=True)  # fmt: skip
            recent = []
        if rank == 0 and time.monotonic() - saved > SAVE_EVERY_S:
            state.save()
            saved = time.monotonic()


class _State:
    """Everything that a checkpoint holds."""

    def __init__(self, model: SmallSAM2, plan: Plan, path: Path) -> None:
        self.model = model
        self.path = path
        self.optimizers = Optimizers(trainable_parameters(model))
        self.averaged = {name: value.clone() for name, value in model.state_dict().items()}
        self.phase = 0
        self.phase_step = 0

    def average(self) -> None:
        """Move the running average of the weights towards the weights; quicker at the start."""
        decay = min(EMA_DECAY, (self.phase_step + 1) / (self.phase_step + 10)) if self.phase == 0 else EMA_DECAY
        current = self.model.state_dict()
        pairs = [(self.averaged[name], value) for name, value in current.items()]
        torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - decay)

    def save(self) -> None:
        _save(
            {
                "model": self.model.state_dict(),
                "averaged": self.averaged,
                "optimizers": self.optimizers.state_dict(),
                "phase": self.phase,
                "phase_step": self.phase_step,
            },
            self.path,
        )

    def restore(self) -> None:
        if not self.path.exists():
            return
        saved: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.averaged = saved["averaged"]
        self.optimizers.load_state_dict(saved["optimizers"])
        self.phase, self.phase_step = saved["phase"], saved["phase_step"]


def _save(content: dict[str, Any], path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)
