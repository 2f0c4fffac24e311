"What the page accepts, and how it says no"
from __future__ import annotations

from dataclasses import dataclass

__all__ = ['Limits', 'Refused', 'MB']

MB = 2**20


@dataclass(frozen=True)
class Limits:
    "What the page accepts. One request needs `body_mb` twice and `memory_mb` at most"
    file_mb: float = 10. # Size of one image file
    body_mb: float = 64. # Of a whole request, which is held in memory; of all requests together four times as much
    files: int = 20 # Images at once
    side: int = 16_384 # Width and height of an image
    pixels: int = 16_000_000 # Of an image once decoded; JPEG files with more are decoded at a smaller scale
    memory_mb: int = 384 # Of the process that decodes an image
    seconds: float = 1.5 # Processor time to decode an image
    formats: tuple[str, ...] = ('JPEG', 'PNG', 'WEBP', 'AVIF', 'BMP', 'GIF', 'TIFF')
    classes: int = 50 # In all
    examples: int = 100 # Of one class
    asked_mb: float = 32. # Of images that were classified and may still be corrected, as the model sees them
    workers: int = 2 # Requests that are worked on at a time
    waiting: int = 16 # Requests that wait for their turn
    patience: float = 20. # Seconds that an upload may take, and one more for every 100 kB of it

    @property
    def body(self) -> int:
        "Bytes of a whole request"
        return int(min(self.body_mb, self.file_mb * self.files + 1) * MB)


class Refused(ValueError):
    "What a visitor can mend, and the HTTP status that says so"
    def __init__(self, message: str, status: int = 400): # For the page; of HTTP
        super().__init__(message)
        self.status = status
