"""The trainer: steps, and the loop over a source with progress, log, checkpoints and exact resume."""

from saelab.core.run import Run
from saelab.data.source import Source
from saelab.sae.sae import SAE
from saelab.train.convergence import Convergence
from saelab.train.loop import LoopConfig, run_loop
from saelab.train.step import StepTrainer


class Trainer(StepTrainer):
    __doc__ = StepTrainer.__doc__

    def fit(
        self,
        source: Source,
        rows: int,
        run: Run | None = None,
        log_every: int = 50,
        save_every: int = 1000,
        tensorboard: bool = False,
        show: bool = True,
        converge: Convergence | None = None,
    ) -> SAE:
        """Train on `rows` rows of a source, rounded up to whole batches.

        An SAE that has seen no row is first fitted to a sample of the source; one that has goes on as it is. With a
        run whose folder holds a checkpoint, training goes on from there, bit for bit as if it had never stopped.

        Args:
            source: where rows come from.
            rows: rows to see in all.
            run: folder for log, checkpoints and the trained SAE (with the averaged weights where there is an average;
                the SAE in memory keeps its own).
            log_every: steps between records.
            save_every: steps between checkpoints.
            tensorboard: whether to write TensorBoard's event files too, into the run's folder.
            show: whether to show progress.
            converge: ends the run before `rows` once it has converged by this criterion.

        Raises:
            ValueError: see `step`, and for a source of another width.
            KeyboardInterrupt: on Ctrl-C, after the step under way and a checkpoint.
        """
        config = LoopConfig(log_every, save_every, tensorboard, show, converge)
        run_loop([self], lambda batch: [self.step(batch)], source, rows, [run] if run else None, config)
        self.finish()
        if run:
            self.save(run.sae)
        return self.sae
