"How large images are: the side of a square, or (height, width)"
from __future__ import annotations

from .sampler import check_whole

__all__ = ['Size', 'Box', 'as_size', 'sides', 'with_margin', 'size_text', 'resized_box']

Size = int | tuple[int, int]
"The side of a square, or (height, width) of what is none"


def as_size(
    name: str, # Of the argument, for the error
    value: Size | list[int], # A side, or (height, width)
    least: int = 1, # The smallest side
) -> Size:
    """The side of a square, or (height, width) of what is none. Raises `TypeError` and `ValueError` for what is no size.

    >>> as_size('size', [32, 48]), as_size('size', (32, 32))
    ((32, 48), 32)
    """
    height_width = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(height_width) != 2: raise TypeError(f'{name}={value!r:.60}: wanted a side in pixels, or (height, width)')
    for side in height_width: check_whole(name, side, least)
    height, width = map(int, height_width)
    return height if height == width else (height, width)


def sides(
    size: Size, # A side, or (height, width)
) -> tuple[int, int]:
    "Height and width"
    return (size, size) if isinstance(size, int) else size


def with_margin(
    size: Size, # What is cut out in the end
) -> Size:
    "The size that images are brought to before a part is cut out of them: 1.15 times as large"
    return as_size('size', [int(1.15 * side) for side in sides(size)])


def size_text(
    size: Size, # A side, or (height, width)
) -> str:
    """As people write it.

    >>> size_text((32, 48))
    '32×48 px'
    """
    return '×'.join(map(str, sides(size))) + ' px'


Box = tuple[float, float, float, float]
"(left, top, right, bottom) in pixels"


def resized_box(
    image: tuple[int, int], # (width, height) of the image
    resize: tuple[int, int], # (width, height) that it was brought to
    method: str, # How, by fastai's name: 'squish', 'crop' or 'pad'
    size: Size, # What was cut out of its middle
) -> Box:
    """The part of an image that is left of it when it was resized and its middle cut out, in pixels of the image.

    >>> resized_box((200, 100), (50, 50), 'crop', 40)  # of a square of 100 px in the middle, the middle four fifths
    (60.0, 10.0, 140.0, 90.0)
    """
    ratios = [a / b for a, b in zip(image, resize, strict=True)]
    if method != 'squish': ratios = [max(ratios) if method == 'pad' else min(ratios)] * 2
    (width, height), half = image, [ratio * side / 2 for ratio, side in zip(ratios, sides(size)[::-1], strict=True)]
    return width / 2 - half[0], height / 2 - half[1], width / 2 + half[0], height / 2 + half[1]
