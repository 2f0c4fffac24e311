"What the page accepts, and the error for what it refuses"
from __future__ import annotations

from dataclasses import dataclass

__all__ = ['Limits', 'Refused', 'MB']

MB = 2**20


@dataclass(frozen=True)
class Limits:
    "What the page accepts. One request takes at most twice `body_mb` of memory, and `memory_mb` to decode an image"
    file_mb: float = 10. # Size of one image file
    body_mb: float = 64. # Size of a whole request, which is held in memory; all requests together may take four times as much
    files: int = 20 # Images in one request
    side: int = 16_384 # Width and height of an image in pixels
    pixels: int = 16_000_000 # Pixels of a decoded image; JPEG files with more are decoded at a smaller scale
    memory_mb: int = 384 # Memory of the process that decodes an image
    seconds: float = 1.5 # Processor time to decode an image
    formats: tuple[str, ...] = ('JPEG', 'PNG', 'WEBP', 'AVIF', 'BMP', 'GIF', 'TIFF')
    classes: int = 50 # Classes of the classifier
    examples: int = 100 # Examples of one class
    asked_mb: float = 32. # Memory for images that were classified and may still be corrected, as the model sees them
    workers: int = 2 # Requests that are processed at a time
    waiting: int = 16 # Requests that wait for their turn
    patience: float = 20. # Seconds that an upload may take, plus one for every 100 kB of it

    @property
    def body(self) -> int:
        "The most bytes of a whole request"
        return int(min(self.body_mb, self.file_mb * self.files + 1) * MB)


class Refused(ValueError):
    "An error that a visitor can mend, with the HTTP status of its answer"
    def __init__(self, message: str, status: int = 400): # What the page says; status of HTTP
        super().__init__(message)
        self.status = status
