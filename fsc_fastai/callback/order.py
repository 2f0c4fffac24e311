"""When callbacks of a training step have their turn: one table, with the reasons.

fastai calls the callbacks of an event from the lowest order to the highest. Most of ours change the loss between the forward and
the backward pass, where each builds on what those before it have made of it:

| order | who | its turn |
|---|---|---|
| `OTHER_WEIGHTS` | trains at weights that are not the model's own | before anybody puts anything on the model or runs it |
| `GUIDED` | `LRPGuidedCallback` | its merged loss takes the place of the plain one, before others add to it |
| `ADDED` | `ATACallback`, `StyleAdvCallback`, … | on the merged loss; attack before transformations and autocast are on |
| `TRANSFORMED` | `FTCallback`, `LFTCallback` | differentiates the whole loss twice, which must not be divided or scaled by then |
| 6 | fastai's `GradientAccumulation`, our `EpisodeAccumulation` | divides the loss |
| 10 | fastai's `MixedPrecision` | enters autocast after all these in `before_batch`, and leaves it after them in `after_loss` |
| 50, 60 | fastai's `Recorder`, `ParamScheduler` | know the metrics, and set the learning rates |
| `BEST` | keeps the weights of the best epoch | once the recorder knows how good it was |
| `RESUME` | `ResumeFit` | saves what an epoch has left, all of the above included |
| `GRAPHED` | `GraphedStep` | replays a step once all others have prepared it, and captures one to the end of its backward pass |
"""
from fastai.callback.schedule import ParamScheduler
from fastai.callback.training import GradientAccumulation

__all__ = ['OTHER_WEIGHTS', 'GUIDED', 'ADDED', 'TRANSFORMED', 'BEST', 'RESUME', 'GRAPHED']

OTHER_WEIGHTS = GradientAccumulation.order - 2
GUIDED = GradientAccumulation.order - 1
ADDED = GradientAccumulation.order - .75
TRANSFORMED = GradientAccumulation.order - .5
BEST = ParamScheduler.order + 5
RESUME = ParamScheduler.order + 30
GRAPHED = ParamScheduler.order + 40
