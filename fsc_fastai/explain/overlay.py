"Overlays: smooth relevance with contours over the original image, at its own size"
from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..briefly import brief_repr
from ..data.size import Box

__all__ = ['DIVERGING', 'Original', 'to_image', 'draw_overlay', 'overlay_image', 'colour_bar']

DIVERGING = 'seismic' # Red speaks for, blue against
LARGEST = 768 # Most pixels of the longer side of a drawn image
LEVELS = .25, .5, .75 # Levels of the contours, relative to the largest |R|


def to_image(x: Tensor) -> np.ndarray:
    "An image `(channels, height, width)` as an array `(height, width, 3)` between 0 and 1; normalised images are rescaled"
    image = x.detach().as_subclass(Tensor).float().cpu()
    if image.min() < 0 or image.max() > 1: image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-8)
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Original:
    "An image before it was cropped and resized, at most 768 pixels a side, and the box that the model saw"
    image: np.ndarray # `(height, width, 3)` between 0 and 1
    box: Box # (left, top, right, bottom) of what the model saw, in pixels of `image`; may reach beyond it
    __repr__ = brief_repr

    @classmethod
    def of(cls,
        im: Image.Image, # The image as it was opened
        box: Box, # The part that the model saw, in pixels of the image
    ) -> Original:
        "An `Original`, made smaller if it is too large"
        scale = min(1., LARGEST / max(im.size))
        small = im if scale == 1 else im.resize((max(1, round(scale * im.width)), max(1, round(scale * im.height))))
        left, top, right, bottom = box
        across, down = small.width / im.width, small.height / im.height
        return cls(np.asarray(small.convert('RGB')) / 255, (left * across, top * down, right * across, bottom * down))

    @classmethod
    def seen(cls,
        x: Tensor, # The input of the model `(channels, height, width)`
    ) -> Original:
        "An `Original` of the model's input itself"
        image = to_image(x)
        return cls(image, (0., 0., image.shape[1], image.shape[0]))


def _placed(heat: np.ndarray, original: Original) -> np.ndarray:
    "A heatmap at the size of the original `(height, width)`, 0 where the model saw nothing"
    (height, width), (left, top, right, bottom) = original.image.shape[:2], original.box
    centres = lambda n, low, high: (torch.arange(n) + .5 - low) / (high - low) * 2 - 1
    y, x = torch.meshgrid(centres(height, top, bottom), centres(width, left, right), indexing='ij')
    source = torch.from_numpy(np.ascontiguousarray(heat)).float()[None, None]
    placed = F.grid_sample(source, torch.stack([x, y], -1)[None].float(), 'bilinear', 'border', align_corners=False)[0, 0]
    return placed.masked_fill((x.abs() > 1) | (y.abs() > 1), 0).numpy()


def draw_overlay(
    ax: Axes, # Where to draw
    heat: np.ndarray, # `(height, width)` as the model saw the image, between −1 and 1
    original: Original, # The image, drawn in grey below
    cmap: str = DIVERGING, # Red speaks for, blue against
    contours: bool = True, # Lines at a quarter, a half and three quarters of the largest |R|
) -> None:
    "Draw relevance over the grey image; stronger relevance covers more of it"
    R = _placed(heat, original)
    grey = .25 + .6 * original.image.mean(-1, keepdims=True)
    colours, opacity = plt.get_cmap(cmap)((R + 1) / 2)[..., :3], .8 * np.abs(R)[..., None] ** .5
    ax.imshow(opacity * colours + (1 - opacity) * grey)
    if not contours: return
    for sign, colour in ((1, plt.get_cmap(cmap)(.95)), (-1, plt.get_cmap(cmap)(.05))):
        levels = [level for level in LEVELS if level < (sign * R).max()]
        if levels and min(R.shape) > 1: ax.contour(sign * R, levels, colors=[colour], linewidths=.6)


def overlay_image(
    heat: np.ndarray, # `(height, width)` as the model saw the image, between −1 and 1
    original: Original, # The image, which sets the size of the picture
    cmap: str = DIVERGING, # Red speaks for, blue against
    contours: bool = True, # Lines at a quarter, a half and three quarters of the largest |R|
) -> Image.Image:
    "A picture of what `draw_overlay` draws; safe to call from threads"
    height, width = original.image.shape[:2]
    fig = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(fig)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    draw_overlay(ax, heat, original, cmap, contours)
    ax.set_aspect('auto')
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def colour_bar(
    fig: Figure, # The figure, with all its axes
    cmap: str = DIVERGING, # Colour map
    against: str = 'against', # Label of the lower end
    speaks_for: str = 'for', # Label of the upper end
) -> None:
    "Add a colour bar for all axes of a figure"
    bar = fig.colorbar(ScalarMappable(Normalize(-1, 1), cmap), ax=fig.axes, shrink=.6, aspect=30, pad=.01)
    bar.set_ticks([-1, 0, 1], labels=[against, '0', speaks_for], fontsize=7)
