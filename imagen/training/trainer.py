"""The training loop, whatever is trained.

Every step is a function of the weights, the configuration and the step's number, so that a run that was killed goes on
bit for bit from its last resume point.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.data.order import micro_positions
from imagen.disk import MetricsFile, write_text
from imagen.errors import ConfigError
from imagen.training.compiling import compile_steps
from imagen.training.config.parsing import to_yaml
from imagen.training.config.resumed import changed_keys, read_stored
from imagen.training.loader import batches_of, make_loader
from imagen.training.optim.optimizers import make_optimizer, restore_optimizer, schedule_factor, set_learning_rate
from imagen.training.processes import Processes, check_optimizer, check_processes, make_accelerator
from imagen.training.state.checkpoint import State, StateFolder
from imagen.training.state.ema import EMA, trained_state
from imagen.training.stopping import Stopping
from imagen.training.task import Task
from imagen.training.telling import Progress, SkipFile, Window
from imagen.training.trackers import Trackers, check_trackers


class TrainingStopped(RuntimeError):
    """Training ended itself: too many steps had a non-finite loss or gradient, or too many pictures were unusable."""


class Trainer:
    """One run of a task, resumed where run_dir holds a resume point.

    `fit()` trains. The folder it leaves: config.yaml, metrics.jsonl, state/ (resume points), model/ (what the task
    exports, with EMA weights), samples/.

    Raises:
        ConfigError: a configuration that cannot run, or that does not belong to the run in run_dir.
    """

    def __init__(self, task: Task[Any], progress: Progress | None = None) -> None:
        self.task, self.config = task, task.config
        config = self.config
        check_optimizer(config)
        check_trackers(config.train.trackers)
        self.run = Path(config.run_dir)
        if self.run.exists() and not self.run.is_dir():
            raise ConfigError(f"run_dir {config.run_dir!r} is a file; give the folder to keep the run in")
        self.states = StateFolder(self.run / "state", config.train.keep_last)
        self.accelerator = make_accelerator(config)
        self.processes = Processes.of(self.accelerator)
        self.rank, self.world = self.processes.rank, self.processes.world
        check_processes(config, self.accelerator)
        self._check_same_run()
        self.step, self.skipped, self.skipped_in_a_row = 0, 0, 0
        self.window = Window.of(task.groups)
        with self.accelerator.main_process_first():  # which sets damaged ones aside
            state = self.states.newest()
        saved = None if state is None else state.tensors[task.weights]
        self.module, self.source, ends, self.ready = task.load(self.accelerator.device, self.processes, saved)
        self.bad = SkipFile(self.run / "skipped.jsonl", self.source.length, config.data.max_skipped_share)
        if config.train.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        if config.train.compile:
            compile_steps(self.module)
        self.ema = EMA(self.module, config.ema.decay, config.ema.warmup)
        optimizer = make_optimizer(self.module, config.optim, ends)
        self.model, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        if state is not None:
            self._restore(state)
        self.progress = progress or Progress(config.train.steps, self.step)
        self.stopping = Stopping(config.train.time_limit)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Train to train.steps. True when they are done, False when a signal or the time limit ended the run early.

        Raises:
            TrainingStopped: too many steps or pictures were skipped. A resume point is kept.
        """
        config = self.config.train
        main = self.accelerator.is_main_process
        if main:
            self.run.mkdir(parents=True, exist_ok=True)
            write_text(self.run / "config.yaml", to_yaml(self.config))
        self.metrics = MetricsFile(self.run / "metrics.jsonl", self.step) if main else None
        self.trackers = Trackers(self.accelerator, self.progress.note)
        for note in [self._begins(), *self.task.notes] if main else ():
            self.progress.note(note)
        self.model.train()
        with self.trackers.of(self.config, self.step):
            self._mark = (time.monotonic(), self.step)
            loader = make_loader(self.config, self.source, self.step, self.rank, self.world, self.ready)
            with self.stopping.listening(), batches_of(loader) as batches:
                stop = False
                while self.step < config.steps and not stop:
                    stop = self._train_step(batches)
                    self._after_step(stop)
            if self.bad.refresh() and self.bad.exceeded:
                self._give_up(self.bad.verdict())
            if main:
                self.task.export(self.ema, self.run / "model", self.step)
        if self.metrics is not None:
            self.metrics.close()
        self.accelerator.end_training()
        return self.step >= config.steps

    def _begins(self) -> str:
        """What a start tells: where it goes on, what is trained, on what, and when it is heard of next."""
        train, length = self.config.train, self.source.length
        learnt = sum(weight.numel() for weight in self.module.parameters() if weight.requires_grad)
        pictures = "pictures as they come" if length is None else f"{length:,} pictures"
        where = f"{self.accelerator.device}{f', {self.world} processes' if self.world > 1 else ''}"
        return (
            f"{'goes on at' if self.step else 'starts at'} step {self.step} of {train.steps} in {self.run}: "
            f"{learnt:,} parameters on {where}, {pictures}; the next line after step "
            f"{min(train.steps, (self.step // train.log_every + 1) * train.log_every)}"
        )

    def _train_step(self, batches: Iterator[dict[str, Any]]) -> bool:
        """One optimizer step over the global batch; True when the run is to stop."""
        config, step = self.config.train, self.step
        groups = max(1, len(self.task.groups))
        sums = torch.zeros(2 * groups, dtype=torch.float64, device=self.accelerator.device)
        self.bad.read = (step + 1) * config.batch_size
        for micro in range(config.accumulation):
            rows = micro_positions(config.batch_size, micro, config.accumulation, self.rank, self.world)
            raw = next(batches)
            self.bad.add(raw["notes"])
            batch = self.task.batch(raw, step, rows)
            last = micro == config.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self.task.losses(self.model, batch)
                self.accelerator.backward(losses.mean() / config.accumulation)
            sums += sums_by_group(losses.detach(), self.task.group(batch), groups)
        clip = self.config.optim.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), math.inf if clip is None else clip)
        numbers, stop = self._reduce(sums, norm)
        totals, counts, grad_norm = numbers[:groups], numbers[groups:-1], numbers[-1]
        if all(math.isfinite(number) for number in numbers):
            set_learning_rate(self.optimizer, schedule_factor(self.config.optim, step, config.steps))
            self.optimizer.step()
            self.ema.update(self.module)
            self.window.add(totals, counts, grad_norm)
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return stop

    def _reduce(self, sums: Tensor, norm: Any) -> tuple[list[float], bool]:
        """Sums over processes with the gradient norm, and whether any process wants to stop: one transfer a step."""
        wants = torch.tensor([float(self.stopping.asked or self.bad.exceeded)], dtype=sums.dtype)
        wants = wants.to(sums.device, non_blocking=True)
        norm = torch.as_tensor(norm, device=sums.device).to(torch.float64).reshape(1)
        *numbers, stop, norm = torch.cat([self.processes.add(torch.cat([sums, wants])), norm]).tolist()
        return [*numbers, norm], stop > 0

    def _after_step(self, stop: bool) -> None:
        config = self.config.train
        last = self.step == config.steps
        if self.step % config.log_every == 0 or last:
            self._log()
        every = self.config.validation.every
        if every and (self.step % every == 0 or last):
            self._measure()
        every = self.config.grid.every
        if every and (self.step % every == 0 or last):
            self._draw(self.run / "samples" / f"step-{self.step:08d}.png")
        over = self.skipped_in_a_row > config.max_skipped_in_a_row or self.skipped > config.max_skipped
        if over and self.skipped_in_a_row:  # not after a good step: a run that was mended is to go on
            self.save()
            self._give_up(
                f"{self.skipped} steps in all and {self.skipped_in_a_row} in a row had a non-finite loss or gradient "
                f"(train.max_skipped {config.max_skipped}, train.max_skipped_in_a_row {config.max_skipped_in_a_row}); "
                f"the run is kept in {self.run / 'state'}. Lower optim.lr, raise optim.warmup or look at the data"
            )
        if stop or last or self.step % config.checkpoint_every == 0:
            self.save()

    def _give_up(self, why: str) -> None:
        if self.metrics is not None:
            self.metrics.close()
        raise TrainingStopped(f"stopped at step {self.step}: {why}")

    # --- telling -----------------------------------------------------------------------------------------------------

    def _log(self) -> None:
        config, optim = self.config.train, self.config.optim
        now, (then, before) = time.monotonic(), self._mark
        rate = (self.step - before) * config.batch_size / max(now - then, 1e-9)
        means = self.window.means(self.task.groups)
        self._mark, self.window = (now, self.step), Window.of(self.task.groups)
        if self.metrics is None:
            return
        lr = optim.lr * schedule_factor(optim, self.step - 1, config.steps)
        record = {"images": self.step * config.batch_size, **means, "lr": lr, "skipped": self.skipped}
        clock = {"unix": round(time.time(), 3), "images_per_second": round(rate, 2)}
        self.metrics.write({"step": self.step, **record, "clock": clock})
        self.progress.show(self.step, means["loss"], rate, self.skipped, self.bad.refresh())
        shown = {key: value for key, value in record.items() if value is not None}
        self.trackers.log({**shown, "images_per_second": rate}, self.step)

    def _measure(self) -> None:
        """The average on held-out pictures, a line of its own."""
        with self.ema.swapped_in(self.module):
            record = self.task.measure(self.step)
        if self.metrics is not None:
            self.metrics.write({"step": self.step, **record})
            scores = [f"  {name[7:]} {value:.4g}" for name, value in record.items() if name.startswith("scores/")]
            self.progress.note(f"step {self.step}  held-out loss {record['val_loss']:.5f}{''.join(scores)}")
        self.trackers.log(record, self.step)

    def _draw(self, path: Path) -> None:
        drawn = self.task.draw(self.ema, path)
        self.trackers.show({f"samples{one.stem.removeprefix(path.stem)}": one for one in drawn}, self.step)

    # --- resume points -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a resume point and the export; nothing is lost where the process dies meanwhile."""
        self.ema.check_moved(self.module)
        if self.accelerator.is_main_process:
            if self.metrics is not None:
                self.metrics.sync()
            skipped = {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
            facts = {**skipped, "ema_updates": self.ema.updates, "window": asdict(self.window)}
            facts["pictures"] = self.source.length
            tensors = {self.task.weights: trained_state(self.module), "ema": self.ema.average}
            self.states.save(State(self.step, tensors, self.optimizer.state_dict(), facts))
            self.task.export(self.ema, self.run / "model", self.step)
        self.accelerator.wait_for_everyone()

    def _check_same_run(self) -> None:
        found = read_stored(self.run, self.task.migrate)
        if found is None:
            return
        stored, notes = found
        for note in notes if self.accelerator.is_main_process else ():  # once: the run then stores what it goes on with
            warnings.warn(note, stacklevel=3)
        warned, refused = changed_keys(stored, self.config, self.task.changes)
        if refused:
            raise ConfigError(
                f"run_dir {str(self.run)!r} holds a run with another configuration ({'; '.join(refused)}): use another "
                "run_dir, with train.init_from to start from its weights"
            )
        if warned and self.accelerator.is_main_process:
            warnings.warn(f"the run goes on with a changed configuration: {'; '.join(warned)}", stacklevel=3)

    def _restore(self, state: State) -> None:
        self.step = state.step
        self.skipped = state.facts["skipped"]
        self.skipped_in_a_row = state.facts["skipped_in_a_row"]
        self.window = Window(**state.facts["window"])
        self.ema.load(state.tensors["ema"], state.facts["ema_updates"])
        restore_optimizer(self.optimizer, state.optimizer)
        before, now = state.facts.get("pictures"), self.source.length
        if before is not None and before != now and self.accelerator.is_main_process:
            told = f"the data had {before:,} pictures when the run was saved and has {now or 0:,} now"
            warnings.warn(f"{told}: from here on they come in another order", stacklevel=3)


def sums_by_group(losses: Tensor, group: Tensor, groups: int) -> Tensor:
    """(2 groups,) float64: sums of the losses (B,) and counts per group (B,); deterministic on any device."""
    member = torch.nn.functional.one_hot(group, groups).to(torch.float64)
    return torch.cat([losses.to(torch.float64) @ member, member.sum(dim=0)])
