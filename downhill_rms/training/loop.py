"""The one loop: epochs of updates, validations, and every way out of it."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse

from downhill_rms.compiling import findings, pytensor_mode
from downhill_rms.data import Batch, BoundDataset
from downhill_rms.rule import warn
from downhill_rms.saving import Checkpoint, CheckpointError, write_state
from downhill_rms.training import statedict
from downhill_rms.training.divergence import Divergence, DivergenceError
from downhill_rms.training.ending import do_each
from downhill_rms.training.fields import Fields, count
from downhill_rms.training.run import PREFIXES, Best, Run, check_progress
from downhill_rms.training.signals import StopSignals
from downhill_rms.training.statedict import StepsState
from downhill_rms.training.steps import Steps
from downhill_rms.training.stopping import StopReason
from downhill_rms.watching import History, PassMean, Record, Values, format_values

MAX_ROLLBACKS = 3
SHOWN_MONITORS = 2  # beside the loss, where there is room
INTERRUPTIONS = (StopReason.INTERRUPTED, StopReason.TERMINATED)
FAILURES = (StopReason.DIVERGED, StopReason.ERROR)  # their last state is no place to go on from

log = logging.getLogger(__name__)
epoch_log = logging.getLogger("downhill_rms.epochs")  # can be silenced where a bar is shown


def interruption(signals: StopSignals) -> StopReason | None:
    """Why a run ends with the update in hand, if a signal came."""
    if signals.received is None:
        return None
    terminated = signals.received == signal.SIGTERM
    return StopReason.TERMINATED if terminated else StopReason.INTERRUPTED


def _is_finite(losses: Any) -> bool:
    """Whether one loss, or every loss of a call, is finite."""
    return bool(np.isfinite(losses).all()) if losses.ndim else math.isfinite(float(losses))


@dataclass(frozen=True)
class LoadedState:
    """A whole state that fits, parsed and not taken up yet."""

    steps: StepsState
    history: History
    best: Best | None
    epoch_count: int
    pending: dict[str, Any]  # the progress of its run, as it was saved


class Loop:
    """Follow minibatches from a data set through updates and validations.

    Parameters
    ----------
    steps : Steps
        What happens to one minibatch.

    Attributes
    ----------
    epoch_count : int
        Epochs so far.
    history : History
        One record for each.
    best : Best or None
        The best validation of the last run.
    stop_reason : StopReason or None
        Why the last run ended.
    divergence : Divergence or None
        What was not finite, if it ended for that.
    run : Run or None
        The last run.
    pending : dict
        A run as it was loaded, until the next run takes it up.
    is_shared : bool
        Whether code of somebody else's runs between two epochs.
    waits : bool
        Whether a run is one of several that take turns: it hands over when it has begun, too, and
        comes to its end together with its last epoch.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.epoch_count = 0
        self.history = History()
        self.best: Best | None = None
        self.stop_reason: StopReason | None = None
        self.divergence: Divergence | None = None
        self.run: Run | None = None
        self.pending: dict[str, Any] = {}
        self.is_shared = True
        self.waits = False

    def evaluate(self, data: BoundDataset, must_be_finite: bool = False) -> Values:
        """Means over a data set in its own order."""
        means = PassMean(self.steps.names)
        data.begin_epoch(self.epoch_count)
        with self.steps.carried.pass_of_its_own(), self.steps.same_draws():
            for number, (batch, samples) in enumerate(data.in_order()):
                outputs = self.steps.evaluate(batch)
                if must_be_finite:
                    where = f"batch {number} of {data.name}"
                    self.steps.refuse_infinite(outputs[0], batch, where)
                means.add(outputs, samples)
        return means.result()

    def start(self, run: Run) -> Iterator[tuple[Values, Values]]:
        """Run to the end, handing over the monitors after every epoch.

        Raises
        ------
        DivergenceError
            If training diverged and the run asks for an error; the best parameters are in place.
        """
        signals = self.steps.placement.signals()
        reason: StopReason | None = StopReason.ERROR  # of whatever is not named below
        self.steps.say = run.progress.say
        try:
            signals.install()
            ending = self._begin(run)
            run.began = True
            if self.waits and ending is None:  # one that had come to its end has no turn left
                signals.remove()
                yield {}, run.latest
                signals.install()
                ending = interruption(signals)
            while ending is None:
                ending = self._epoch(run, signals)
                if ending is StopReason.DIVERGED and self._roll_back(run):
                    ending = None
                    continue
                if ending in INTERRUPTIONS or (self.waits and ending is not None):
                    break
                if self.is_shared:
                    signals.remove()  # the consumer's code has its own handlers
                yield self.history[-1].train, run.latest
                signals.install()
                ending = ending or interruption(signals)
            reason = ending
        except GeneratorExit:
            reason = StopReason.ABANDONED
            raise
        except KeyboardInterrupt:
            # The second Ctrl-C: it may have come in the middle of an update.
            reason, run.began = StopReason.INTERRUPTED, False
            self.steps.placement.fall_out()
        except Exception as error:
            self.steps.placement.fall_out(error)
            raise
        finally:
            signals.install()  # a consumer that leaves has its own in place
            signals.bear_one_more()
            self._end(run, reason, signals)
        if reason is StopReason.DIVERGED and run.on_divergence == "raise":
            raise DivergenceError(str(self.divergence))

    def _begin(self, run: Run) -> StopReason | None:
        """Validate before the first update, or take up a run that was loaded."""
        self.stop_reason, self.divergence, self.run = None, None, run
        if log.isEnabledFor(logging.DEBUG):
            for finding in findings(pytensor_mode(self.steps.mode)):
                log.debug("%s", finding.text)
        if run.checkpoint is not None:
            self._open(run, run.checkpoint)
            self.run = run
        pending = self.pending
        if pending and (run.resume or not pending["run/finished"]):
            run.restore(pending, self.steps.update_names)
            self.pending = {}
            if run.epochs and self.history:  # the clock goes on with the run
                run.started -= self.history[-1].seconds
            run.on_begin()
            return run.limit_reached()
        if pending:
            run.restore_order(pending)
        run.on_begin()
        self.best, self.pending = None, {}
        log.info("%s", self.steps.graph)
        self._validate(run)
        log.info("before training: valid %s", format_values(run.latest))
        return run.limit_reached() if run.updates else None

    def _open(self, run: Run, checkpoint: Checkpoint) -> None:
        """Take hold of the directory, and of the newest state in it."""
        checkpoint.begin()
        run.holds_checkpoint = True
        if not run.resume and checkpoint.steps():
            raise CheckpointError(
                f"{checkpoint.directory} has checkpoints already: a new run begins in a directory "
                "without. Give resume=True to go on with them, or another directory."
            )
        if found := checkpoint.latest():
            path, state = found
            changes = dict(run.hyperparameters)
            if isinstance(changes.get("learning_rate"), int | float):
                changes["learning_rate"] /= 2 ** state.get("run/rollbacks", 0)
            changed = run.resume == "changed"
            loaded = self._read(state, changes, changed)
            if changed:  # its limits count on; all else begins anew
                run.updates, run.epochs = (state.get(f"run/{n}", 0) for n in ("updates", "epochs"))
            elif loaded.pending:
                run.check(loaded.pending)
            self._take_up(loaded)
            self.steps.settle()
            log.info("going on from %s", path)
        done = [self.pending.get(f"run/{name}", 0) for name in ("updates", "epochs")]
        checkpoint.start(max(done[0], run.updates), max(done[1], run.epochs))

    def _end(self, run: Run, reason: StopReason | None, signals: StopSignals) -> None:
        """Bring a run to its end, all of it, whatever fails on the way; then comes the error."""
        try:
            do_each(
                lambda: self._save_best(run),
                lambda: self._save_last(run, reason),
                lambda: self._put_back_best(run, reason),
                lambda: self._let_go(run),
                lambda: self._show_last(run, reason),
                run.progress.close,
                signals.remove,
            )
            if reason not in FAILURES:  # whoever sent a signal meanwhile is answered, too
                reason = interruption(signals) or reason
        except BaseException:
            reason = StopReason.ERROR
            raise
        finally:
            self.stop_reason = reason
            log.info("stopped: %s", reason)

    def _save_last(self, run: Run, reason: StopReason | None) -> None:
        if run.began and reason not in FAILURES and self.steps.diverge(None) is None:
            self._save(run)

    def _put_back_best(self, run: Run, reason: StopReason | None) -> None:
        wanted = run.restore_best or reason is StopReason.DIVERGED
        # Without a validation of its own, a run has no best and has changed nothing.
        best = self.best if wanted and run.latest else None
        # An interrupted run can be taken up from a state, unless its parameters were replaced.
        run.finished = best is not None or reason not in INTERRUPTIONS
        if best is not None:
            self.steps.put_back(best.params, best.assigned)

    def _show_last(self, run: Run, reason: StopReason | None) -> None:
        if reason is not StopReason.ERROR:  # what is to be shown may be what has failed
            self._show(run)

    def _let_go(self, run: Run) -> None:
        if run.checkpoint is not None and run.holds_checkpoint:
            run.checkpoint.end()

    def _epoch(self, run: Run, signals: StopSignals) -> StopReason | None:
        """Train for what is left of an epoch, validate if it is time, and record it."""
        ending = self._train(run, signals)
        if ending in INTERRUPTIONS:
            return ending
        train = run.close_epoch()
        self.epoch_count += 1
        ending = ending or self._look_at_mean(train) or run.limit_reached()
        best, validated = False, ending is not None or run.epochs % run.validate_every == 0
        if validated and ending is not StopReason.DIVERGED:
            ending = self._look_at_parameters() or ending
        if validated and ending is not StopReason.DIVERGED:
            best = self._validate(run)
            ending = ending or run.after_validation()
        if self._record(run, train, validated, best) and ending is None:
            ending = StopReason.OBSERVER
            if not validated:  # a run ends with a validation of its final parameters
                best = self._validate(run)
                amended = replace(self.history[-1], valid=run.latest, validated=True, best=best)
                self.history.records[-1] = amended
        return ending or self._save_if_due(run)

    def _record(self, run: Run, train: Values, validated: bool, best: bool) -> bool:
        """Write down an epoch, and tell whoever wants to know; whether an observer ends the run."""
        counts = (self.epoch_count, self.steps.update_count, run.seconds)
        learning_rate = self.steps.learning_rate
        judged = {"validated": validated, "best": best, "valid_is_train": run.valid is run.train}
        record = Record(*counts, train, run.latest, learning_rate=learning_rate, **judged)
        self.history.append(record)
        epoch_log.info("%s", record)
        answers = [observe(record) for observe in run.observers]
        stop = any(answer is StopReason.OBSERVER for answer in answers)
        return self.steps.placement.agree(stop)

    def _show(self, run: Run) -> None:
        """Draw where the run has come to."""
        train, epoch = math.nan, run.epochs
        if run.means is not None:
            train, epoch = run.means.result()["loss"], epoch + 1
        elif len(self.history):
            train = self.history[-1].train["loss"]
        valid = run.latest.get("loss", math.nan)
        judge = run.patience.monitor
        best = math.nan if self.best is None else self.best.monitors[judge]
        label = "best" if judge == "loss" else f"best {judge}"
        others = dict(list(run.latest.items())[1 : 1 + SHOWN_MONITORS])
        losses = {"train": train, "valid": valid, **others, label: best}
        run.progress.draw(epoch, run.updates, losses)

    def _train(self, run: Run, signals: StopSignals) -> StopReason | None:
        """Make an update for each minibatch, or stack of them, that is left of the epoch."""
        due = run.progress.due
        if self.steps.updates_per_call != run.updates_per_call:  # another run came between
            self.steps.use({}, run.updates_per_call)
        carried = self.steps.carried
        if run.begins_pass:
            carried.begin_pass()
        run.train.begin_epoch(self.epoch_count)
        for batch, samples in run.open_epoch(self.steps.update_names):
            before = self._state() if run.save_batch else {}
            outputs = self.steps.update(batch)
            run.count(outputs, samples)
            if carried.variables and run.begins_pass:  # an epoch may be many passes
                carried.begin_pass()
            if due():
                self._show(run)
            # To look at a value of JAX's is to wait for the device: `_epoch` looks at the mean.
            looks = run.save_batch or not hasattr(outputs[0], "block_until_ready")
            if looks and not _is_finite(outputs[0]):
                number = run.batches - np.size(outputs[0])
                self.divergence = self.steps.diverge(batch, outputs, number)
                self._save_batch(run, before, batch)
                return StopReason.DIVERGED
            if run.out_of_updates:
                return None
            if ending := interruption(signals) or self._save_if_due(run):
                return ending
        return None

    def _save_if_due(self, run: Run) -> StopReason | None:
        """Save, unless what would be saved is not finite."""
        if run.checkpoint is None or not self._is_due(run, run.checkpoint):
            return None
        ending = self._look_at_parameters()
        if ending is None:
            self._save_best(run)  # first: a step that knows it never lies beside an older one
            self._save(run)
        return ending

    def _is_due(self, run: Run, checkpoint: Checkpoint) -> bool:
        return checkpoint.due(run.updates, run.epochs)

    def _save(self, run: Run) -> None:
        if run.checkpoint is not None:
            metadata = run.checkpoint.mark(self.history.lines)
            run.checkpoint.save(self._state(), self.steps.update_count, metadata)

    def _save_best(self, run: Run) -> None:
        if run.checkpoint is not None and run.unsaved_best is not None:
            run.checkpoint.save_best(*run.unsaved_best)
            run.unsaved_best = None

    def _save_batch(self, run: Run, before: Mapping[str, Any], batch: Batch) -> None:
        """Write the minibatch of a divergence and the state before it, for a replay."""
        if run.save_batch and run.checkpoint is not None:
            host = self.steps.placement.host
            arrays = (a.toarray() if scipy.sparse.issparse(a) else host(a) for a in batch)
            minibatch = {f"batch/{index}": array for index, array in enumerate(arrays)}
            name = f"diverged-{self.steps.update_count:09d}.npz"
            state = {**before, "history": self.history.to_json()}
            path, state = run.checkpoint.directory / name, {**state, **minibatch}
            self.steps.placement.by_leader(lambda: write_state(path, state))

    def _roll_back(self, run: Run) -> bool:
        """Return to the last checkpoint with half the learning rate, if that is still allowed."""
        if run.on_divergence != "rollback" or run.rollbacks >= MAX_ROLLBACKS:
            return False
        if run.checkpoint is None or (found := run.checkpoint.latest()) is None:
            return False
        path, state = found
        learning_rate = float(self.steps.hyperparameters.numbers["learning_rate"]) / 2
        rollbacks = run.rollbacks + 1
        self.load_state_dict(state, {"learning_rate": learning_rate})
        run.restore(self.pending, self.steps.update_names)
        self.pending, self.run, run.rollbacks = {}, run, rollbacks
        run.unsaved_best = None
        run.checkpoint.start(run.updates, run.epochs)
        log.warning("%s; back to %s with learning rate %g", self.divergence, path, learning_rate)
        return True

    def _validate(self, run: Run) -> bool:
        """Take the monitors of the validation data; whether they are the best of the run."""
        with self.steps.averaged():
            run.latest = self.evaluate(run.valid, must_be_finite=run.epochs == 0)
            value = run.latest[run.patience.monitor]
            if run.epochs == 0 and not math.isfinite(value):
                raise ValueError(
                    f"The monitor {run.patience.monitor!r} is {value} on {run.valid.name} "
                    "before training. What judges a run is finite: mend it, or name another."
                )
            best = run.patience.improves(value)
            if best:
                counts = (self.epoch_count, self.steps.update_count)
                values = (self.steps.parameters.copy(), self.steps.assigned.copy())
                self.best = Best(run.latest["loss"], *counts, run.latest, *values)
        if best and run.checkpoint is not None:
            run.unsaved_best = self._state(), run.checkpoint.mark(self.history.lines)
        return best

    def _look_at_mean(self, train: Values) -> StopReason | None:
        """See a divergence at the end of the epoch, where it was not looked for before."""
        if math.isfinite(train["loss"]):
            return None
        mean = (f"the mean loss of the epoch is {train['loss']}",)
        self.divergence = self.steps.diverge(None) or Divergence(self.steps.update_count, mean)
        return StopReason.DIVERGED

    def _look_at_parameters(self) -> StopReason | None:
        self.divergence = self.steps.diverge(None)
        return None if self.divergence is None else StopReason.DIVERGED

    def state_dict(self) -> dict[str, Any]:
        """Everything that another process needs to go on."""
        return {**self._state(), "history": self.history.to_json()}

    def _state(self) -> dict[str, Any]:
        """The same without the history, which alone grows with every epoch."""
        state = {**statedict.collect(self.steps), "epoch_count": self.epoch_count}
        if self.best is not None:
            state |= self.best.state_dict()
        if self.run is not None:
            return state | self.run.state_dict()
        return state | self.pending

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        changes: Mapping[str, Any] | None = None,
        changed: bool = False,
    ) -> None:
        """Check all of a state, then take it up, with some hyperparameters changed."""
        self._take_up(self._read(state, changes or {}, changed))

    def _read(
        self, state: Mapping[str, Any], changes: Mapping[str, Any], changed: bool
    ) -> LoadedState:
        """Parse the whole of a state, and change nothing.

        With ``changed`` it may be of another loss; its best and its run are left out then.

        Raises
        ------
        ValueError
            With every field that does not fit.
        """
        fields, steps = Fields(state), self.steps
        of_steps = statedict.read(fields, steps, changes, changed)
        if "journal" in state:
            history = fields.read("journal", History.from_lines)
        else:
            history = fields.read("history", History.from_json)
        epoch_count = fields.read("epoch_count", count)
        assigned = {} if fields.are_of_release_0_1 else steps.assigned.copy()
        best = None
        if changed:
            for name in ("updates", "epochs"):
                if fields.has_any("run/"):
                    fields.read(f"run/{name}", count)
        else:
            best = Best.read(fields, steps.names, steps.parameters.copy(), assigned)
            check_progress(fields, steps.names, steps.update_names)
            fields.refuse_unknown()
        if fields.faults or of_steps is None:
            raise ValueError(
                f"The state does not fit this trainer: {'; '.join(sorted(fields.faults))}. Build "
                "the same loss with the same names, shapes and dtypes, or, if the loss was changed "
                "on purpose, give resume='changed' (--resume-changed), or "
                "load_state_dict(state, changed=True)."
            )
        if fields.lacking:
            warn(
                f"The state of an older release lacks {', '.join(fields.lacking)}: what is in the "
                "trainer stays. Set these yourself if they matter."
            )
        prefixes = () if changed else PREFIXES
        pending = {name: v for name, v in state.items() if name.startswith(prefixes)}
        return LoadedState(of_steps, history, best, epoch_count, pending)

    def _take_up(self, loaded: LoadedState) -> None:
        """Set what `_read` has found to fit."""
        statedict.restore(loaded.steps, self.steps)
        self.history, self.best = loaded.history, loaded.best
        self.epoch_count, self.run, self.pending = loaded.epoch_count, None, loaded.pending
